"""Which conversations exist for a caller: the first conjuncts of every statement."""

from typing import Any

from sqlalchemy import ColumnElement, Text, and_, bindparam

from server.store.predicate import Permission
from server.store.schema import conversations

_tenant: ColumnElement[str] = bindparam("tenant", type_=Text)


def visible(read: Permission, table: Any = conversations) -> ColumnElement[bool]:
    """Of the caller's tenant, not deleted, and readable; anything else answers not found."""
    return and_(table.c.tenant == _tenant, table.c.delete_time.is_(None), allowed(read, table))


def allowed(permission: Permission, table: Any = conversations) -> ColumnElement[bool]:
    """Whether ``permission`` reaches a conversation."""
    return permission.where(table.c.owner, table.c.attributes, table.c.id)


def item_allowed(
    permission: Permission, item_id: ColumnElement[Any], table: Any = conversations
) -> ColumnElement[bool]:
    """Whether ``permission`` reaches an item: its rules see the owner and attributes of its conversation."""
    return permission.where(table.c.owner, table.c.attributes, item_id)
