"""Conversation items and the JSON that the OpenAI API has for them.

Nothing here knows an item type by name but the message, which the API accepts in
several shapes: keys, unions and constants follow from the schema and its options.
"""

from .codec import check_item, from_json, is_reference, new_item_from_json, to_json
from .errors import ItemJsonError
from .names import item_type, role, role_name, status_name

__all__ = [
    "ItemJsonError",
    "check_item",
    "from_json",
    "is_reference",
    "item_type",
    "new_item_from_json",
    "role",
    "role_name",
    "status_name",
    "to_json",
]
