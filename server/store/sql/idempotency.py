"""Statements on the table of request ids."""

from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Insert,
    LargeBinary,
    SmallInteger,
    Text,
    bindparam,
    insert,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import UUID

from server.store.sql.schema import conversations, requests
from server.store.sql.statement import compile_statement

CONSTRAINT = "requests_pkey"  # violated when a request id is used twice
# The columns of a request id that each write has as parameters, one write a value and several an array.
REQUEST_COLUMNS: dict[str, Any] = {
    "principal": Text,
    "method": SmallInteger,
    "request_id": UUID(as_uuid=False),
    "fingerprint": LargeBinary,
}
_NONE: ColumnElement[int] = literal_column("0", SmallInteger)


def reserve(written: CTE, first_sequence: ColumnElement[int] = _NONE, item_count: ColumnElement[int] = _NONE) -> Insert:
    """Inserts the request id of a write; one that is taken fails the whole statement (SQLSTATE 23505).

    Args:
        written: The write; when it has no row, nothing is reserved.
        first_sequence: Of the items that the write inserts, 0 if none.
        item_count: How many items the write inserts.
    """
    names = ["conversation_id", *REQUEST_COLUMNS, "first_sequence", "item_count"]
    return insert(requests).from_select(
        names,
        select(
            bindparam("conversation_id", type_=Text),
            *(bindparam(name, type_=type_) for name, type_ in REQUEST_COLUMNS.items()),
            first_sequence,
            item_count,
        ).select_from(written),
    )


FIND = compile_statement(
    select(requests.c.fingerprint, requests.c.first_sequence, requests.c.item_count).where(
        requests.c.conversation_id == bindparam("conversation_id", type_=Text),
        # The key has no tenant, the conversation has; its tombstone counts.
        conversations.c.id == bindparam("conversation_id", type_=Text),
        conversations.c.tenant == bindparam("tenant", type_=Text),
        requests.c.principal == bindparam("principal", type_=Text),
        requests.c.method == bindparam("method", type_=SmallInteger),
        requests.c.request_id == bindparam("request_id", type_=UUID(as_uuid=False)),
    ),
    "read",
)
