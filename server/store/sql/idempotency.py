"""The statements of request ids."""

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

CONSTRAINT = "requests_pkey"


_NONE: ColumnElement[int] = literal_column("0", SmallInteger)


def reserve(written: CTE, first_sequence: ColumnElement[int] = _NONE, item_count: ColumnElement[int] = _NONE) -> Insert:
    """Reserves the id when ``written`` has a row; a taken id raises 23505 and undoes all."""
    names = ["conversation_id", "principal", "method", "request_id", "fingerprint", "first_sequence", "item_count"]
    return insert(requests).from_select(
        names,
        select(
            bindparam("conversation_id", type_=Text),
            bindparam("principal", type_=Text),
            bindparam("method", type_=SmallInteger),
            bindparam("request_id", type_=UUID(as_uuid=False)),
            bindparam("fingerprint", type_=LargeBinary),
            first_sequence,
            item_count,
        ).select_from(written),
    )


_FIND = compile_statement(
    select(requests.c.fingerprint, requests.c.first_sequence, requests.c.item_count).where(
        requests.c.conversation_id == bindparam("conversation_id", type_=Text),
        # The key has no tenant, the conversation has; its tombstone counts.
        conversations.c.id == requests.c.conversation_id,
        conversations.c.tenant == bindparam("tenant", type_=Text),
        requests.c.principal == bindparam("principal", type_=Text),
        requests.c.method == bindparam("method", type_=SmallInteger),
        requests.c.request_id == bindparam("request_id", type_=UUID(as_uuid=False)),
    ),
    "read",
)
