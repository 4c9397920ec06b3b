"""Writes whole conversations as they were elsewhere; nobody sees one before its last item is there.

One stream at a time writes a conversation: each statement names it, and another stream that brings the same head takes
the import over, and goes on behind the last block that was stored.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from server.errors import Conflict, ConversationExists
from server.store.array_parameters import array_parameters
from server.store.change_hub import ChangeHub
from server.store.connection.database import Database
from server.store.expiry import NEVER, Expiry
from server.store.sql import imports as sql
from server.store.sql.imports import DISCARDED_ROWS, ITEM_ROWS
from server.store.sql.statement import Statement


@dataclass(frozen=True, slots=True)
class ImportKey:
    """Whose import it is.

    Attributes:
        stream: A UUID of the call.
    """

    tenant: str
    conversation_id: str
    stream: str

    def values(self) -> dict[str, Any]:
        """The parameters of every statement."""
        return {"tenant": self.tenant, "conversation_id": self.conversation_id, "stream": self.stream}


@dataclass(frozen=True, slots=True)
class Progress:
    """What of an import is there.

    Attributes:
        stored_sequence: Of the last item; 0 for none.
        item_count: How many.
        digest: Of head and items so far.
    """

    stored_sequence: int
    item_count: int
    digest: bytes


@dataclass(frozen=True)
class ImportedHead:
    """What a conversation will be.

    Attributes:
        attributes: Each ``name=value``; sorted, each once.
        forked_from: The id of the source of a fork; None for others.
        forked_sequence: Of the last place that was copied.
    """

    owner: str
    attributes: Sequence[str]
    metadata: dict[str, str]
    last_sequence: int
    revision: int
    create_time: datetime
    update_time: datetime
    expiry: Expiry = NEVER
    forked_from: str | None = None
    forked_sequence: int | None = None

    def values(self) -> dict[str, Any]:
        """The parameters of the statement that lets everybody see it."""
        metadata = json.dumps(self.metadata, ensure_ascii=False)
        return {**vars(self), "metadata": metadata, **self.expiry.values()}


# sequence, author, id, type, role, status, create_time and body of an item
ImportedItem = tuple[int, str, str, str, str, str, datetime, bytes]


class Imports:
    """Every method raises StoreUnavailable, DeadlineExceeded and Conflict as `Database.fetch` does.

    Conflict is also raised when another stream has taken the import.

    Args:
        database: Runs the statements. A repeated one does no harm: it does what it did.
        hub: Is told of every conversation.
    """

    def __init__(self, database: Database, hub: ChangeHub) -> None:
        self._database = database
        self._hub = hub

    async def begin(self, key: ImportKey, head: bytes, digest: bytes) -> Progress:
        """Begins an import, or goes on with that of the same head.

        Args:
            key: Of the import.
            head: Of `kept_head`.
            digest: Of the head.

        Raises:
            ConversationExists: A conversation has the id.
        """
        values = {**key.values(), "head": head, "digest": digest}
        if await self._database.fetchrow(sql.BEGIN, values):
            return Progress(0, 0, digest)
        if (row := await self._database.fetchrow(sql.TAKE, values)) is not None:
            return Progress(row["stored_sequence"], row["item_count"], row["digest"])
        if not await self.abandon(key):
            raise ConversationExists(key.conversation_id)
        await self._discard(key)
        await self._require(sql.RESTART, values)
        return Progress(0, 0, digest)

    async def abandon(self, key: ImportKey) -> bool:
        """Lets nobody go on with an import; the next one of this id begins anew. Returns whether there is one."""
        return await self._database.fetchrow(sql.ABANDON, key.values()) is not None

    async def store(self, key: ImportKey, owner: str, items: list[ImportedItem], progress: Progress) -> None:
        """Stores a block of items.

        Args:
            key: Of the import.
            owner: Of the conversation.
            items: Behind those that are there.
            progress: With them.

        Raises:
            KeyTaken: An item has an id that the conversation has already.
        """
        rows = array_parameters("items", ITEM_ROWS, items)
        values = {**key.values(), **rows, "owner": owner, "digest": progress.digest}
        values |= {"stored_sequence": progress.stored_sequence, "item_count": progress.item_count}
        if await self._database.fetchrow(sql.STORE, values) is None:  # or it was stored, and the answer was lost
            await self._require(sql.VERIFY, values)

    async def finish(self, key: ImportKey, head: ImportedHead) -> None:
        """Lets everybody see a conversation."""
        await self._require(sql.FINISH, {**key.values(), **head.values()})
        self._hub.note_change(key.conversation_id)

    async def _discard(self, key: ImportKey) -> None:
        """Removes the items of an abandoned import, some at a time."""
        count = DISCARDED_ROWS
        while count == DISCARDED_ROWS:
            row = await self._database.fetchrow(sql.DISCARD, key.values())
            if row is None or not row["is_own"]:
                raise Conflict
            count = row["count"]

    async def _require(self, statement: Statement, values: dict[str, Any]) -> None:
        """Runs a statement that has a row unless another stream has taken the import."""
        if await self._database.fetchrow(statement, values) is None:
            raise Conflict
