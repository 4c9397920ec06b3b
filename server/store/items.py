"""Append, read, list and delete items."""

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
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
from server.store.append_batching import AppendBatcher
from server.store.appends import Append
from server.store.batch import Batch
from server.store.comparison import Comparison, item_filter
from server.store.conflicts import explain_batch
from server.store.connection.database import Database
from server.store.connection.execution import Rows
from server.store.connection.failures import KeyTaken
from server.store.conversations import ConversationStore
from server.store.idempotency import PriorResult, Reservation, execute_write, reservation_values
from server.store.ids import tag_of
from server.store.references import read_references
from server.store.response_budget import SHARED_BYTES, ResponseBudget
from server.store.sql import items as sql
from server.store.sql.statement import Statement

_BEFORE_ALL, _AFTER_ALL = 0, 2**63 - 1  # sequences that no item has
_ANY_SIZE = 2**31 - 1  # bytes, more than an item has
_COUNTED_BYTES = 16 * 1024  # of a write whose response has its items; smaller ones are not counted


class StoredItem(NamedTuple):
    """An item as it is stored.

    Attributes:
        body: A serialized ``conversations.v1.Item`` without its sequence.
    """

    sequence: int
    body: bytes


class AppendedIds(NamedTuple):
    """The items of an append, without what they say."""

    first_sequence: int
    item_ids: Sequence[str]


