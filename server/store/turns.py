"""Turns: statements that run one at a time, unless one is slow (ADR 11, 23).

While a statement runs, writes queue for the next one, which then runs them all. A statement that takes longer than
`SLOW_SECONDS` delays nobody: the next one runs beside it.
"""

import asyncio
from collections.abc import Coroutine, Sequence

GATHER_TICKS = 16  # of the event loop, in which writes queue before a statement
SLOW_SECONDS = 0.02  # from a statement's start until the next one may run beside it
MAX_SLOW = 3  # slow statements beside the one that is not


class Turn:
    """A statement of the queue; while it is not slow, no other one runs."""

    __slots__ = ("conversations", "slow", "timer")

    def __init__(self) -> None:
        self.conversations: Sequence[str] = ()
        self.slow = False
        self.timer: asyncio.TimerHandle | None = None


class Turns:
    """Gives the writes of a queue their turns; a subclass has the queue."""

    def __init__(self) -> None:
        self._turn: Turn | None = None
        self._slow = 0  # turns that are slow
        self._last_was_batch = False  # whether the last statement was for many
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def _has_queued(self) -> bool:
        """Whether a write waits for a turn."""
        raise NotImplementedError

    async def _run_queued(self, turn: Turn) -> None:
        """Runs what waits in one statement, watches ``turn`` meanwhile, and answers every caller."""
        raise NotImplementedError

    def _on_slow(self, turn: Turn) -> None:
        """Called when a turn has become slow, before the next one starts; by default does nothing."""

    def _on_slow_end(self, turn: Turn) -> None:
        """Called when a slow turn has ended; by default does nothing."""

    def _start_turn(self) -> None:
        """Runs the queue, unless a turn runs that is not slow."""
        if self._turn is None and self._has_queued:
            self._turn = Turn()
            self._start(self._run_turn(self._turn))

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_turn(self, turn: Turn) -> None:
        try:
            await self._gather()
            await self._run_queued(turn)
        finally:
            self._end(turn)

    async def _gather(self) -> None:
        """Lets calls that have arrived queue their writes, when several arrive at a time."""
        for _ in range(GATHER_TICKS if self._last_was_batch else 0):
            await asyncio.sleep(0)

    def _watch(self, turn: Turn, conversations: Sequence[str]) -> None:
        """Finds out when a turn becomes slow."""
        turn.conversations = conversations
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
