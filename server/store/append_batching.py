"""Appends of many calls in one statement (ADR 11).

An append that comes while none is under way runs at once, by itself. Those that
come meanwhile gather, and the next statement carries them all: one round trip
and one commit. Each keeps its own permission, precondition, request id and
result. What a statement of many cannot place is tried alone: so one bad append
fails alone, and its error is that of a single call.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate
from typing import Any

import asyncpg

from server.authorization.access import Access
from server.authorization.permission import Permission
from server.errors import DeadlineExceeded
from server.store.batch import Batch
from server.store.connection.database import Database
from server.store.idempotency import Reservation
from server.store.sql.appends import GROUPS, ITEMS, REQUESTS, append_many

_UNDONE = (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError)
GATHER_TICKS = 16  # of the event loop in which appends gather before a statement
MAX_ITEMS = 1_000  # of a statement of many
MAX_BYTES = 1024 * 1024  # likewise; an append of more than a quarter goes alone


@dataclass(slots=True, eq=False)
class Append:
    """One call's items for one conversation.

    Raises:
        ActionDenied: No conversation would let the caller.
    """

    access: Access
    conversation_id: str
    batch: Batch
    expected: int | None  # last_sequence
    reserved: Reservation | None
    now: datetime
    permissions: tuple[Permission, Permission] = field(init=False)  # to read the conversation and to create items
    size: int = field(init=False)  # bytes
    placed: "asyncio.Future[int | None]" = field(init=False)  # what `AppendBatcher.place` answers
    callers: Sequence[Context] = ()  # of the call, once a task that serves several runs the append

    def __post_init__(self) -> None:
        self.permissions = self.access.demand("conversation", "read"), self.access.demand("item", "create")
        if self.batch.refers:
            self.access.demand("item", "read")
        self.size = sum(map(len, self.batch.bodies))

    @property
    def can_batch(self) -> bool:
        """Whether it can share a statement."""
        return not (self.batch.refers or self.permissions[1].asks_for_id) and self.size <= MAX_BYTES // 4

    def matches(self, other: "Append") -> bool:
        """Whether one statement can carry both: it repeats all or none of its appends when it fails."""
        return self.permissions == other.permissions and (self.reserved is None) == (other.reserved is None)


class Group:
    """Appends that follow each other in one conversation, by one caller."""

    def __init__(self, first: Append) -> None:
        self.first = first
        self.appends = [first]
        self.count = len(first.batch)  # of items

    def take(self, append: Append) -> bool:
        """Takes one more, if its precondition holds when that of the first does."""
        if append.access is not self.first.access or append.expected != self._next_expected():
            return False
        self.appends.append(append)
        self.count += len(append.batch)
        return True

    def _next_expected(self) -> int | None:
        return None if self.first.expected is None else self.first.expected + self.count


Alone = Callable[[Append], Awaitable[int | None]]


class AppendBatcher:
    """Places appends; at most one statement for several is under way in this process.

    Args:
        database: Where to.
        alone: Places one append: the last sequence before it, None when it was not placed.
    """

    def __init__(self, database: Database, alone: Alone) -> None:
        self._database = database
        self._alone = alone
        self._waiting: deque[Append] = deque()
        self._busy = False
        self._last_was_batch = False  # whether the last statement carried several
        self._retrying_alone: set[str] = set()  # conversations whose appends are tried one by one
        self._tasks: set[asyncio.Task[None]] = set()

    async def place(self, append: Append) -> int | None:
        """The last sequence before the append's items, or None when they were not placed.

        Raises:
            StoreUnavailable, DeadlineExceeded, Conflict: As `Database.fetch`.
        """
        if not append.can_batch:
            return await self._alone(append)
        if self._busy or self._last_was_batch or self._retrying_alone:
            self.queue(append)
            return await append.placed
        self._busy = True
        try:
            return await self._alone(append)
        finally:
            self._busy = False
            self._start_next()

    def queue(self, append: Append) -> None:
        """As `place`; the result will be in ``append.placed``.

        Appends to one conversation are placed in the order of these calls; only
        sociable ones may be queued.
        """
        append.placed = asyncio.get_running_loop().create_future()
        append.callers = (copy_context(),)
        self._waiting.append(append)
        self._start_next()

    def _start_next(self) -> None:
        """Starts the next statement, if somebody waits and none is under way."""
        if self._waiting and not self._busy:
            self._busy = True
            self._start(self._run_until_empty())

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_until_empty(self) -> None:
        """Runs statements until nobody waits who can go."""
        await self._yield_to_arrivals()
        while groups := self._take_batch():
            self._last_was_batch = len(groups) > 1 or len(groups[0].appends) > 1
            try:
                await self._run(groups)
            except Exception as error:  # noqa: BLE001 - it is the answer of each that waits
                _fail(groups, error)
            await self._yield_to_arrivals()
        self._busy = False

    async def _yield_to_arrivals(self) -> None:
        """Lets the calls that have come already take their places, when there are several at a time."""
        for _ in range(GATHER_TICKS if self._last_was_batch else 0):
            await asyncio.sleep(0)

    def _take_batch(self) -> list[Group]:
        """What the next statement carries, taken out of the line."""
        groups: dict[str, Group] = {}
        left: deque[Append] = deque()
        behind = set(self._retrying_alone)  # conversations of which one must wait: nobody passes it
        items = size = 0
        while self._waiting:
            append = self._waiting.popleft()
            if append.placed.done():  # its caller has gone
                continue
            items, size = items + len(append.batch), size + append.size
            if groups and (items > MAX_ITEMS or size > MAX_BYTES):
                left.append(append)
                break
            if append.conversation_id in behind or not _joins(append, groups):
                behind.add(append.conversation_id)
                left.append(append)
        self._waiting.extendleft(reversed(left))
        # In one order for all processes, or two statements could wait for each other.
        return [groups[each] for each in sorted(groups)]

    async def _run(self, groups: list[Group]) -> None:
        if len(groups) == 1 and len(groups[0].appends) == 1:
            await self._run_each_alone(groups[0])
            return
        self._database.stats.shared_appends.add(sum(len(group.appends) for group in groups))
        placed = await self._run_batch(groups)
        for number, group in enumerate(groups, 1):
            if number in placed:
                _succeed(group, placed[number])
            elif placed and len(group.appends) == 1:
                _answer(group.first, None)  # refused, by the same conditions as alone
            else:
                self._retrying_alone.add(group.first.conversation_id)
                self._start(self._run_individually(group))

    async def _run_batch(self, groups: list[Group]) -> dict[int, int]:
        """The base of each group that was placed, by its number; none when the whole statement was undone."""
        first = groups[0].first
        reserves = first.reserved is not None
        statement = append_many(*first.permissions, reserves=reserves)
        callers = [caller for group in groups for append in group.appends for caller in append.callers]
        try:
            rows = await self._database.fetch(statement, _arrays(groups), repeatable=reserves, callers=callers)
        except asyncpg.UniqueViolationError:  # of an id of an item or of a request
            return {}
        except DeadlineExceeded as error:
            if isinstance(error.__cause__, _UNDONE):  # one of the conversations may be locked
                return {}
            raise
        return {row["number"]: row["base"] for row in rows}

    async def _run_individually(self, group: Group) -> None:
        """Tries each by itself, beside the next statements."""
        await self._run_each_alone(group)
        self._retrying_alone.discard(group.first.conversation_id)
        self._start_next()

    async def _run_each_alone(self, group: Group) -> None:
        for append in group.appends:
            try:
                _answer(append, await self._alone(append))
            except Exception as error:  # noqa: BLE001 - it is the answer
                if not append.placed.done():
                    append.placed.set_exception(error)


def _joins(append: Append, groups: dict[str, Group]) -> bool:
    """Puts an append to those that share the next statement, if it can share it."""
    if groups and not append.matches(next(iter(groups.values())).first):
        return False
    group = groups.get(append.conversation_id)
    if group is not None:
        return group.take(append)
    groups[append.conversation_id] = Group(append)
    return True


def _answer(append: Append, base: int | None) -> None:
    if not append.placed.done():
        append.placed.set_result(base)


def _succeed(group: Group, base: int) -> None:
    for append in group.appends:
        _answer(append, base)
        base += len(append.batch)


def _fail(groups: Iterable[Group], error: Exception) -> None:
    for group in groups:
        for append in group.appends:
            if not append.placed.done():
                append.placed.set_exception(error)


def _arrays(groups: list[Group]) -> dict[str, Any]:
    """The parameters of `append_many`."""
    read, create = groups[0].first.permissions
    values = sorted({**read.values, **create.values})
    numbered = list(enumerate(groups, 1))
    return {
        **_columns("groups", (*GROUPS, *values), [_group_row(group, values) for group in groups]),
        **_columns("items", ITEMS, [row for each in numbered for row in _item_rows(*each)]),
        **_columns("requests", REQUESTS, [row for each in numbered for row in _request_rows(*each)]),
    }


def _columns(table: str, names: Iterable[str], rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    """``rows`` as an array for each column; none for a table without rows, which the statement then has not."""
    return {f"{table}_{name}": array for name, array in zip(names, zip(*rows, strict=True), strict=bool(rows))}


def _group_row(group: Group, values: Iterable[str]) -> tuple[Any, ...]:
    first = group.first
    own = [_text(first.access.values[name]) for name in values]
    tenant = first.access.principal.tenant
    return (tenant, first.conversation_id, group.count, len(group.appends), first.expected, *own)


def _item_rows(number: int, group: Group) -> Iterator[tuple[Any, ...]]:
    place = 0
    for append in group.appends:
        batch, now = append.batch, append.now
        for row in zip(batch.item_ids, batch.types, batch.roles, batch.statuses, batch.bodies, strict=True):
            place += 1
            *words, body = row
            yield (number, place, *words, now, body)


def _request_rows(number: int, group: Group) -> Iterator[tuple[Any, ...]]:
    firsts = accumulate((len(append.batch) for append in group.appends), initial=1)
    for append, first in zip(group.appends, firsts, strict=False):
        if reserved := append.reserved:
            principal = append.access.principal.id
            own = (reserved.method, reserved.request_id, reserved.fingerprint)
            yield (number, principal, *own, first, len(append.batch))


def _text(value: str | list[str]) -> str:
    """A value of a permission for an array of such: an array of arrays would have to be rectangular."""
    if isinstance(value, str):
        return value
    quoted = (each.replace("\\", "\\\\").replace('"', '\\"') for each in value)
    return "{" + ",".join(f'"{each}"' for each in quoted) + "}"
