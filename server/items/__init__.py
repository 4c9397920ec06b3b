"""Conversation items, to and from the JSON of the OpenAI API.

Keys, unions and constants come from the schema and its options. No item type is named
in this package except `message`, which the API accepts in several forms.
"""

from server.items.codec import fill_from_client, new_item_from_json, to_json
from server.items.consistency import PART_TAG, check_item, has_own_status
from server.items.errors import ItemJsonError, RoleMissing
from server.items.misfit import ItemMisfit, Misfit, kind_of
from server.items.names import role_name, status_name
from server.items.write import write_item

__all__ = [
    "PART_TAG",
    "ItemJsonError",
    "ItemMisfit",
    "Misfit",
    "RoleMissing",
    "check_item",
    "fill_from_client",
    "has_own_status",
    "kind_of",
    "new_item_from_json",
    "role_name",
    "status_name",
    "to_json",
    "write_item",
]
