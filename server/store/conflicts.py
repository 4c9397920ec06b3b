"""Why a write stored no items."""

from datetime import UTC, datetime

from server.authorization.access import Access
from server.errors import Conflict, ItemExists, ItemNotFound, ServiceError
from server.store.batch import Batch
from server.store.connection.database import Database
from server.store.sql.conflicts import TAKEN_IDS, unresolved_references


async def explain_batch(database: Database, access: Access, conversation_id: str, batch: Batch | None) -> ServiceError:
    """The error of a write whose items the database refused.

    Returns:
        ItemNotFound for the first reference that cannot be read, else ItemExists for the first id that
        is taken or repeated, else Conflict: the reason is gone, and the write may be repeated.
    """
    if batch is None:
        return Conflict()
    if batch.has_references and (missing := await _find_unresolved(database, access, batch)):
        return missing
    return await _find_taken(database, conversation_id, batch)


async def _find_unresolved(database: Database, access: Access, batch: Batch) -> ItemNotFound | None:
    statement = unresolved_references(access.may("conversation", "read"), access.may("item", "read"))
    row = await database.fetchrow(statement, {**access.values, **batch.values(datetime.now(UTC))})
    if row is None:
        return None
    reference = batch.references[row["ordinal"] - 1]
    assert reference is not None
    return ItemNotFound(reference.conversation_id, reference.item_id)


async def _find_taken(database: Database, conversation_id: str, batch: Batch) -> ServiceError:
    rows = await database.fetch(TAKEN_IDS, {"conversation_id": conversation_id, "item_ids": batch.all_ids})
    taken = {row["item_id"] for row in rows}
    for item_id in batch.all_ids:
        if item_id in taken:
            return ItemExists(conversation_id, item_id)
        taken.add(item_id)
    return Conflict()
