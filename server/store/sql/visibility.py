"""The conditions that every statement begins with: which conversations and items exist for a caller."""

from typing import Any

from sqlalchemy import ColumnElement, Text, and_, bindparam, func, literal_column

from server.authorization.permission import Permission
from server.store.sql.predicate import Parameter, bind, condition
from server.store.sql.schema import conversations

_tenant: ColumnElement[str] = bindparam("tenant", type_=Text)
_conversation_id: ColumnElement[str] = bindparam("conversation_id", type_=Text)


def visible(read: Permission, table: Any = conversations) -> ColumnElement[bool]:
    """Whether a conversation is of the caller's tenant, neither deleted nor expired, and readable.

    Any other is not found.
    """
    return and_(table.c.tenant == _tenant, table.c.delete_time.is_(None), unexpired(table), allowed(read, table))


def visible_one(
    read: Permission,
    conversation_id: ColumnElement[str] = _conversation_id,
    table: Any = conversations,
    parameter: Parameter = bind,
) -> ColumnElement[bool]:
    """As `visible`, of the conversation with that id; the primary key is the only index for it (see `alive`)."""
    own = table.c.tenant == parameter("tenant", Text)
    return and_(table.c.id == conversation_id, own, alive(table), unexpired(table), allowed(read, table, parameter))


def readable_one(read: Permission) -> ColumnElement[bool]:
    """As `visible_one`, also of one that was deleted or has expired: whether it may be read, or could be before."""
    return and_(conversations.c.id == _conversation_id, conversations.c.tenant == _tenant, allowed(read))


def alive(table: Any) -> ColumnElement[bool]:
    """Whether a row is not a tombstone, written so that no index can serve the condition.

    With a plain ``delete_time IS NULL`` PostgreSQL may choose an index that begins or ends with that
    column. While the statistics of a growing table are old, a scan of the whole index, of all
    conversations of a tenant or all items of a conversation, looks as cheap as the primary key, and
    a prepared statement keeps that plan (ADR 10).
    """
    return func.num_nulls(table.c.delete_time) == literal_column("1")


def unexpired(table: Any = conversations) -> ColumnElement[bool]:
    """Whether a conversation has not expired, by the clock of the database."""
    unexpired: ColumnElement[bool] = table.c.expire_time > func.now()
    return unexpired


def allowed(permission: Permission, table: Any = conversations, parameter: Parameter = bind) -> ColumnElement[bool]:
    """Whether ``permission`` covers a conversation."""
    return condition(permission, table.c.owner, table.c.attributes, table.c.id, parameter)


def item_allowed(
    permission: Permission, item_id: ColumnElement[Any], table: Any = conversations
) -> ColumnElement[bool]:
    """Whether ``permission`` covers an item; rules see the owner and the attributes of its conversation."""
    return condition(permission, table.c.owner, table.c.attributes, item_id)
