"""The OpenAI names of types, roles and statuses."""

from conversations.v1.content_pb2 import Role
from conversations.v1.item_pb2 import Item
from conversations.v1.item_status_pb2 import ItemStatus

from server.items.shape import enum_names

_ROLES, _STATUSES = enum_names(Role.DESCRIPTOR), enum_names(ItemStatus.DESCRIPTOR)


def item_type(item: Item) -> str:
    """The OpenAI `type`, also of an unknown item; '' for an item without one."""
    name = item.WhichOneof("body") or ""
    return item.unknown.type if name == "unknown" else name


def role_name(role: Role.ValueType) -> str:
    """The OpenAI `role`, such as 'user'; '' when unspecified."""
    return _ROLES.get(role, "")


def status_name(status: ItemStatus.ValueType) -> str:
    """The OpenAI `status`, such as 'in_progress'; '' when unspecified."""
    return _STATUSES.get(status, "")
