"""Rewinds: all items behind a place are deleted at once (docs/adr/0035)."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg

from server.authorization.access import Access
from server.authorization.permission import Permission
from server.errors import ActionDenied, Conflict, ConversationNotFound, LimitExceeded, SequenceMismatch, Violation
from server.store.connection.database import Database
from server.store.conversations import ConversationStore
from server.store.idempotency import Reservation, execute_write, reservation_values
from server.store.sql import rewinds as sql

_TRIES = 10  # while other processes change the conversation


@dataclass(frozen=True)
class Rewind:
    """What one call deletes.

    Attributes:
        access: Of the caller.
        conversation_id: Of the conversation.
        sequence: Of the last item to keep.
        expected: The last_sequence the conversation must have; None for any.
        reservation: Of the request id.

    Raises:
        ActionDenied: The policy lets the caller read or delete no item at all.
    """

    access: Access
    conversation_id: str
    sequence: int
    expected: int | None
    reservation: Reservation | None

    @property
    def permissions(self) -> tuple[Permission, Permission, Permission]:
        """To read the conversation, to read its items, and to delete them."""
        demand = self.access.demand
        return demand("conversation", "read"), demand("item", "read"), demand("item", "delete")

    def values(self) -> dict[str, Any]:
        """The parameters of every statement on the rewind."""
        return {
            **self.access.values,
            **reservation_values(self.access.principal, self.reservation),
            "conversation_id": self.conversation_id,
            "sequence": self.sequence,
            "expected": self.expected,
            "now": datetime.now(UTC),
        }


class RewindStore:
    """Rewinds conversations; raises StoreUnavailable, DeadlineExceeded and Conflict as `Database.fetch` does.

    Args:
        database: Runs the statements.
        conversations: That are rewound.
    """

    def __init__(self, database: Database, conversations: ConversationStore) -> None:
        self._database = database
        self._conversations = conversations

    async def rewind(self, rewind: Rewind) -> asyncpg.Record:
        """Deletes the items, all or none; returns the row of the conversation.

        With a request id, a repeated call deletes nothing more.

        Raises:
            ConversationNotFound: It does not exist, was deleted, or may not be read.
            ActionDenied: The caller may not read or not delete one of the items.
            SequenceMismatch: The conversation has another last_sequence.
            LimitExceeded: There are more items than one call deletes.
            RequestIdReused: The request id belongs to another request.
            Conflict: Other processes changed the conversation at every try.
        """
        access, conversation_id = rewind.access, rewind.conversation_id
        for _ in range(_TRIES):
            if (row := await self._write(rewind)) is not None:
                self._conversations.hub.note_change(conversation_id)
                return row
            if await self._conversations.prior_result(access, conversation_id, rewind.reservation):
                await self._authorize(rewind, deleted=True)
                return await self._conversations.get(access, conversation_id)
            _require_possible(rewind, await self._authorize(rewind, deleted=False))
        raise Conflict

    async def _write(self, rewind: Rewind) -> asyncpg.Record | None:
        reserves, expects = rewind.reservation is not None, rewind.expected is not None
        statement = sql.rewind(*rewind.permissions, expects=expects, reserves=reserves)
        async with self._conversations.locks.hold(rewind.conversation_id):
            return await execute_write(self._database, statement, rewind.values(), rewind.reservation)

    async def _authorize(self, rewind: Rewind, *, deleted: bool) -> asyncpg.Record:
        """The row of `sql.refusal`.

        Raises:
            ConversationNotFound: The conversation is not found.
            ActionDenied: One of the permissions does not cover all the items.
        """
        row = await self._database.fetchrow(sql.refusal(*rewind.permissions, deleted=deleted), rewind.values())
        if row is None:
            raise ConversationNotFound(rewind.conversation_id)
        for column, action in (("is_deleted", "delete"), ("is_read", "read")):
            if not row[column]:
                raise ActionDenied("item", action)
        return row


def _require_possible(rewind: Rewind, row: asyncpg.Record) -> None:
    """Returns if nothing but a change of the conversation meanwhile can have stopped a rewind.

    Raises:
        SequenceMismatch: The conversation has another last_sequence.
        LimitExceeded: There are more items than one call deletes.
    """
    if rewind.expected is not None and rewind.expected != row["last_sequence"]:
        raise SequenceMismatch(row["last_sequence"])
    if row["least"] is not None:
        rule = f"would delete more than {sql.MAX_ITEMS} items; {row['least']} would not"
        violation = Violation("sequence", rule, "sequence.max_items")
        raise LimitExceeded(violation, sql.MAX_ITEMS, sequence=str(row["least"]))
