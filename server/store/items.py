"""Items: append, read, list and delete, and what a write that changed no row means."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import asyncpg

from server.authorization.access import Access
from server.authorization.permission import Permission
from server.errors import (
    ActionDenied,
    Conflict,
    ConversationNotFound,
    FieldInvalid,
    ItemNotFound,
    ResponseTooLarge,
    SequenceMismatch,
    Violation,
)
from server.store.append_batching import Append, AppendBatcher
from server.store.batch import Batch
from server.store.comparison import Comparison
from server.store.conflicts import explain_batch
from server.store.connection.database import Database
from server.store.conversations import ConversationStore
from server.store.idempotency import PriorResult, Reservation, execute_write, reserved_values
from server.store.sql import items as sql

_FIRST, _LAST = 0, 2**63 - 1  # positions before and behind every item


class StoredItem(NamedTuple):
    """An item as it lies in the database: its place, and its bytes without the place."""

    sequence: int
    body: bytes


class ItemStore:
    """Each method is one statement; a repeated or a refused write takes a second one to tell why."""

    def __init__(
        self,
        database: Database,
        parents: ConversationStore,
        page_bytes: int,
    ) -> None:
        """``page_bytes`` is what the items of one answer may hold together; a single item always fits."""
        self._database = database
        self._parents = parents
        self._page_bytes = page_bytes
        self._appends = AppendBatcher(database, self._place)

    async def append(self, append: Append) -> list[StoredItem]:
        """Places items behind the newest one, all or nothing; the items as they lie there.

        Raises:
            ConversationNotFound, ActionDenied, ItemNotFound, ItemExists,
            SequenceMismatch, RequestIdReused: Nothing was written.
        """
        return await self._result(append, await self._appends.place(append))

    def queue(self, append: Append) -> None:
        """As `append`, but for the result; those of a conversation are placed in the order of these calls.

        For sociable ones only.
        """
        self._appends.queue(append)

    async def result(self, append: Append) -> list[StoredItem]:
        """What became of an append that was queued; as `append` otherwise.

        A caller that goes leaves it in line: those behind it must not overtake it.
        """
        return await self._result(append, await asyncio.shield(append.placed))

    async def _place(self, append: Append) -> int | None:
        """Places one append in a statement of its own: the last sequence before it, None when it was not placed."""
        access, reserved, batch = append.access, append.reserved, append.batch
        references = access.may("item", "read") if batch.refers else None
        expects, reserves = append.expected is not None, reserved is not None
        statement = sql.append(*append.permissions, references, expects=expects, reserves=reserves)
        values = {
            **access.values,
            "conversation_id": append.conversation_id,
            "size": len(batch),
            "expected": append.expected,
            **batch.values(append.now),
            **reserved_values(access.principal, reserved),
        }
        try:
            row = await self._database.fetchrow(statement, values, repeatable=reserves, callers=append.callers)
        except asyncpg.UniqueViolationError:
            return None
        return row["base"] if row else None

    async def _result(self, append: Append, base: int | None) -> list[StoredItem]:
        """The items that were placed behind ``base``, or why they were not."""
        access, conversation_id, batch = append.access, append.conversation_id, append.batch
        if base is not None:
            self._database.stats.appends += 1
            self._database.stats.items += len(batch)
            return await self._appended(access, conversation_id, base + 1, batch)
        if made := await self._parents.prior_result(access, conversation_id, append.reserved):
            return await self._again(access, conversation_id, made, batch)
        raise await self._refusal(access, conversation_id, batch, append.expected)

    async def get(self, access: Access, conversation_id: str, item_id: str) -> StoredItem:
        """One item.

        Raises:
            ConversationNotFound, ItemNotFound
        """
        row = await self._row(access, conversation_id, item_id)
        return StoredItem(row["sequence"], row["body"])

    async def get_batch(self, access: Access, conversation_id: str, item_ids: Sequence[str]) -> list[StoredItem]:
        """The items in the order of ``item_ids``.

        Raises:
            ConversationNotFound, ItemNotFound: The first one that is missing.
            ResponseTooLarge: Together they are too big for one message.
        """
        statement = sql.get_batch(*_reads(access))
        values = {
            **access.values,
            "conversation_id": conversation_id,
            "item_ids": item_ids,
            "page_bytes": self._page_bytes,
        }
        rows = await self._database.fetch(statement, values)
        if not rows:
            raise ConversationNotFound(conversation_id)
        missing = [item_id for item_id, row in zip(item_ids, rows, strict=True) if row["sequence"] is None]
        if missing:
            raise ItemNotFound(conversation_id, missing[0])
        if any(row["body"] is None for row in rows):
            raise ResponseTooLarge(self._page_bytes)
        return [StoredItem(row["sequence"], row["body"]) for row in rows]

    async def page(
        self,
        access: Access,
        conversation_id: str,
        comparisons: tuple[Comparison, ...],
        cursor: int | str | None,
        count: int,
        *,
        descending: bool,
    ) -> tuple[list[StoredItem], bool]:
        """At most ``count`` items behind ``cursor`` (a sequence, or an item id), and whether more follow.

        Raises:
            ConversationNotFound: Also when not readable.
            FieldInvalid: The cursor is an id that never was in this conversation.
        """
        values = {
            **access.values,
            "conversation_id": conversation_id,
            "count": count + 1,
            **{f"value_{number}": comparison.value for number, comparison in enumerate(comparisons)},
        }
        if isinstance(cursor, str):
            values["after"] = cursor
        else:
            values["position"] = cursor if cursor is not None else _LAST if descending else _FIRST
        shape = tuple((comparison.name, comparison.operator) for comparison in comparisons)
        rows = await self._page(access, values, shape, count, by_id=isinstance(cursor, str), descending=descending)
        if not rows:
            raise ConversationNotFound(conversation_id)
        if isinstance(cursor, str) and rows[0]["position"] is None:
            raise FieldInvalid(Violation("after", "no such item in this conversation", "after.exists"))
        page = [StoredItem(row["sequence"], row["body"]) for row in rows[:count] if row["body"] is not None]
        return page, rows[0]["sequence"] is not None and len(page) < len(rows)

    async def _page(
        self,
        access: Access,
        values: dict[str, Any],
        shape: tuple[tuple[str, str], ...],
        count: int,
        *,
        by_id: bool,
        descending: bool,
    ) -> list[asyncpg.Record]:
        """The rows; only when one has more than its share of a message are their sizes added up."""
        reads = _reads(access)
        statement = sql.page(*reads, shape, by_id=by_id, descending=descending, small=True)
        rows = await self._database.read(statement, {**values, "share": self._page_bytes // count})
        if all(row["body"] is not None or row["sequence"] is None for row in rows[:count]):
            return rows
        statement = sql.page(*reads, shape, by_id=by_id, descending=descending, small=False)
        return await self._database.fetch(statement, {**values, "page_bytes": self._page_bytes})

    async def delete(
        self, access: Access, conversation_id: str, item_id: str, reserved: Reservation | None
    ) -> asyncpg.Record:
        """The conversation's row after the item was emptied; its place stays.

        Raises:
            ConversationNotFound, ItemNotFound, ActionDenied, RequestIdReused: Nothing was written.
        """
        act = access.demand("item", "delete")
        statement = sql.delete(*_reads(access), act, reserves=reserved is not None)
        values = {
            **access.values,
            "conversation_id": conversation_id,
            "item_id": item_id,
            "now": datetime.now(UTC),
            **reserved_values(access.principal, reserved),
        }
        row = await execute_write(self._database, statement, values, reserved)
        if row is not None:
            return row
        if await self._parents.prior_result(access, conversation_id, reserved):
            await self._require(access, conversation_id, act, [item_id])
            return await self._parents.get(access, conversation_id)
        row = await self._row(access, conversation_id, item_id, act)
        # An item that may be deleted has come after the statement looked for it.
        raise ItemNotFound(conversation_id, item_id) if row[act.name] else ActionDenied("item", "delete")

    async def _row(self, access: Access, conversation_id: str, item_id: str, *asked: Permission) -> asyncpg.Record:
        """An item's row, with an answer for each permission under its name.

        Raises:
            ConversationNotFound, ItemNotFound
        """
        statement = sql.get(*_reads(access), *asked)
        values = {**access.values, "conversation_id": conversation_id, "item_id": item_id}
        rows = await self._database.read(statement, values)
        if not rows:
            raise ConversationNotFound(conversation_id)
        if rows[0]["sequence"] is None:
            raise ItemNotFound(conversation_id, item_id)
        return rows[0]

    async def _appended(self, access: Access, conversation_id: str, first: int, batch: Batch) -> list[StoredItem]:
        """References were copied inside the database: only then are the items read back."""
        if not batch.refers:
            return [StoredItem(*each) for each in enumerate(batch.bodies, first)]
        made = PriorResult(same=True, first_sequence=first, item_count=len(batch))
        return await self._again(access, conversation_id, made, batch)

    async def _again(self, access: Access, conversation_id: str, made: PriorResult, batch: Batch) -> list[StoredItem]:
        """What an earlier write of ``batch`` made, as it is now: all of it or an ItemNotFound.

        It is the answer to a write, so it takes what the write takes.
        """
        statement = sql.between(access.demand("conversation", "read"), access.demand("item", "create"))
        values = {
            **access.values,
            "conversation_id": conversation_id,
            "first": made.first_sequence,
            "last": made.first_sequence + made.item_count - 1,
        }
        rows = await self._database.fetch(statement, values)
        if not rows:
            await self._require(access, conversation_id, access.demand("item", "create"), batch.all_ids)
        found = {row["sequence"]: row for row in rows}
        for sequence, sent_id in enumerate(batch.all_ids, made.first_sequence):
            row = found.get(sequence)
            if row is None or row["delete_time"] is not None:
                raise ItemNotFound(conversation_id, row["item_id"] if row else sent_id)
        return [StoredItem(row["sequence"], row["body"]) for row in rows]

    async def _require(
        self, access: Access, conversation_id: str, act: Permission, item_ids: Sequence[str]
    ) -> asyncpg.Record:
        """The conversation's last_sequence, when ``act`` reaches items of these ids in it.

        Raises:
            ConversationNotFound, ActionDenied
        """
        statement = sql.refusal(access.demand("conversation", "read"), act)
        values = {**access.values, "conversation_id": conversation_id, "item_ids": item_ids}
        row = await self._database.fetchrow(statement, values)
        if row is None:
            raise ConversationNotFound(conversation_id)
        if not row["allowed"]:
            raise ActionDenied(act.resource, act.action)
        return row

    async def _refusal(self, access: Access, conversation_id: str, batch: Batch, expected: int | None) -> Exception:
        """Why an append placed nothing, asked after the fact: the write itself carried every condition."""
        create = access.demand("item", "create")
        row = await self._require(access, conversation_id, create, batch.all_ids)
        if expected is not None and row["last_sequence"] != expected:
            return SequenceMismatch(row["last_sequence"])
        failure = await explain_batch(self._database, access, conversation_id, batch)
        if isinstance(failure, Conflict) and expected is not None:
            return SequenceMismatch(row["last_sequence"])
        return failure


def _reads(access: Access) -> tuple[Permission, Permission]:
    """What every read of items carries: who may not read the conversation finds nothing in it."""
    return access.demand("conversation", "read"), access.demand("item", "read")
