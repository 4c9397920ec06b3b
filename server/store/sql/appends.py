"""The statement that runs the appends of many calls (ADR 11).

The appends of one caller to one conversation are a group. A group is stored or
refused as a whole, and neither affects another group.
"""

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Insert,
    Integer,
    Select,
    SmallInteger,
    Text,
    Update,
    bindparam,
    cast,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from server.authorization.permission import Permission
from server.store.sql.expiry import expiry_after_append
from server.store.sql.idempotency import REQUEST_COLUMNS
from server.store.sql.item_batch import ITEM_COLUMNS, author_for
from server.store.sql.queue import active_time_after_append, enqueue
from server.store.sql.schema import Time, conversations, items, requests
from server.store.sql.statement import Statement, compile_statement
from server.store.sql.visibility import allowed, visible_one

_c = conversations.c

# The columns of the statement's parameters, which are an array for each column.
GROUPS = {
    "tenant": Text,
    "conversation_id": Text,
    "author": Text,  # of its items
    "size": BigInteger,  # number of items
    "changes": BigInteger,  # number of appends
    "expected": BigInteger,  # last_sequence before the group; NULL for any
    "now": Time,  # of its newest items
}
ITEMS = {
    "group_number": Integer,  # position of its group in GROUPS, from 1
    "place": BigInteger,  # position in the group, from 1
    **ITEM_COLUMNS,
}
REQUESTS = {
    "group_number": Integer,
    **REQUEST_COLUMNS,
    "first_place": BigInteger,
    "item_count": SmallInteger,
}


@lru_cache(maxsize=512)
def append_many(read: Permission, create: Permission, *, queues: bool, reserves: bool, skip_locked: bool) -> Statement:
    """The appends of several groups; returns the number of each stored group and the last sequence before it.

    Args:
        read: To read a conversation; each group has its own values.
        create: To create items, likewise; must not depend on item ids.
        queues: Whether the conversations enter the queue.
        reserves: Whether the appends have request ids: all, or none.
        skip_locked: Whether it never waits for a lock: a conversation whose row is locked stores nothing.

    A taken item id or request id fails the whole statement (SQLSTATE 23505).
    """
    values = sorted({**read.values, **create.values})
    groups = _rows("groups", {**GROUPS, **dict.fromkeys(values, Text)})
    bumped = (_bump_unlocked if skip_locked else _bump)(read, create, groups).cte("bumped")
    statement: Select[Any] = select(bumped.c.number, bumped.c.base).add_cte(_insert_items(bumped))
    if queues:
        statement = statement.add_cte(enqueue(bumped))
    if reserves:
        statement = statement.add_cte(_insert_request_ids(bumped))
    return compile_statement(statement, "append", waits=not skip_locked)


def _rows(name: str, columns: dict[str, Any]) -> Any:
    """The arrays ``<name>_<column>`` as a table, with the column ``number`` from 1."""
    arrays = [bindparam(f"{name}_{column}", type_=ARRAY(type_)) for column, type_ in columns.items()]
    rows = func.unnest(*arrays).table_valued(*columns, with_ordinality="number", name=name)
    return rows.render_derived()


def _bump(read: Permission, create: Permission, groups: Any) -> Update:
    """Advances the counters of the conversations; the row locks make the order of items that of commits."""
    return _advance(groups).where(*_conditions(read, create, groups))


def _bump_unlocked(read: Permission, create: Permission, groups: Any) -> Update:
    """As `_bump`, of the conversations that no other transaction has locked.

    A conversation that changed since the snapshot of the statement is looked at again when its row is
    locked, and again when it is updated.
    """
    columns = (groups.c.number, _c.id, groups.c.author, groups.c.size, groups.c.changes, groups.c.now)
    query = select(*columns).where(*_conditions(read, create, groups))
    locked = query.with_for_update(of=conversations, key_share=True, skip_locked=True).cte("locked")
    return _advance(locked).where(_c.id == locked.c.id)


def _conditions(read: Permission, create: Permission, groups: Any) -> tuple[ColumnElement[bool], ...]:
    """Whether a conversation is that of a group, and the group may be appended to it."""

    def group_value(name: str, type_: Any) -> ColumnElement[Any]:
        value: ColumnElement[Any] = groups.c[name]
        return cast(value, type_) if isinstance(type_, ARRAY) else value

    return (
        visible_one(read, groups.c.conversation_id, parameter=group_value),
        allowed(create, parameter=group_value),
        or_(groups.c.expected.is_(None), _c.last_sequence == groups.c.expected),
    )


def _advance(groups: Any) -> Update:
    """The UPDATE of the counters, still without a condition that joins ``groups``."""
    counters = {
        "last_sequence": _c.last_sequence + groups.c.size,
        "version": _c.version + groups.c.changes,
        "active_time": active_time_after_append(groups.c.now),
        "expire_time": expiry_after_append(),
    }
    base = (_c.last_sequence - groups.c.size).label("base")
    author = author_for(groups.c.author, _c.owner).label("author")
    return update(conversations).values(counters).returning(groups.c.number, _c.id, base, _c.version, author)


def _insert_items(bumped: CTE) -> CTE:
    rows = _rows("items", ITEMS)
    columns = {
        "conversation_id": bumped.c.id,
        "sequence": bumped.c.base + rows.c.place,
        "version": bumped.c.version,
        **{name: rows.c[name] for name in ITEM_COLUMNS},
        "author": bumped.c.author,
    }
    query = select(*columns.values()).join_from(bumped, rows, bumped.c.number == rows.c.group_number)
    statement: Insert = insert(items).from_select(list(columns), query)
    return statement.cte("placed")


def _insert_request_ids(bumped: CTE) -> CTE:
    rows = _rows("requests", REQUESTS)
    columns = {
        "conversation_id": bumped.c.id,
        "principal": rows.c.principal,
        "method": rows.c.method,
        "request_id": rows.c.request_id,
        "fingerprint": rows.c.fingerprint,
        "first_sequence": bumped.c.base + rows.c.first_place,
        "item_count": rows.c.item_count,
    }
    query = select(*columns.values()).join_from(bumped, rows, bumped.c.number == rows.c.group_number)
    statement: Insert = insert(requests).from_select(list(columns), query)
    return statement.cte("reserved")
