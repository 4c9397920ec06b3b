"""Appends of many calls in one statement (ADR 11, 23).

An append that comes while no other is running runs at once, in a statement of its own.
Appends that come meanwhile queue, and the next statement runs them all: one round trip and
one commit. Each keeps its own permission, precondition, request id and result.

No append waits for what is slow in another conversation:

- A shared statement skips conversations whose row is locked. Their appends get a lane: they
  run in statements for that conversation only, which do wait for the lock.
- When a statement is slow, the next one runs beside it (`Turns`).

What a shared statement did not store goes to the lane of its conversation as well, where it
fails, if it has to, with the error of a single call.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TypeAlias

from server.store.appends import MAX_BYTES, MAX_ITEMS, Append, Group, statement_parameters
from server.store.connection.database import Database
from server.store.connection.failures import KeyTaken
from server.store.connection.slots import waited_since
from server.store.conversation_locks import ConversationLocks
from server.store.sql.appends import append_many
from server.store.turns import Turn, Turns

RunOne: TypeAlias = Callable[[Append], Awaitable[int | None]]


class AppendBatcher(Turns[Append, Group]):
    """Runs appends.

    Args:
        database: Runs the shared statements.
        locks: Of the conversations; held by every statement that is not shared.
        run_one: Runs one append in a statement of its own; returns the last sequence before
            its items, or None when they were not stored.
        queues: Whether the conversations enter the queue, which depends on the layout of the database.
    """

    def __init__(
        self, database: Database, locks: ConversationLocks, run_one: RunOne, queues: Callable[[], bool]
    ) -> None:
        super().__init__(database.size)
        self._database = database
        self._locks = locks
        self._run_one = run_one
        self._queues = queues
        self._parked: dict[str, deque[Append]] = {}  # by conversation: they wait for a lane, or for a slow turn
        self._slow_turns: dict[str, Turn] = {}  # by conversation: the one that its appends are parked behind

    async def run(self, append: Append) -> int | None:
        """Runs an append, alone or with others.

        Returns:
            The last sequence before its items, or None when they were not stored.

        Raises:
            StoreUnavailable, OutcomeUnknown, DeadlineExceeded, Conflict: As `Database.fetch`.
        """
        if not append.can_batch:
            async with self._locks.hold(append.conversation_id):
                return await self._run_one(append)
        conversation_id = append.conversation_id
        if self._is_idle and self._locks.try_acquire(conversation_id):
            try:
                return await self._run_at_once(self._run_one(append), (conversation_id,))
            finally:
                self._locks.release(conversation_id)
        self.enqueue(append)
        try:
            return await append.answer
        except asyncio.CancelledError:
            append.cancel()
            raise

    def enqueue(self, append: Append) -> None:
        """Runs an append that `can_batch`; its result will be in ``append.answer``.

        Appends to one conversation run in the order of these calls.
        """
        append.begin()
        parked = self._parked.get(append.conversation_id)
        if parked is None:
            self._queue.append(append)
            self._start_turn()
        else:
            parked.append(append)

    @property
    def _is_idle(self) -> bool:
        """Whether an append may run at once: no other waits or runs, or did a moment ago."""
        return not (self._turn or self._queue or self._last_was_batch or self._parked)

    # --- turns

    def _conversations_of(self, groups: list[Group]) -> Sequence[str]:
        return [group.conversation_id for group in groups]

    def _on_slow(self, turn: Turn) -> None:
        """Parks appends to the conversations of the turn until it ends, but for those that have a lane."""
        conversations = turn.conversations - self._parked.keys()
        self._slow_turns.update(dict.fromkeys(conversations, turn))
        self._park(conversations)

    def _on_slow_end(self, turn: Turn) -> None:
        for conversation_id in turn.conversations:
            self._release(conversation_id, turn)

    def _release(self, conversation_id: str, turn: Turn) -> None:
        """Queues what is parked behind a slow turn, unless a lane has it by now."""
        if self._slow_turns.get(conversation_id) is turn:
            del self._slow_turns[conversation_id]
            self._queue.extend(self._parked.pop(conversation_id))

    def _park(self, conversations: Iterable[str]) -> None:
        """Parks the appends to these conversations, those in the queue and those that come."""
        for conversation_id in conversations:
            self._parked.setdefault(conversation_id, deque())
        queue, self._queue = self._queue, deque()
        for append in queue:
            self._parked.get(append.conversation_id, self._queue).append(append)

    def _take(self) -> list[Group]:
        """Takes the appends of the next statement out of the queue."""
        groups: dict[str, Group] = {}
        left: deque[Append] = deque()
        waiting: set[str] = set()  # conversations with an append that must wait; others must not pass it
        items = size = 0
        while self._queue:
            append = self._queue.popleft()
            if append.answer.done():  # its caller has left
                continue
            items, size = items + append.item_count, size + append.size
            if groups and (items > MAX_ITEMS or size > MAX_BYTES):
                left.append(append)
                break
            try:
                added = append.conversation_id not in waiting and _add_to_groups(append, groups)
            except Exception as error:  # noqa: BLE001 - its caller receives it, and the others go on
                append.fail(error)
                continue
            if not added:
                waiting.add(append.conversation_id)
                left.append(append)
        self._queue.extendleft(reversed(left))
        return list(groups.values())

    async def _run_parts(self, groups: list[Group], turn: Turn) -> None:
        total = sum(len(group.appends) for group in groups)
        self._last_was_batch = total > 1
        conversation_id = groups[0].conversation_id
        if total == 1 and not self._parked and self._locks.try_acquire(conversation_id):
            try:
                await self._run_individually(groups[0])
            finally:
                self._locks.release(conversation_id)
            return
        if self._database.layout.spans_conversations:
            await self._run_together(groups)
        else:
            await self._run_apart(groups, partial(self._run_in_turn, turn))

    async def _run_together(self, groups: list[Group]) -> None:
        """Runs ``groups`` in one statement."""
        bases = await self._run_shared(groups, skip_locked=True)
        refused = []
        for number, group in enumerate(groups, 1):
            if number in bases:
                group.succeed(bases[number])
            else:
                refused.append(group)
        self._start_lanes(refused)

    async def _run_in_turn(self, turn: Turn, group: Group) -> None:
        """Runs a group in a statement of its own, which waits for no lock; others of the turn may take longer."""
        try:
            await self._run_together([group])
        finally:
            turn.conversations.discard(group.conversation_id)
            self._release(group.conversation_id, turn)
            self._start_turn()

    async def _run_shared(self, groups: list[Group], *, skip_locked: bool) -> dict[int, int]:
        """Runs one statement for ``groups``; the base of each stored group by its number, none when it was undone."""
        appends = [append for group in groups for append in group.appends]
        if len(appends) > 1:
            self._database.stats.shared_appends.add(len(appends))
        reserves = appends[0].is_repeatable
        kind = {"queues": self._queues(), "reserves": reserves, "skip_locked": skip_locked}
        statement = append_many(*appends[0].permissions, **kind)
        values = statement_parameters(groups)
        for append in appends:
            append.sent = True
        callers = [caller for append in appends for caller in append.callers]
        try:
            with waited_since(appends[0].began):
                rows = await self._database.fetch(statement, values, repeatable=reserves, callers=callers)
        except KeyTaken:  # an item id or request id
            return {}
        return {row["number"]: row["base"] for row in rows}

    # --- lanes

    def _start_lanes(self, groups: Sequence[Group]) -> None:
        """Runs ``groups`` again, each in the lane of its conversation, before the appends that came after it."""
        if not groups:
            return
        self._park(group.conversation_id for group in groups)
        for group in groups:
            self._parked[group.conversation_id].extendleft(reversed(group.appends))
            self._slow_turns.pop(group.conversation_id, None)
            self._start(self._run_lane(group.conversation_id))

    async def _run_lane(self, conversation_id: str) -> None:
        """Runs the appends to one conversation until none is left."""
        parked = self._parked[conversation_id]
        try:
            while parked:
                await self._run_next_in_lane(conversation_id, parked)
        finally:
            del self._parked[conversation_id]
            for append in parked:  # none, unless this task was ended
                append.abandon()

    async def _run_next_in_lane(self, conversation_id: str, parked: deque[Append]) -> None:
        group: Group | None = None
        try:
            async with self._locks.hold(conversation_id):
                if group := _take_group(parked):
                    await self._run_group(group)
        except Exception as error:  # noqa: BLE001 - also a lock that another write of this process kept
            if group := group or _take_group(parked):
                group.fail(error)
        except asyncio.CancelledError:
            if group:
                group.abandon()
            raise

    async def _run_group(self, group: Group) -> None:
        """Runs a group in one statement, or if that stores nothing, its appends one by one."""
        bases = {}
        if len(group.appends) > 1:
            try:
                bases = await self._run_shared([group], skip_locked=False)
            except Exception as error:  # noqa: BLE001 - each caller receives it
                group.fail(error)
                return
        if bases:
            group.succeed(bases[1])
        else:
            await self._run_individually(group)

    async def _run_individually(self, group: Group) -> None:
        for append in group.appends:
            if append.answer.done():  # its caller has left
                continue
            append.sent = True
            try:
                append.succeed(await self._run_one(append))
            except Exception as error:  # noqa: BLE001 - its caller receives it
                append.fail(error)


def _add_to_groups(append: Append, groups: dict[str, Group]) -> bool:
    """Adds an append to the groups of a statement, by conversation, if it can run it; whether it did."""
    if groups and not append.can_join(next(iter(groups.values())).first):
        return False
    group = groups.get(append.conversation_id)
    if group is not None:
        return group.add(append)
    groups[append.conversation_id] = Group(append)
    return True


def _take_group(appends: deque[Append]) -> Group | None:
    """Takes the first append whose caller still waits, and those behind it that can run with it."""
    group: Group | None = None
    while appends:
        append = appends[0]
        if append.answer.done():  # its caller has left
            appends.popleft()
            continue
        if group is None:
            group = Group(append)
        elif not (_has_room(group, append) and append.can_join(group.first) and group.add(append)):
            break
        appends.popleft()
    return group


def _has_room(group: Group, append: Append) -> bool:
    return group.item_count + append.item_count <= MAX_ITEMS and group.size + append.size <= MAX_BYTES
