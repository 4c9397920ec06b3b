"""Which conversations exist for a caller: the first conjuncts of every statement."""

from typing import Any

from sqlalchemy import ColumnElement, Text, and_, bindparam, func, literal_column

from server.authorization.permission import Permission
from server.store.sql.predicate import Parameter, bound, condition
from server.store.sql.schema import conversations

_tenant: ColumnElement[str] = bindparam("tenant", type_=Text)
_conversation_id: ColumnElement[str] = bindparam("conversation_id", type_=Text)


def visible(read: Permission, table: Any = conversations) -> ColumnElement[bool]:
    """Of the caller's tenant, not deleted, and readable; anything else answers not found."""
    return and_(table.c.tenant == _tenant, table.c.delete_time.is_(None), allowed(read, table))


def visible_one(
    read: Permission,
    conversation_id: ColumnElement[str] = _conversation_id,
    table: Any = conversations,
    parameter: Parameter = bound,
) -> ColumnElement[bool]:
    """The conversation of that id, when it is visible; only the primary key finds it (`alive`)."""
    own = table.c.tenant == parameter("tenant", Text)
    return and_(table.c.id == conversation_id, own, alive(table), allowed(read, table, parameter))


def alive(table: Any) -> ColumnElement[bool]:
    """Whether a row is no tombstone, said so that no index serves it.

    A plain ``delete_time IS NULL`` lets PostgreSQL use indexes that begin or end
    with it. While statistics lag behind a table that grows, reading the whole of
    one, a tenant or a conversation, looks as cheap as the primary key, and the
    plan is kept (ADR 10).
    """
    return func.num_nulls(table.c.delete_time) == literal_column("1")


def allowed(permission: Permission, table: Any = conversations, parameter: Parameter = bound) -> ColumnElement[bool]:
    """Whether ``permission`` reaches a conversation."""
    return condition(permission, table.c.owner, table.c.attributes, table.c.id, parameter)


def item_allowed(
    permission: Permission, item_id: ColumnElement[Any], table: Any = conversations
) -> ColumnElement[bool]:
    """Whether ``permission`` reaches an item: its rules see the owner and attributes of its conversation."""
    return condition(permission, table.c.owner, table.c.attributes, item_id)