class ItemStore:
    """The items of conversations that callers may see.

    Each method runs one statement, which carries every permission and precondition. Only when a
    write changed nothing, or was repeated, does a second one find out why. Every method raises
    StoreUnavailable, DeadlineExceeded and Conflict as `Database.fetch` does.

    Args:
        database: Runs the statements.
        conversations: The conversations of the items.
        page_bytes: The most bytes that the items of one response may have together; a single item always fits.
        responses: Has to have room for what is read, if that may be large. Without room, reads raise Overloaded.
    """

    def __init__(
        self, database: Database, conversations: ConversationStore, page_bytes: int, responses: ResponseBudget
    ) -> None:
        self._database = database
        self._conversations = conversations
        self._page_bytes = page_bytes
        self._responses = responses
        self._batcher = AppendBatcher(database, conversations.locks, self._run_append, lambda: conversations.queues)

    async def append(self, append: Append) -> list[StoredItem]:
        """Stores items after the newest one of a conversation, all or none; returns them.

        With a request id, a repeated call returns the items of the first one as they are now.

        Raises:
            ConversationNotFound: It does not exist, was deleted, or may not be read.
            ActionDenied: The caller may not create these items.
            ItemNotFound: A reference cannot be read, or an item of the earlier call was deleted.
            ItemExists: An id is taken.
            LimitExceeded: The items, those copied included, have more than ``page_bytes`` together.
            SequenceMismatch: The conversation has another last_sequence.
            RequestIdReused: The request id belongs to another request.
            ResponseTooLarge: The items of the earlier call have more than ``page_bytes`` together.
        """
        if append.size > _COUNTED_BYTES:
            await self._responses.reserve(append.size)  # now, for afterwards it could not be refused any more
        base = await self._run(append)
        result = await self._settle(append, base)
        batch = append.batch
        if base is not None and not batch.has_references:
            return [StoredItem(*each) for each in enumerate(batch.bodies, result.first_sequence)]
        rows = await self._read_back(append, result, bodies=True)
        if any(row["body"] is None for row in rows):
            raise ResponseTooLarge(self._page_bytes)
        return [_stored(row) for row in rows]

    async def append_ids(self, append: Append) -> AppendedIds:
        """Stores items as `append` does; returns their ids, and reads no item back."""
        return await self._ids(append, await self._run(append))

    def enqueue(self, append: Append) -> None:
        """Stores items as `append` does, in the order of these calls for each conversation.

        Args:
            append: One that `Append.can_batch`; `result` waits for it.
        """
        append.hub = self._conversations.hub
        self._batcher.enqueue(append)

    async def result(self, append: Append) -> AppendedIds:
        """The ids of the items of an enqueued append; raises as `append` does.

        A caller that is cancelled while it waits does not cancel the append.
        """
        return await self._ids(append, await asyncio.shield(append.answer))

    async def _run(self, append: Append) -> int | None:
        append.hub = self._conversations.hub
        return await self._batcher.run(append)

    async def _ids(self, append: Append, base: int | None) -> AppendedIds:
        result = await self._settle(append, base)
        if base is not None:
            return AppendedIds(result.first_sequence, append.batch.all_ids)
        rows = await self._read_back(append, result, bodies=False)
        return AppendedIds(result.first_sequence, [row["item_id"] for row in rows])

    async def _run_append(self, append: Append) -> int | None:
        """Runs an append in a statement of its own; the last sequence before its items, None when not stored."""
        access, reservation = append.access, append.reservation
        batch = await self._with_references_read(append)
        if batch is None:
            return None
        references = access.may("item", "read") if batch.has_references else None
        expects, reserves, copied = append.expected is not None, reservation is not None, bool(batch.create_times)
        queues = self._conversations.queues
        statement = sql.append(
            *append.permissions, references, expects=expects, queues=queues, reserves=reserves, copied=copied
        )
        values = {
            **access.values,
            "conversation_id": append.conversation_id,
            "size": len(batch),
            "expected": append.expected,
            "max_bytes": self._page_bytes,
            **batch.values(append.now, access.principal.id),
            **reservation_values(access.principal, reservation),
        }
        try:
            row = await self._database.fetchrow(statement, values, repeatable=reserves, callers=append.callers)
        except KeyTaken:
            return None
        if row is None:
            return None
        append.mark_stored()
        return int(row["base"])

    async def _with_references_read(self, append: Append) -> Batch | None:
        """The items of an append, without references where no statement could resolve them; None if one cannot be."""
        batch = append.batch
        if not batch.has_references or self._database.layout.spans_conversations:
            return batch
        read = await read_references(self._database, append.access, batch, append.now, self._page_bytes)
        return read.batch

    async def _settle(self, append: Append, base: int | None) -> PriorResult:
        """What an append stored, or an earlier call with its request id; raises why nothing was stored.

        Args:
            append: One that has run.
            base: The last sequence before its items; None when they were not stored.
        """
        if base is not None:
            self._database.stats.appends += 1
            self._database.stats.items += append.item_count
            return PriorResult(same_request=True, first_sequence=base + 1, item_count=append.item_count)
        access, conversation_id = append.access, append.conversation_id
        if prior := await self._conversations.prior_result(access, conversation_id, append.reservation):
            return prior
        raise await self._explain(access, conversation_id, append.batch, append.expected)

    async def get(self, access: Access, conversation_id: str, item_id: str) -> StoredItem:
        """One item.

        Raises:
            ConversationNotFound: It does not exist, was deleted, or may not be read.
            ItemNotFound: Likewise of the item.
        """
        row = await self._get_row(access, conversation_id, item_id)
        if row["body"] is None:
            await self._responses.reserve(row["size"])
            row = await self._get_row(access, conversation_id, item_id, share=_ANY_SIZE)
        return StoredItem(row["sequence"], row["body"])

    async def get_batch(self, access: Access, conversation_id: str, item_ids: Sequence[str]) -> list[StoredItem]:
        """The items in the order of ``item_ids``.

        Raises:
            ConversationNotFound: It does not exist, was deleted, or may not be read.
            ItemNotFound: Likewise of an item; the first one.
            ResponseTooLarge: The items have more than ``page_bytes`` together.
        """
        values = {**access.values, "conversation_id": conversation_id, "item_ids": item_ids}
        rows = await self._fitting(sql.get_batch(*_read_permissions(access)), values)
        if not rows:
            raise ConversationNotFound(conversation_id)
        missing = [item_id for item_id, row in zip(item_ids, rows, strict=True) if row["sequence"] is None]
        if missing:
            raise ItemNotFound(conversation_id, missing[0])
        if any(row["body"] is None for row in rows):
            raise ResponseTooLarge(self._page_bytes)
        return [_stored(row) for row in rows]

    async def locate(self, access: Access, item_ids: Sequence[str]) -> dict[str, str]:
        """The conversation of each item that is named by its id alone, as far as the caller may read it.

        The id has to be one that the service made: it ends as that of the conversation does.
        """
        found = [item_id for item_id in item_ids if tag_of(item_id)]
        values = {**access.values, "item_ids": found, "tags": [tag_of(item_id) for item_id in found]}
        rows = await self._database.read(sql.locate(*_read_permissions(access)), values) if found else ()
        return {row["item_id"]: row["conversation_id"] for row in reversed(rows)}

    async def page(
        self,
        access: Access,
        conversation_id: str,
        comparisons: tuple[Comparison, ...],
        cursor: int | str | None,
        count: int,
        *,
        descending: bool,
        live_cursor: bool = False,
    ) -> tuple[list[StoredItem], bool]:
        """A page of items by sequence, and whether more follow; it ends early where ``page_bytes`` are full.

        Args:
            access: Of the caller.
            conversation_id: Of the conversation.
            comparisons: Of the filter; all must hold.
            cursor: The sequence or the item id that the page follows; None for the first page.
            count: The most items.
            descending: Whether newest come first.
            live_cursor: Whether a cursor that is an item id must be that of an item that was not deleted.

        Raises:
            ConversationNotFound: It does not exist, was deleted, or may not be read.
            FieldInvalid: The cursor is an item id that the conversation never had, or has not any more.
            Overloaded: There is a filter, and too many scans run already.
        """
        values = {
            **access.values,
            "conversation_id": conversation_id,
            "count": count + 1,
            **(item_filter(comparisons) if comparisons else {}),
        }
        if isinstance(cursor, str):
            values["after"] = cursor
        else:
            values["position"] = cursor if cursor is not None else _AFTER_ALL if descending else _BEFORE_ALL
        kind = {
            "filtered": bool(comparisons),
            "by_id": isinstance(cursor, str),
            "live": live_cursor and isinstance(cursor, str),
            "descending": descending,
        }
        async with self._database.scans.place(access.principal.key) if comparisons else nullcontext():
            rows = await self._page(access, values, kind, count)
        if not rows:
            raise ConversationNotFound(conversation_id)
        if isinstance(cursor, str) and rows[0]["position"] is None:
            raise FieldInvalid(Violation("after", "no such item in this conversation", "after.exists"))
        page = [_stored(row) for row in rows[:count] if row["body"] is not None]
        return page, rows[0]["sequence"] is not None and len(page) < len(rows)

    async def _page(
        self, access: Access, values: dict[str, Any], kind: dict[str, bool], count: int
    ) -> list[asyncpg.Record]:
        """The rows of a page; sizes are added up only when a body has more than its share of ``page_bytes``."""
        permissions = _read_permissions(access)
        statement = sql.page(*permissions, **kind, small=True)
        share = min(self._page_bytes, SHARED_BYTES) // count
        rows = await self._database.read(statement, {**values, "share": share})
        left_out = next((row for row in rows[:count] if row["body"] is None), None)
        if left_out is None or left_out["sequence"] is None:  # or the page is empty
            return rows
        del rows, left_out  # many calls may wait for room at once
        return await self._fitting(sql.page(*permissions, **kind, small=False), values)

    async def _fitting(self, statement: Statement, values: dict[str, Any], *, patient: bool = False) -> Rows:
        """The rows of a statement that leaves out bodies beyond ``page_bytes``; many bytes only when there is room.

        Args:
            statement: With the columns sequence, size and body.
            values: Of its other parameters.
            patient: As `ResponseBudget.reserve`.
        """
        few = min(self._page_bytes, SHARED_BYTES)
        rows = await self._database.fetch(statement, {**values, "page_bytes": few, "single_bytes": few})
        if all(row["body"] is not None or row["sequence"] is None for row in rows):
            return rows
        size = sum(row["size"] or 0 for row in rows)
        del rows  # many calls may wait for room at once
        await self._responses.reserve(min(size, self._page_bytes), patient=patient)
        many = {"page_bytes": self._page_bytes, "single_bytes": _ANY_SIZE}
        return await self._database.fetch(statement, {**values, **many})

    async def delete(
        self, access: Access, conversation_id: str, item_id: str, reservation: Reservation | None
    ) -> asyncpg.Record:
        """Turns an item into a tombstone, which keeps its sequence; returns the row of the conversation.

        Raises:
            ConversationNotFound: It does not exist, was deleted, or may not be read.
            ItemNotFound: Likewise of the item.
            ActionDenied: The caller may not delete it.
            RequestIdReused: The request id belongs to another request.
        """
        delete = access.demand("item", "delete")
        statement = sql.delete(*_read_permissions(access), delete, reserves=reservation is not None)
        values = {
            **access.values,
            "conversation_id": conversation_id,
            "item_id": item_id,
            "now": datetime.now(UTC),
            **reservation_values(access.principal, reservation),
        }
        async with self._conversations.locks.hold(conversation_id):
            row = await execute_write(self._database, statement, values, reservation)
        if row is not None:
            self._conversations.hub.note_change(conversation_id)
            return row
        if await self._conversations.prior_result(access, conversation_id, reservation):
            await self._require(access, conversation_id, delete, [item_id])
            return await self._conversations.get(access, conversation_id)
        row = await self._get_row(access, conversation_id, item_id, delete, share=0)
        # When it may be deleted, it was created after the statement had looked for it.
        raise ItemNotFound(conversation_id, item_id) if row[delete.name] else ActionDenied("item", "delete")

    async def _get_row(
        self, access: Access, conversation_id: str, item_id: str, *others: Permission, share: int = SHARED_BYTES
    ) -> asyncpg.Record:
        """An item's row, with a column for each of ``others``: whether it covers the item.

        A body of more than ``share`` bytes is None.

        Raises:
            ConversationNotFound, ItemNotFound: As `get`.
        """
        statement = sql.get(*_read_permissions(access), *others)
        values = {**access.values, "conversation_id": conversation_id, "item_id": item_id, "share": share}
        rows = await self._database.read(statement, values)
        if not rows:
            raise ConversationNotFound(conversation_id)
        if rows[0]["sequence"] is None:
            raise ItemNotFound(conversation_id, item_id)
        return rows[0]

    async def _read_back(self, append: Append, result: PriorResult, *, bodies: bool) -> list[asyncpg.Record]:
        """The rows of the items that a write stored, as they are now; needs the permissions of the write.

        Raises:
            ItemNotFound: One was deleted.
        """
        access, conversation_id, item_ids = append.access, append.conversation_id, append.batch.all_ids
        create = access.demand("item", "create")
        statement = sql.between(access.demand("conversation", "read"), create, bodies=bodies)
        values = {
            **access.values,
            "conversation_id": conversation_id,
            "first": result.first_sequence,
            "last": result.first_sequence + result.item_count - 1,
        }
        if bodies:
            rows = await self._fitting(statement, values, patient=True)  # the write is committed
        else:
            rows = await self._database.fetch(statement, values)
        if not rows:
            await self._require(access, conversation_id, create, item_ids)
        found = {row["sequence"]: row for row in rows}
        for sequence, sent_id in enumerate(item_ids, result.first_sequence):
            row = found.get(sequence)
            if row is None or row["delete_time"] is not None:
                raise ItemNotFound(conversation_id, row["item_id"] if row else sent_id)
        return rows

    async def _require(
        self, access: Access, conversation_id: str, permission: Permission, item_ids: Sequence[str]
    ) -> asyncpg.Record:
        """A row with the last_sequence of a conversation.

        Raises:
            ConversationNotFound: It does not exist, was deleted, or may not be read.
            ActionDenied: ``permission`` does not cover items with these ids in it.
        """
        statement = sql.refusal(access.demand("conversation", "read"), permission)
        values = {**access.values, "conversation_id": conversation_id, "item_ids": item_ids}
        row = await self._database.fetchrow(statement, values)
        if row is None:
            raise ConversationNotFound(conversation_id)
        if not row["allowed"]:
            raise ActionDenied(permission.resource, permission.action)
        return row

    async def _explain(self, access: Access, conversation_id: str, batch: Batch, expected: int | None) -> Exception:
        """The error of an append that stored nothing."""
        create = access.demand("item", "create")
        row = await self._require(access, conversation_id, create, batch.all_ids)
        if expected is not None and row["last_sequence"] != expected:
            return SequenceMismatch(row["last_sequence"])
        failure = await explain_batch(self._database, access, conversation_id, batch, self._page_bytes)
        if isinstance(failure, Conflict) and expected is not None:
            return SequenceMismatch(row["last_sequence"])
        return failure


def _read_permissions(access: Access) -> tuple[Permission, Permission]:
    """The permissions of every read of items: to read the conversation, and its items."""
    return access.demand("conversation", "read"), access.demand("item", "read")


def _stored(row: asyncpg.Record) -> StoredItem:
    """The item of a row, in half the time of the constructor of a NamedTuple."""
    return tuple.__new__(StoredItem, (row["sequence"], row["body"]))
