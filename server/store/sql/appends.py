"""The statement that carries the appends of many calls.

It has one row for each conversation, a group: all appends in it are of one
caller and follow each other. A group is placed or refused as a whole, without
any effect on the others.
"""

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Insert,
    Integer,
    LargeBinary,
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
from sqlalchemy.dialects.postgresql import ARRAY, UUID

from server.authorization.permission import Permission
from server.store.sql.schema import Time, conversations, items, requests
from server.store.sql.statement import Statement, compile_statement
from server.store.sql.visibility import allowed, visible_one

_c = conversations.c

# The arrays of a statement: the element of each that belongs together has one place in all.
GROUPS = {
    "tenant": Text,
    "conversation_id": Text,
    "size": BigInteger,  # items
    "changes": BigInteger,  # appends
    "expected": BigInteger,  # last_sequence; NULL when any will do
}
ITEMS = {
    "group_number": Integer,  # of its group, from 1
    "place": BigInteger,  # in its group, from 1
    "item_id": Text,
    "type": Text,
    "role": Text,
    "status": Text,
    "create_time": Time,
    "body": LargeBinary,
}
REQUESTS = {
    "group_number": Integer,
    "principal": Text,
    "method": SmallInteger,
    "request_id": UUID(as_uuid=False),
    "fingerprint": LargeBinary,
    "first_place": BigInteger,
    "item_count": SmallInteger,
}


@lru_cache(maxsize=512)
def append_many(read: Permission, create: Permission, *, reserves: bool) -> Statement:
    """The number of each group that was placed, and the last sequence before it."""
    values = sorted({**read.values, **create.values})
    groups = _rows("groups", {**GROUPS, **dict.fromkeys(values, Text)})
    bumped = _bumped(read, create, groups).cte("bumped")
    statement: Select[Any] = select(bumped.c.number, bumped.c.base).add_cte(_placed(bumped))
    return compile_statement(statement.add_cte(_reserved(bumped)) if reserves else statement, "append")


def _rows(name: str, columns: dict[str, Any]) -> Any:
    """A table of the arrays ``<name>_<column>``, numbered from 1."""
    arrays = [bindparam(f"{name}_{column}", type_=ARRAY(type_)) for column, type_ in columns.items()]
    rows = func.unnest(*arrays).table_valued(*columns, with_ordinality="number", name=name)
    return rows.render_derived()


def _bumped(read: Permission, create: Permission, groups: Any) -> Update:
    """The counters, each under the lock of its row: the order of commits is the order of items."""

    def of_group(name: str, type_: Any) -> ColumnElement[Any]:
        value: ColumnElement[Any] = groups.c[name]
        return cast(value, type_) if isinstance(type_, ARRAY) else value

    may = (visible_one(read, groups.c.conversation_id, parameter=of_group), allowed(create, parameter=of_group))
    as_expected = or_(groups.c.expected.is_(None), _c.last_sequence == groups.c.expected)
    counted = {"last_sequence": _c.last_sequence + groups.c.size, "version": _c.version + groups.c.changes}
    base = (_c.last_sequence - groups.c.size).label("base")
    return (
        update(conversations)
        .where(*may, as_expected)
        .values(counted)
        .returning(groups.c.number, _c.id, base, _c.version)
    )


def _placed(bumped: CTE) -> CTE:
    rows = _rows("items", ITEMS)
    given = {
        "conversation_id": bumped.c.id,
        "sequence": bumped.c.base + rows.c.place,
        "version": bumped.c.version,
        **{name: rows.c[name] for name in ("item_id", "type", "role", "status", "create_time", "body")},
    }
    query = select(*given.values()).join_from(bumped, rows, bumped.c.number == rows.c.group_number)
    statement: Insert = insert(items).from_select(list(given), query)
    return statement.cte("placed")


def _reserved(bumped: CTE) -> CTE:
    """The request ids; one that is taken raises 23505 and undoes the whole statement."""
    rows = _rows("requests", REQUESTS)
    given = {
        "conversation_id": bumped.c.id,
        "principal": rows.c.principal,
        "method": rows.c.method,
        "request_id": rows.c.request_id,
        "fingerprint": rows.c.fingerprint,
        "first_sequence": bumped.c.base + rows.c.first_place,
        "item_count": rows.c.item_count,
    }
    query = select(*given.values()).join_from(bumped, rows, bumped.c.number == rows.c.group_number)
    statement: Insert = insert(requests).from_select(list(given), query)
    return statement.cte("reserved")
