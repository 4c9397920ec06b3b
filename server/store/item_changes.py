"""What has happened to the items of a conversation behind a position."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import asyncpg

from server.authorization.access import Access
from server.errors import ConversationNotFound, ResumeTokenExpired
from server.store.connection.database import Database
from server.store.connection.execution import Rows
from server.store.sql import watches as sql
from server.store.sql.statement import Statement
from server.store.watch_position import LAST_PLACE, UNKNOWN, Position, anchor_of

PAGE_BYTES = 64 * 1024  # of the items of one read, unless the first is larger
LARGE_BYTES = 256 * 1024  # of an item that is told by its place only


@dataclass(frozen=True)
class Changes:
    """What one read found.

    Attributes:
        items: Rows with the columns sequence, item_id, deleted, size and body, in order; a body is None if the item
            is deleted or has more than `LARGE_BYTES`.
        conversation: Its row, if its metadata or attributes have changed; else None.
        is_last: Whether the conversation was deleted or has expired.
        position: Behind all of them.
        watermark: By the clock of the database: what was committed before has been told; None while more follows.
        version: Of the conversation.
    """

    items: Sequence[asyncpg.Record]
    conversation: asyncpg.Record | None
    is_last: bool
    position: Position
    watermark: datetime | None
    version: int

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.items or self.is_last or self.conversation is not None)

    @property
    def is_complete(self) -> bool:
        """Whether there is no more."""
        return self.watermark is not None


class ItemChanges:
    """Reads the changes of conversations that callers may see.

    Every method raises StoreUnavailable and DeadlineExceeded as `Database.fetch` does, and ActionDenied if the
    caller may read no conversation or no item at all.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def start(
        self, access: Access, conversation_id: str, *, newest: int = 0, after_sequence: int | None = None
    ) -> Position:
        """The position where a watch begins.

        Args:
            access: Of the caller.
            conversation_id: Of the conversation.
            newest: How many of the newest items are told first.
            after_sequence: The place behind which items are told first; None for only new ones.

        Raises:
            ConversationNotFound: It does not exist, was deleted, or may not be read.
            ResumeTokenExpired: It does not have that place.
        """
        statement = sql.start(access.demand("conversation", "read"), access.demand("item", "read"))
        row, *_ = await self._rows(statement, access, conversation_id, newest=newest)
        last = row["last_sequence"]
        if after_sequence is not None and after_sequence > last:
            raise ResumeTokenExpired
        if after_sequence is None:
            first = row["first_sequence"]
            after_sequence = last if first is None else first - 1
        anchor = anchor_of(row["last_item_id"]) if after_sequence == last else UNKNOWN
        return Position(row["version"], LAST_PLACE, after_sequence, 0, anchor)

    async def read(self, access: Access, conversation_id: str, position: Position) -> Changes:
        """What has happened behind ``position``.

        Raises:
            ConversationNotFound: The conversation does not exist, was purged, or may not be read.
            ResumeTokenExpired: Deletions behind the position were purged, or it belongs to another history.
        """
        statement = sql.changes(access.demand("conversation", "read"), access.demand("item", "read"))
        rows = await self._rows(
            statement,
            access,
            conversation_id,
            version=position.version,
            place=position.place,
            sequence=position.sequence,
            page_bytes=PAGE_BYTES,
            large_bytes=LARGE_BYTES,
        )
        _check_history(rows[0], position)
        return _changes(rows, position)

    async def _rows(self, statement: Statement, access: Access, conversation_id: str, **values: int) -> Rows:
        """The rows of a statement that has one at least if the conversation is found."""
        rows = await self._database.read(statement, {**access.values, "conversation_id": conversation_id, **values})
        if not rows:
            raise ConversationNotFound(conversation_id)
        return rows


def _check_history(row: asyncpg.Record, position: Position) -> None:
    """Checks that the position is one of this history, of which nothing behind it is gone.

    Raises:
        ResumeTokenExpired: It is not.
    """
    anchor = anchor_of(row["anchor_id"])
    other = UNKNOWN not in (anchor, position.anchor) and anchor != position.anchor
    ahead = position.version > row["version"] or position.sequence > row["last_sequence"]
    if other or ahead or position.version < row["purged_version"]:
        raise ResumeTokenExpired


def _changes(rows: Sequence[asyncpg.Record], position: Position) -> Changes:
    head = rows[0]
    is_gone = head["gone"]  # then nothing else is told: its items are gone for everybody
    found = () if is_gone or head["sequence"] is None else rows
    told = _that_fit(found)
    is_complete = len(told) == len(found)
    if is_complete:
        behind = Position(
            head["version"], LAST_PLACE, head["last_sequence"], head["revision"], anchor_of(head["last_item_id"])
        )
    else:
        behind = replace(_behind(told, position), revision=head["revision"])
    changed = head["revision"] > position.revision and not is_gone
    return Changes(
        items=told,
        conversation=head if changed else None,
        is_last=is_gone,
        position=behind,
        watermark=head["now"] if is_complete else None,
        version=head["version"],
    )


def _that_fit(found: Sequence[asyncpg.Record]) -> Sequence[asyncpg.Record]:
    """The rows of one message: as many as may be, up to the first whose body did not fit."""
    for number, row in enumerate(found[: sql.MAX_CHANGES]):
        if row["body"] is None and not row["deleted"] and row["size"] <= LARGE_BYTES:
            return found[:number]
    return found[: sql.MAX_CHANGES]


def _behind(told: Sequence[asyncpg.Record], position: Position) -> Position:
    """The position behind some rows, of which there are more."""
    last = told[-1]
    living = [row for row in told if not row["deleted"]]
    # Items that a watch begins with are older than the version that it begins at.
    version, place = max((position.version, position.place), (last["item_version"], last["sequence"]))
    position = replace(position, version=version, place=place)
    if not living:
        return position
    return replace(position, sequence=living[-1]["sequence"], anchor=anchor_of(living[-1]["item_id"]))
