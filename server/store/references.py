"""References of a write, read before it: on a distributed database no statement sees two conversations.

What is read is committed, but an item that is deleted in between is still copied.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import asyncpg

from server.authorization.access import Access
from server.store.batch import Batch, Reference
from server.store.connection.database import Database
from server.store.sql.items import referenced

_NO_REFERENCES = (None,)
_SINGLE_BYTES = 2**31 - 1  # more than an item has


@dataclass(frozen=True)
class Referenced:
    """What the references of a batch name.

    Attributes:
        missing: The first one that cannot be read.
        size: Bytes of all items of the batch, those copied included.
        batch: Without references; None if one is missing, or if there are too many bytes.
    """

    missing: Reference | None
    size: int
    batch: Batch | None


async def read_references(
    database: Database, access: Access, batch: Batch, now: datetime, max_bytes: int
) -> Referenced:
    """Returns the items of ``batch``, with what its references name in their place.

    Args:
        database: That is distributed.
        access: Of the caller.
        batch: Of the write.
        now: The create_time of the items that are not references.
        max_bytes: The most bytes that the items may have together.

    Raises:
        StoreUnavailable, DeadlineExceeded: As `Database.fetch`.
    """
    found = await _read(database, access, batch, max_bytes)
    rows = [found.get(reference) if reference else None for reference in batch.references]
    pairs = list(zip(batch.references, rows, strict=True))
    missing = next((reference for reference, row in pairs if reference and row is None), None)
    own = sum(len(body) for body, reference in zip(batch.bodies, batch.references, strict=True) if not reference)
    size = own + sum(row["size"] for row in rows if row)
    if missing or size > max_bytes:
        return Referenced(missing, size, None)
    return Referenced(None, size, _merge(batch, rows, now, access.principal.id))


async def _read(database: Database, access: Access, batch: Batch, max_bytes: int) -> dict[Reference, asyncpg.Record]:
    statement = referenced(access.may("conversation", "read"), access.may("item", "read"))
    found = {}
    for conversation_id in dict.fromkeys(each.conversation_id for each in batch.references if each):
        ids = [each.item_id for each in batch.references if each and each.conversation_id == conversation_id]
        bounds = {"page_bytes": max_bytes, "single_bytes": _SINGLE_BYTES}
        values = {**access.values, "conversation_id": conversation_id, "item_ids": ids, **bounds}
        for row in await database.fetch(statement, values):
            found[Reference(conversation_id, row["item_id"])] = row
    return found


def _merge(batch: Batch, rows: Sequence[asyncpg.Record | None], now: datetime, author: str) -> Batch:
    def merged(name: str, own: Sequence[Any]) -> list[Any]:
        return [row[name] if row else value for row, value in zip(rows, own, strict=True)]

    return replace(
        batch,
        item_ids=merged("item_id", batch.item_ids),
        types=merged("type", batch.types),
        roles=merged("role", batch.roles),
        statuses=merged("status", batch.statuses),
        bodies=merged("body", batch.bodies),
        references=_NO_REFERENCES * len(batch),
        create_times=merged("create_time", [now] * len(batch)),
        authors=merged("author", [author] * len(batch)),
    )
