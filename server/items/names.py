"""The words of an item that other parts of the server read."""

from conversations.v1.content_pb2 import Role
from conversations.v1.item_pb2 import Item
from conversations.v1.item_status_pb2 import ItemStatus

from .shape import enum_names

_ROLES, _STATUSES = enum_names(Role.DESCRIPTOR), enum_names(ItemStatus.DESCRIPTOR)


def item_type(item: Item) -> str:
    """The OpenAI `type`, also of an unknown item; '' when it has none."""
    name = item.WhichOneof("body") or ""
    return item.unknown.type if name == "unknown" else name


def role(item: Item) -> str:
    """The role, such as 'user'; '' for a type without one or a role without a name here."""
    name = item.WhichOneof("body")
    if name == "message":
        return role_name(item.message.role)
    if name == "additional_tools":
        return role_name(item.additional_tools.role)
    return ""


def role_name(role: Role.ValueType) -> str:
    """The OpenAI `role`, such as 'user'; '' when unspecified."""
    return _ROLES.get(role, "")


def status_name(status: ItemStatus.ValueType) -> str:
    """The OpenAI `status`, such as 'in_progress'; '' when unspecified."""
    return _STATUSES.get(status, "")
