"""Reads whole conversations, each as it was at one moment, without a transaction that lasts.

Items never change and their places are never used again. So the first `last_sequence` places of a conversation are the
same in every later statement, but for items that are deleted meanwhile; whether there were any is read at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import asyncpg

from server.authorization.access import Access
from server.authorization.permission import Permission
from server.errors import ConversationNotFound
from server.store.checksum import BLOCK_BYTES, BLOCK_ITEMS
from server.store.connection.database import Database
from server.store.connection.execution import Rows
from server.store.items import StoredItem
from server.store.response_budget import ResponseBudget
from server.store.sql import exports as sql
from server.store.sql.statement import Statement

SMALL_BYTES = BLOCK_BYTES // BLOCK_ITEMS  # of an item; so many fit into a block
_ANY_SIZE = 2**31 - 1
_VIEW_BYTES = 16


@dataclass(frozen=True)
class Reader:
    """Who reads: the two permissions, and the values of their parameters."""

    read: Permission
    item_read: Permission
    values: dict[str, Any]

    @classmethod
    def of(cls, access: Access) -> "Reader":
        """Returns the reader that a caller is.

        Raises:
            ActionDenied: The caller may read no conversation, or no item.
        """
        read, item_read = access.demand("conversation", "read"), access.demand("item", "read")
        return cls(read, item_read, access.values)

    def view(self, row: asyncpg.Record) -> bytes:
        """Returns a digest of what decides which items of a conversation are read: the policy, and its row."""
        own = [(each.shape, sorted(each.values.items())) for each in (self.read, self.item_read)]
        text = repr((own, row["owner"], row["attributes"]))
        return blake2b(text.encode(), digest_size=_VIEW_BYTES).digest()


@dataclass(frozen=True)
class Head:
    """The beginning of a conversation.

    Attributes:
        row: With the columns of a conversation, and its version.
        items: All of its items, if there are few and small ones; else None.
        view: Of `Reader.view`.
    """

    row: asyncpg.Record
    items: Sequence[StoredItem] | None
    view: bytes


class Exports:
    """Reads conversations for callers who take them whole.

    Every method raises ConversationNotFound when the conversation is not there, not any more, or not readable; and
    StoreUnavailable, DeadlineExceeded and Conflict as `Database.fetch` does.

    Args:
        database: Runs the statements.
        responses: Has to have room for an item of more than `BLOCK_BYTES`.
    """

    def __init__(self, database: Database, responses: ResponseBudget) -> None:
        self._database = database
        self._responses = responses

    async def head(self, reader: Reader, conversation_id: str) -> Head:
        """The beginning of a conversation."""
        share = BLOCK_BYTES // sql.FEW_PLACES
        rows = await self._rows(sql.head(reader.read, reader.item_read), reader, conversation_id, share=share)
        first = rows[0]
        return Head(first, _few_items(rows), reader.view(first))

    async def block(
        self, reader: Reader, conversation_id: str, first: int, last: int, *, small: bool
    ) -> list[StoredItem]:
        """The next block of items, in the sense of `Checksum`; empty if there are none.

        Args:
            reader: Who reads.
            conversation_id: Of the conversation.
            first: The sequence that the items follow.
            last: The last sequence that they may have.
            small: Whether to try first how it goes if all items are small, which costs half.
        """
        values = {"first": first, "last": last, "count": BLOCK_ITEMS}
        if small:
            statement = sql.block(reader.read, reader.item_read, small=True)
            rows = await self._rows(statement, reader, conversation_id, **values, share=SMALL_BYTES)
            if all(row["body"] is not None or row["sequence"] is None for row in rows):
                return _stored(rows)
            del rows
        statement = sql.block(reader.read, reader.item_read, small=False)
        values |= {"page_bytes": BLOCK_BYTES, "single_bytes": BLOCK_BYTES}
        rows = await self._rows(statement, reader, conversation_id, **values)
        if rows[0]["sequence"] is not None and rows[0]["body"] is None:
            await self._responses.reserve(rows[0]["size"], patient=True)
            values |= {"count": 1, "single_bytes": _ANY_SIZE}
            rows = await self._rows(statement, reader, conversation_id, **values)
        return _stored(rows)

    async def is_intact(self, reader: Reader, conversation_id: str, version: int, last: int, view: bytes) -> bool:
        """Whether items that were read up to ``last`` are those that there were at ``version``.

        Args:
            reader: Who reads.
            conversation_id: Of the conversation.
            version: Of the conversation, when the reading began.
            last: Its last sequence then.
            view: Of the `Head` then.
        """
        rows = await self._rows(sql.state(reader.read), reader, conversation_id, version=version, last=last)
        return not rows[0]["lost"] and view == reader.view(rows[0])

    async def _rows(self, statement: Statement, reader: Reader, conversation_id: str, **values: int) -> Rows:
        """The rows of a statement that has one at least if the conversation is found."""
        rows = await self._database.fetch(statement, {**reader.values, "conversation_id": conversation_id, **values})
        if not rows:
            raise ConversationNotFound(conversation_id)
        return rows


def is_short(last_sequence: int) -> bool:
    """Returns whether a conversation is read in one statement, if its items are small."""
    return last_sequence <= sql.FEW_PLACES


def _few_items(rows: Rows) -> list[StoredItem] | None:
    if not is_short(rows[0]["last_sequence"]):
        return None
    if any(row["body"] is None and row["sequence"] is not None for row in rows):
        return None
    return _stored(rows)


def _stored(rows: Rows) -> list[StoredItem]:
    return [StoredItem(row["sequence"], row["body"]) for row in rows if row["body"] is not None]
