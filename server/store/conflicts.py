"""Why a batch of items was not placed."""

from datetime import UTC, datetime
from functools import lru_cache

from sqlalchemy import Text, any_, bindparam, not_, select
from sqlalchemy.dialects.postgresql import ARRAY

from server.authorization.access import Access
from server.authorization.permission import Permission
from server.errors import Conflict, ItemExists, ItemNotFound, ServiceError
from server.store.batch import Batch
from server.store.connection.database import Database
from server.store.sql.item_batch import resolved_rows
from server.store.sql.schema import items
from server.store.sql.statement import Statement, compile_statement


@lru_cache(maxsize=512)
def _unresolved(read: Permission, item_read: Permission) -> Statement:
    rows = resolved_rows(read, item_read)
    return compile_statement(select(rows.c.ordinal).where(not_(rows.c.found)).order_by(rows.c.ordinal), "read")


_TAKEN = compile_statement(
    select(items.c.item_id).where(
        items.c.conversation_id == bindparam("conversation_id", type_=Text),
        items.c.item_id == any_(bindparam("item_ids", type_=ARRAY(Text))),
        items.c.delete_time.is_(None),
    ),
    "read",
)


async def explain_batch(database: Database, access: Access, conversation_id: str, batch: Batch | None) -> ServiceError:
    """The failure to raise: the first unreadable reference, else the first id that is taken."""
    if batch is None:
        return Conflict()
    if batch.refers:
        statement = _unresolved(access.may("conversation", "read"), access.may("item", "read"))
        row = await database.fetchrow(statement, {**access.values, **batch.values(datetime.now(UTC))})
        if row is not None:
            reference = batch.references[row["ordinal"] - 1]
            assert reference is not None
            return ItemNotFound(reference.conversation_id, reference.item_id)
    return await _taken(database, conversation_id, batch)


async def _taken(database: Database, conversation_id: str, batch: Batch) -> ServiceError:
    rows = await database.fetch(_TAKEN, {"conversation_id": conversation_id, "item_ids": batch.all_ids})
    taken = {row["item_id"] for row in rows}
    seen: set[str] = set()
    for item_id in batch.all_ids:
        if item_id in taken or item_id in seen:
            return ItemExists(conversation_id, item_id)
        seen.add(item_id)
    return Conflict()  # it was taken, and is free by now: the call may be repeated
