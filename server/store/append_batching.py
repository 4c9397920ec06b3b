"""Appends of many calls in one statement (ADR 11).

An append that comes while no other is running runs at once, in a statement of its own.
Appends that come meanwhile queue, and the next statement runs them all: one round trip and
one commit. Each keeps its own permission, precondition, request id and result. An append
that a statement for many did not store runs again in a statement of its own, so that it
fails without the others and with the error of a single call.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate
from typing import Any, TypeAlias

import asyncpg

from server.authorization.access import Access
from server.authorization.permission import Permission
from server.errors import DeadlineExceeded
from server.store.batch import Batch
from server.store.connection.database import Database
from server.store.idempotency import Reservation
from server.store.sql.appends import GROUPS, ITEMS, REQUESTS, append_many

GATHER_TICKS = 16  # of the event loop, in which appends queue before a statement
MAX_ITEMS = 1_000  # of a statement for many
MAX_BYTES = 1024 * 1024  # of a statement for many; an append of more than a quarter does not share one
# What the database does to a statement that waits for a locked row.
_TIMEOUTS = (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError)


@dataclass(slots=True, eq=False)
class Append:
    """The items that one call appends to one conversation.

    Attributes:
        expected: The last_sequence the conversation must have; None for any.
        permissions: To read the conversation, and to create items in it.
        size: Bytes of all items.
        base: Set once the append is queued. Its result is the last sequence before the items, or
            None when they were not stored; cancelled before its statement runs, it is not stored.
        callers: The context of its call, once it is queued.
        on_stored: Called with access, conversation and item ids once the items are committed, even if
            nobody waits for them any more.
        stored: Whether they are.

    Raises:
        ActionDenied: The policy lets the caller append to no conversation at all.
    """

    access: Access
    conversation_id: str
    batch: Batch
    expected: int | None
    reservation: Reservation | None
    now: datetime
    permissions: tuple[Permission, Permission] = field(init=False)
    size: int = field(init=False)
    base: "asyncio.Future[int | None]" = field(init=False)
    callers: Sequence[Context] = ()
    on_stored: Callable[[Access, str, Sequence[str]], None] | None = None
    stored: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.permissions = self.access.demand("conversation", "read"), self.access.demand("item", "create")
        if self.batch.has_references:
            self.access.demand("item", "read")
        self.size = sum(map(len, self.batch.bodies))

    def mark_stored(self) -> None:
        """Notes that the items are committed."""
        self.stored = True
        if self.on_stored:
            self.on_stored(self.access, self.conversation_id, self.batch.all_ids)

    @property
    def can_batch(self) -> bool:
        """Whether it may share a statement with other appends."""
        return not (self.batch.has_references or self.permissions[1].reads_row_id) and self.size <= MAX_BYTES // 4

    def can_join(self, other: "Append") -> bool:
        """Whether one statement can run both; it is repeated for all or for none when its connection is lost."""
        return self.permissions == other.permissions and (self.reservation is None) == (other.reservation is None)


class Group:
    """Appends of one caller to one conversation, in order; one row of the statement."""

    def __init__(self, first: Append) -> None:
        self.first = first
        self.appends = [first]
        self.item_count = len(first.batch)

    @property
    def conversation_id(self) -> str:
        """The conversation of all its appends."""
        return self.first.conversation_id

    def add(self, append: Append) -> bool:
        """Adds an append if its precondition holds whenever that of the first one does; whether it did."""
        if append.access is not self.first.access or append.expected != self._next_expected():
            return False
        self.appends.append(append)
        self.item_count += len(append.batch)
        return True

    def _next_expected(self) -> int | None:
        return None if self.first.expected is None else self.first.expected + self.item_count


RunOne: TypeAlias = Callable[[Append], Awaitable[int | None]]


class AppendBatcher:
    """Runs appends; one statement for many at a time.

    Args:
        database: Runs the statements for many.
        run_one: Runs one append in a statement of its own; returns the last sequence before
            its items, or None when they were not stored.
    """

    def __init__(self, database: Database, run_one: RunOne) -> None:
        self._database = database
        self._run_one = run_one
        self._queue: deque[Append] = deque()
        self._running = False  # whether a statement runs
        self._last_was_batch = False  # whether the last one was for many
        self._retrying: set[str] = set()  # ids of conversations whose appends run one by one
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, append: Append) -> int | None:
        """Runs an append, alone or with others.

        Returns:
            The last sequence before its items, or None when they were not stored.

        Raises:
            StoreUnavailable, DeadlineExceeded, Conflict: As `Database.fetch`.
        """
        if not append.can_batch:
            return await self._run_one(append)
        if self._running or self._last_was_batch or self._retrying:
            self.enqueue(append)
            return await append.base
        self._running = True
        try:
            return await self._run_one(append)
        finally:
            self._running = False
            self._start_next()

    def enqueue(self, append: Append) -> None:
        """Runs an append that `can_batch`; its result will be in ``append.base``.

        Appends to one conversation run in the order of these calls.
        """
        append.base = asyncio.get_running_loop().create_future()
        append.callers = (copy_context(),)
        self._queue.append(append)
        self._start_next()

    def _start_next(self) -> None:
        """Runs the queue, unless a statement runs already."""
        if self._queue and not self._running:
            self._running = True
            self._start(self._run_queue())

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_queue(self) -> None:
        """Runs statements until no queued append may run."""
        await self._gather()
        while groups := self._take_groups():
            self._last_was_batch = len(groups) > 1 or len(groups[0].appends) > 1
            try:
                await self._run(groups)
            except Exception as error:  # noqa: BLE001 - each caller receives it
                for append in _appends_of(groups):
                    _set_exception(append, error)
            await self._gather()
        self._running = False

    async def _gather(self) -> None:
        """Lets calls that have arrived queue their appends, when several arrive at a time."""
        for _ in range(GATHER_TICKS if self._last_was_batch else 0):
            await asyncio.sleep(0)

    def _take_groups(self) -> list[Group]:
        """Takes the appends of the next statement out of the queue."""
        groups: dict[str, Group] = {}
        left: deque[Append] = deque()
        waiting = set(self._retrying)  # conversations with an append that must wait; others must not pass it
        items = size = 0
        while self._queue:
            append = self._queue.popleft()
            if append.base.done():  # its caller has left
                continue
            items, size = items + len(append.batch), size + append.size
            if groups and (items > MAX_ITEMS or size > MAX_BYTES):
                left.append(append)
                break
            if append.conversation_id in waiting or not _add_to_groups(append, groups):
                waiting.add(append.conversation_id)
                left.append(append)
        self._queue.extendleft(reversed(left))
        # All processes lock conversations in this order, so that two statements cannot deadlock.
        return [groups[conversation_id] for conversation_id in sorted(groups)]

    async def _run(self, groups: list[Group]) -> None:
        if len(groups) == 1 and len(groups[0].appends) == 1:
            await self._run_group_individually(groups[0])
            return
        self._database.stats.shared_appends.add(sum(len(group.appends) for group in groups))
        bases = await self._run_batch(groups)
        for number, group in enumerate(groups, 1):
            if number in bases:
                _set_bases(group, bases[number])
            elif bases and len(group.appends) == 1:
                _set_base(group.first, None)  # the same conditions would refuse it alone
            else:
                self._retrying.add(group.conversation_id)
                self._start(self._retry(group))

    async def _run_batch(self, groups: list[Group]) -> dict[int, int]:
        """Runs the statement for ``groups``; the base of each stored group by its number, none when it was undone."""
        first = groups[0].first
        reserves = first.reservation is not None
        statement = append_many(*first.permissions, reserves=reserves)
        callers = [caller for append in _appends_of(groups) for caller in append.callers]
        try:
            rows = await self._database.fetch(statement, _parameters(groups), repeatable=reserves, callers=callers)
        except asyncpg.UniqueViolationError:  # an item id or request id is taken
            return {}
        except DeadlineExceeded as error:
            if isinstance(error.__cause__, _TIMEOUTS):  # one of the conversations may be locked
                return {}
            raise
        return {row["number"]: row["base"] for row in rows}

    async def _retry(self, group: Group) -> None:
        """Runs the appends of ``group`` one by one, while other statements run."""
        await self._run_group_individually(group)
        self._retrying.discard(group.conversation_id)
        self._start_next()

    async def _run_group_individually(self, group: Group) -> None:
        for append in group.appends:
            try:
                _set_base(append, await self._run_one(append))
            except Exception as error:  # noqa: BLE001 - its caller receives it
                _set_exception(append, error)


def _add_to_groups(append: Append, groups: dict[str, Group]) -> bool:
    """Adds an append to the groups of a statement, by conversation, if it can run it; whether it did."""
    if groups and not append.can_join(next(iter(groups.values())).first):
        return False
    group = groups.get(append.conversation_id)
    if group is not None:
        return group.add(append)
    groups[append.conversation_id] = Group(append)
    return True


def _appends_of(groups: Iterable[Group]) -> Iterator[Append]:
    return (append for group in groups for append in group.appends)


def _set_base(append: Append, base: int | None) -> None:
    if not append.base.done():
        append.base.set_result(base)


def _set_bases(group: Group, base: int) -> None:
    for append in group.appends:
        append.mark_stored()
        _set_base(append, base)
        base += len(append.batch)


def _set_exception(append: Append, error: Exception) -> None:
    if not append.base.done():
        append.base.set_exception(error)


def _parameters(groups: list[Group]) -> dict[str, Any]:
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
    """``rows`` as an array for each column; nothing for a table without rows, which the statement does not have."""
    return {f"{table}_{name}": array for name, array in zip(names, zip(*rows, strict=True), strict=bool(rows))}


def _group_row(group: Group, names: Iterable[str]) -> tuple[Any, ...]:
    first = group.first
    values = [_as_text(first.access.values[name]) for name in names]
    tenant = first.access.principal.tenant
    return (tenant, first.conversation_id, group.item_count, len(group.appends), first.expected, *values)


def _item_rows(number: int, group: Group) -> Iterator[tuple[Any, ...]]:
    place = 0
    for append in group.appends:
        batch, now = append.batch, append.now
        for row in zip(batch.item_ids, batch.types, batch.roles, batch.statuses, batch.bodies, strict=True):
            place += 1
            *words, body = row
            yield (number, place, *words, now, body)


def _request_rows(number: int, group: Group) -> Iterator[tuple[Any, ...]]:
    first_places = accumulate((len(append.batch) for append in group.appends), initial=1)
    for append, first_place in zip(group.appends, first_places, strict=False):
        if reservation := append.reservation:
            principal = append.access.principal.id
            key = (reservation.method, reservation.request_id, reservation.fingerprint)
            yield (number, principal, *key, first_place, len(append.batch))


def _as_text(value: str | list[str]) -> str:
    """A value of a permission as an element of a text array; an array of arrays would have to be rectangular."""
    if isinstance(value, str):
        return value
    quoted = (each.replace("\\", "\\\\").replace('"', '\\"') for each in value)
    return "{" + ",".join(f'"{each}"' for each in quoted) + "}"
