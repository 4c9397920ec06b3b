"""Why a write stored no items."""

from datetime import UTC, datetime

from server.authorization.access import Access
from server.errors import Conflict, ItemExists, ItemNotFound, LimitExceeded, ServiceError, Violation
from server.store.batch import Batch
from server.store.connection.database import Database
from server.store.references import read_references
from server.store.sql.conflicts import TAKEN_IDS, resolved_sizes


async def explain_batch(
    database: Database, access: Access, conversation_id: str, batch: Batch, max_bytes: int
) -> ServiceError:
    """The error of a write whose items the database refused.

    Returns:
        ItemNotFound for the first reference that cannot be read, else LimitExceeded when the items have more
        than ``max_bytes`` together, else ItemExists for the first id that is taken or repeated, else Conflict:
        the reason is gone, and the write may be repeated.
    """
    if not batch:
        return Conflict()
    if batch.has_references and (error := await _find_unusable(database, access, batch, max_bytes)):
        return error
    return await _find_taken(database, conversation_id, batch)


async def _find_unusable(database: Database, access: Access, batch: Batch, max_bytes: int) -> ServiceError | None:
    if not database.layout.spans_conversations:
        return await _find_unusable_apart(database, access, batch, max_bytes)
    statement = resolved_sizes(access.may("conversation", "read"), access.may("item", "read"))
    rows = await database.fetch(statement, {**access.values, **batch.values(datetime.now(UTC), access.principal.id)})
    for row, reference in zip(rows, batch.references, strict=True):
        if reference and not row["found"]:
            return ItemNotFound(reference.conversation_id, reference.item_id)
    return _excess(sum(row["size"] for row in rows), max_bytes)


async def _find_unusable_apart(database: Database, access: Access, batch: Batch, max_bytes: int) -> ServiceError | None:
    """As `_find_unusable`, where no statement sees several conversations."""
    read = await read_references(database, access, batch, datetime.now(UTC), max_bytes)
    if read.missing:
        return ItemNotFound(read.missing.conversation_id, read.missing.item_id)
    return _excess(read.size, max_bytes)


def _excess(size: int, max_bytes: int) -> LimitExceeded | None:
    if size <= max_bytes:
        return None
    rule = f"would have more than {max_bytes} bytes together"
    return LimitExceeded(Violation("items", rule, "items.max_bytes"), max_bytes)


async def _find_taken(database: Database, conversation_id: str, batch: Batch) -> ServiceError:
    rows = await database.fetch(TAKEN_IDS, {"conversation_id": conversation_id, "item_ids": batch.all_ids})
    taken = {row["item_id"] for row in rows}
    for item_id in batch.all_ids:
        if item_id in taken:
            return ItemExists(conversation_id, item_id)
        taken.add(item_id)
    return Conflict()
