"""Deletes of all conversations that match a filter (docs/adr/0035)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from server.authorization.access import Access
from server.authorization.index_ranges import IndexRanges, index_ranges
from server.store.comparison import EARLIEST, Comparison, conversation_filter, filters_owner, filters_source
from server.store.connection.database import Database
from server.store.conversations import ConversationStore
from server.store.range_lists import read_matching
from server.store.side_by_side import SideBySide
from server.store.sql import bulk_deletes as sql

MAX_CONVERSATIONS = 1_000  # of one call


@dataclass(frozen=True)
class Deleted:
    """What was deleted, or would be.

    Attributes:
        count: How many conversations.
        ids: Of those that were deleted.
        has_more: Whether more may match.
    """

    count: int
    ids: Sequence[str]
    has_more: bool


class BulkDeleteStore:
    """Deletes conversations by a filter; raises StoreUnavailable, DeadlineExceeded and Conflict as `Database.fetch`.

    Args:
        database: Runs the statements.
        conversations: That are deleted.
    """

    def __init__(self, database: Database, conversations: ConversationStore) -> None:
        self._database = database
        self._conversations = conversations
        self._apart = SideBySide(database.size)

    async def count(self, access: Access, comparisons: Sequence[Comparison]) -> Deleted:
        """How many conversations `delete` would delete.

        Raises:
            ActionDenied: The policy lets the caller read or delete none.
            Overloaded: Too many scans run already.
        """
        matching, ranges, values = _matching(access, comparisons)
        values["count"] = MAX_CONVERSATIONS + 1
        async with self._database.scans.place(access.principal.key):
            if self._database.layout.spans_conversations:
                found = (await self._database.fetch(sql.count(matching), values))[0]["found"]
            else:
                found = len(await self._find(matching, ranges, values))
        return Deleted(min(found, MAX_CONVERSATIONS), (), has_more=found > MAX_CONVERSATIONS)

    async def delete(self, access: Access, comparisons: Sequence[Comparison]) -> Deleted:
        """Deletes the oldest conversations that match, `MAX_CONVERSATIONS` at most.

        Those that another transaction has locked are left out. If that is all there are, it waits for the first, so
        that a caller who repeats the call comes to an end.

        Raises:
            OutcomeUnknown: It is not known which have been deleted.
            ActionDenied: The policy lets the caller read or delete none.
            Overloaded: Too many scans run already.
        """
        async with self._database.scans.place(access.principal.key):
            done = await self._delete(access, comparisons, MAX_CONVERSATIONS)
            if not done.ids and done.has_more:
                done = await self._delete(access, comparisons, 1, skip_locked=False)
        for conversation_id in done.ids:
            self._conversations.hub.note_change(conversation_id)
        return done

    async def _delete(
        self, access: Access, comparisons: Sequence[Comparison], most: int, *, skip_locked: bool = True
    ) -> Deleted:
        matching, ranges, values = _matching(access, comparisons)
        values |= {"count": most + 1, "now": datetime.now(UTC)}
        if not self._database.layout.spans_conversations:
            found = await self._find(matching, ranges, values)
            ids = await self._delete_apart(matching, found[:most], values, skip_locked=skip_locked)
            return Deleted(len(ids), ids, has_more=len(ids) < len(found))
        # Not repeated when the connection breaks: the count of the second time would not be that of the call.
        rows = await self._database.fetch(sql.delete(matching, skip_locked=skip_locked), values, repeatable=False)
        ids = [row["id"] for row in rows if row["is_deleted"]]
        return Deleted(len(ids), ids, has_more=len(ids) < len(rows))

    async def _find(self, matching: sql.Matching, ranges: IndexRanges | None, values: dict[str, Any]) -> list[str]:
        """The ids of the first ``count`` that match, in a database that is distributed."""
        if ranges is None:
            rows = await self._database.fetch(sql.find(matching), values)
        else:
            rows = await read_matching(self._conversations.worker_lists, matching, ranges, values)
        return [row["id"] for row in rows]

    async def _delete_apart(
        self, matching: sql.Matching, ids: Sequence[str], values: dict[str, Any], *, skip_locked: bool
    ) -> list[str]:
        """Deletes each in a statement of its own; returns those that were, in the same order."""
        deleted: set[str] = set()
        statement = sql.delete_one(matching, skip_locked=skip_locked)

        async def delete(conversation_id: str) -> None:
            if await self._database.fetchrow(statement, {**values, "conversation_id": conversation_id}):
                deleted.add(conversation_id)

        await self._apart.run(ids, delete)
        return [conversation_id for conversation_id in ids if conversation_id in deleted]


def _matching(
    access: Access, comparisons: Sequence[Comparison]
) -> tuple[sql.Matching, IndexRanges | None, dict[str, Any]]:
    """Which conversations match, the ranges they lie in, and the parameters but ``count`` and ``now``."""
    read, delete = access.demand("conversation", "read"), access.demand("conversation", "delete")
    owner, source = filters_owner(comparisons), filters_source(comparisons)
    ranges = None if source else _narrowest(access.index_ranges, index_ranges(delete.plan))
    values = {
        **access.values,
        "after_time": EARLIEST,
        "after_id": "",
        **(ranges.values() if ranges else {}),
        **conversation_filter(comparisons),
    }
    return sql.Matching(read, delete, owner, source, covered=ranges is not None), ranges, values


def _narrowest(*ranges: IndexRanges | None) -> IndexRanges | None:
    """The smallest of some ranges, each of which has all that match; None if they are all unbounded."""
    return min((each for each in ranges if each), key=lambda each: each.size, default=None)
