"""What has happened to all conversations of a caller behind a position in the log of changes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import takewhile
from typing import ClassVar

import asyncpg

from server.authorization.access import Access
from server.errors import ChangesNotKept, ResumeTokenExpired
from server.store.array_parameters import array_parameters
from server.store.connection.database import Database
from server.store.connection.execution import Rows
from server.store.item_changes import LARGE_BYTES, PAGE_BYTES
from server.store.log_position import WHOLE, ChangeKey, LogPosition
from server.store.sql import changes as sql


@dataclass(frozen=True, slots=True)
class LoggedChange:
    """A change of one conversation.

    Attributes:
        key: Of the change.
        conversation: Its row as it is now; None if the caller cannot read it any more.
        items: As `Changes.items`.
        place: Items up to this sequence are among `items`; `WHOLE` for all.
    """

    key: ChangeKey
    conversation: asyncpg.Record | None
    items: Sequence[asyncpg.Record] = ()
    place: int = WHOLE


@dataclass(frozen=True, slots=True)
class LoggedChanges:
    """What one read found.

    Attributes:
        changes: In order; of one conversation there may be several.
        position: Behind all of them.
        is_complete: Whether there are no more.
        watermark: By the clock of the database: what was committed before has been told; None if that is not known.
    """

    changes: Sequence[LoggedChange]
    position: LogPosition
    is_complete: bool
    watermark: datetime | None
    is_last: ClassVar[bool] = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not self.changes


class ConversationChanges:
    """Reads the log of changes for callers.

    Every method raises StoreUnavailable and DeadlineExceeded as `Database.fetch` does, and ChangesNotKept while the
    log is off, or is that of another database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def start(self) -> LogPosition:
        """The position of now."""
        (state,) = await self._database.read(sql.START, {})
        _check_kept(state)
        return LogPosition(state["horizon"])

    async def read(self, access: Access, position: LogPosition, *, include_items: bool) -> LoggedChanges:
        """What has happened behind ``position``.

        Args:
            access: Of the caller.
            position: Of the changes told before.
            include_items: Whether to read what happened to the items.

        Raises:
            ActionDenied: The caller may read no conversation at all, or no item.
            ResumeTokenExpired: The purge has come further than the position, or it belongs to another history.
        """
        rows = await self._find(access, position)
        state = rows[0]
        _check_kept(state)
        _check_history(state, position)
        found = [row for row in rows if row["change_position"] is not None]
        fitting = list(takewhile(lambda row: row["is_told"], found[: sql.MAX_CHANGES]))
        told = await self._with_items(access, fitting, position) if include_items else list(map(_logged, fitting))
        is_whole = len(told) == len(found) and all(change.place == WHOLE for change in told)
        behind = position.told(told[-1].key, told[-1].place) if told else position
        if is_whole and state["scanned_position"] is not None:
            behind = replace(behind, scanned=_key(state, "scanned"))
            is_whole = False
        elif is_whole:
            behind = replace(behind, horizon=state["horizon"])
        known = is_whole and not state["is_held"]
        return LoggedChanges(told, behind, is_whole, state["now"] if known else None)

    async def _find(self, access: Access, position: LogPosition) -> Rows:
        permission = access.demand("conversation", "read")  # plans it, so that its values are there
        start, last = position.start, position.last
        values = {
            **access.values,
            "position": start.position,
            "after_id": start.conversation_id,
            "version": start.version,
            "told_position": last.position,
            "told_id": last.conversation_id,
            "told_version": last.version,
        }
        return await self._database.read(sql.read(permission), values)

    async def _with_items(self, access: Access, rows: Rows, position: LogPosition) -> list[LoggedChange]:
        """The changes whose items fit into a message, with their items; the last one perhaps with some of them."""
        statement = sql.items_of(access.demand("conversation", "read"), access.demand("item", "read"))
        _check_deletions(rows)
        ranges = _ranges(rows, position)
        if not ranges:
            return []
        values = array_parameters("ranges", sql.RANGES, ranges)
        bounds = {"page_bytes": PAGE_BYTES, "large_bytes": LARGE_BYTES}
        found = await self._database.read(statement, {**access.values, **values, **bounds})
        return list(_joined(list(map(_logged, rows[: len(ranges)])), found))


def _check_kept(state: asyncpg.Record) -> None:
    if not state["is_kept"]:
        raise ChangesNotKept


def _check_history(state: asyncpg.Record, position: LogPosition) -> None:
    """Checks that all changes behind the position are kept, and that it is one of this log.

    Raises:
        ResumeTokenExpired: They are not, or it is not.
    """
    is_purged = position.start.position < state["floor"]
    is_ahead = position.horizon > state["horizon"] or position.last.position >= state["horizon"]
    if is_purged or is_ahead or not state["is_known"]:
        raise ResumeTokenExpired


def _check_deletions(rows: Rows) -> None:
    """Checks that the purge has not removed what the changes have deleted.

    Raises:
        ResumeTokenExpired: Perhaps it has: changes are kept for longer than deleted items.
    """
    for row in rows:
        appends = row["change_last_sequence"] > row["change_previous_sequence"]
        if not appends and row["id"] is not None and row["change_version"] <= row["purged_version"]:
            raise ResumeTokenExpired


def _key(row: asyncpg.Record, prefix: str) -> ChangeKey:
    return ChangeKey(*(row[f"{prefix}_{name}"] for name in ChangeKey._fields))


def _logged(row: asyncpg.Record) -> LoggedChange:
    return LoggedChange(_key(row, "change"), row if row["id"] is not None else None)


def _ranges(rows: Rows, position: LogPosition) -> list[tuple[str, int, int, int, int]]:
    """The rows of `sql.RANGES` for the first changes, up to those whose items are more than a message has."""
    ranges: list[tuple[str, int, int, int, int]] = []
    count = 0
    for row in rows:
        key = _key(row, "change")
        place = position.place if key == position.last and position.place != WHOLE else 0
        after, last = max(row["change_previous_sequence"], place), row["change_last_sequence"]
        if count > sql.MAX_CHANGES:
            break
        count += last - after
        ranges.append((key.conversation_id, key.version, after, last, place))
    return ranges


def _joined(changes: Sequence[LoggedChange], found: Rows) -> Iterator[LoggedChange]:
    """The changes with their items, up to the first item that does not fit."""
    fitting = list(takewhile(_fits, found[: sql.MAX_CHANGES]))
    cut = found[len(fitting)]["change_number"] if len(fitting) < len(found) else None
    for number, change in enumerate(changes, 1):
        rows = [row for row in fitting if row["change_number"] == number]
        items = [row for row in rows if row["sequence"] is not None]
        if number == cut:
            if items:
                yield replace(change, items=items, place=items[-1]["sequence"])
            return
        # Without a row it cannot be read any more: access was lost between the two statements.
        yield replace(change, items=items, conversation=change.conversation if rows else None)


def _fits(row: asyncpg.Record) -> bool:
    return row["body"] is not None or row["sequence"] is None or row["deleted"] or row["size"] > LARGE_BYTES
