"""Turns: statements that run one at a time, unless one is slow (ADR 11, 23).

While a statement runs, writes queue for the next one, which then runs them all. A statement that takes longer than
`SLOW_SECONDS` delays nobody: the next one runs beside it.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from server.store.pending_write import PendingWrite
from server.store.side_by_side import SideBySide

GATHER_TICKS = 16  # of the event loop, in which writes queue before a statement
SLOW_SECONDS = 0.02  # from a statement's start until the next one may run beside it
MAX_SLOW = 3  # slow statements beside the one that is not


class Turn:
    """A statement of the queue; while it is not slow, no other one runs."""

    __slots__ = ("conversations", "slow", "timer")

    def __init__(self) -> None:
        self.conversations: set[str] = set()  # of the writes that it has not answered
        self.slow = False
        self.timer: asyncio.TimerHandle | None = None


class Part(Protocol):
    """One write of a statement, or several that have one row of it."""

    def fail(self, error: Exception) -> None:
        """Gives each caller the error."""

    def abandon(self) -> None:
        """Gives each caller an error: the task that would have answered was ended."""


Write = TypeVar("Write", bound=PendingWrite[Any])
PartT = TypeVar("PartT", bound=Part)
Answer = TypeVar("Answer")


class Turns(ABC, Generic[Write, PartT]):
    """Gives the writes of a queue their turns; a subclass knows which share a statement, and runs it.

    Args:
        connections: How many there are.
    """

    def __init__(self, connections: int) -> None:
        self._apart = SideBySide(connections)
        self._queue: deque[Write] = deque()
        self._turn: Turn | None = None
        self._slow = 0  # turns that are slow
        self._last_was_batch = False  # whether the last statement was for many
        self._tasks: set[asyncio.Task[None]] = set()

    @abstractmethod
    def _take(self) -> list[PartT]:
        """Takes the writes of the next statement out of the queue."""

    @abstractmethod
    async def _run_parts(self, parts: list[PartT], turn: Turn) -> None:
        """Runs the statement of a turn, and answers every caller; what it raises, each of them receives."""

    def _conversations_of(self, _parts: list[PartT]) -> Sequence[str]:
        """Those that `_on_slow` is to know of; by default none."""
        return ()

    def _on_slow(self, turn: Turn) -> None:
        """Called when a turn has become slow, before the next one starts; by default does nothing."""

    def _on_slow_end(self, turn: Turn) -> None:
        """Called when a slow turn has ended; by default does nothing."""

    def _start_turn(self) -> None:
        """Runs the queue, unless a turn runs that is not slow."""
        if self._queue and self._turn is None:
            self._turn = Turn()
            self._start(self._run_turn(self._turn))

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_at_once(self, work: Awaitable[Answer], conversations: Sequence[str] = ()) -> Answer:
        """Awaits ``work``, the statement of a write that need not queue, as a turn."""
        turn = self._turn = Turn()
        self._watch(turn, conversations)
        try:
            return await work
        finally:
            self._end(turn)

    async def _run_turn(self, turn: Turn) -> None:
        parts: list[PartT] = []
        try:
            await self._gather()
            parts = self._take()
            self._watch(turn, self._conversations_of(parts))
            if parts:
                await self._run_parts(parts, turn)
        except Exception as error:  # noqa: BLE001 - each caller receives it
            for part in parts:
                part.fail(error)
        except asyncio.CancelledError:
            for part in parts:
                part.abandon()
            raise
        finally:
            self._end(turn)

    async def _run_apart(self, parts: Iterable[PartT], run: Callable[[PartT], Awaitable[None]]) -> None:
        """Runs each of ``parts`` by itself; what that raises, its callers receive, and the others go on."""

        async def run_part(part: PartT) -> None:
            try:
                await run(part)
            except Exception as error:  # noqa: BLE001 - its callers receive it
                part.fail(error)

        await self._apart.run(parts, run_part)

    async def _gather(self) -> None:
        """Lets calls that have arrived queue their writes, when several arrive at a time."""
        for _ in range(GATHER_TICKS if self._last_was_batch else 0):
            await asyncio.sleep(0)

    def _watch(self, turn: Turn, conversations: Iterable[str]) -> None:
        """Finds out when a turn becomes slow."""
        turn.conversations = set(conversations)
        turn.timer = asyncio.get_running_loop().call_later(SLOW_SECONDS, self._mark_slow, turn)

    def _mark_slow(self, turn: Turn) -> None:
        """Lets the next turn begin."""
        if self._slow >= MAX_SLOW:
            self._watch(turn, turn.conversations)
            return
        turn.slow = True
        self._slow += 1
        self._turn = None
        self._on_slow(turn)
        self._start_turn()

    def _end(self, turn: Turn) -> None:
        if turn.timer is not None:
            turn.timer.cancel()
        if turn.slow:
            self._slow -= 1
            self._on_slow_end(turn)
        else:
            self._turn = None
        self._start_turn()
