"""Statements that find out why a write stored no items."""

from functools import lru_cache

from sqlalchemy import Text, any_, bindparam, func, select
from sqlalchemy.dialects.postgresql import ARRAY

from server.authorization.permission import Permission
from server.store.sql.item_batch import resolved_rows
from server.store.sql.schema import items
from server.store.sql.statement import Statement, compile_statement


@lru_cache(maxsize=512)
def resolved_sizes(read: Permission, item_read: Permission) -> Statement:
    """The bytes of each item of a request, in order, and whether it was ``found`` if it is a reference."""
    rows = resolved_rows(read, item_read)
    size = func.octet_length(rows.c.body).label("size")
    return compile_statement(select(rows.c.found, size).order_by(rows.c.ordinal), "read")


# The ids, among ``item_ids``, that items of the conversation have.
TAKEN_IDS = compile_statement(
    select(items.c.item_id).where(
        items.c.conversation_id == bindparam("conversation_id", type_=Text),
        items.c.item_id == any_(bindparam("item_ids", type_=ARRAY(Text))),
        items.c.delete_time.is_(None),
    ),
    "read",
)
