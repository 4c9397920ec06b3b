"""Background tasks that cannot die unseen: each is told, counted and started again when it ends.

A bare `asyncio.create_task` keeps the exception of a task that nobody awaits until the task is collected: a process
whose probe has died would go on serving what it last knew.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias

import structlog

from server.observability.logs import origin_of

log = structlog.get_logger(__name__)

Work: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

_MIN_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.25, 10.0  # from the end of a task to its next start
_STEADY_SECONDS = 60.0  # after which earlier ends are forgotten


class TaskSupervisor:
    """Runs the background tasks of a process.

    Attributes:
        failures: How often each task has ended although it should not, by its name.
    """

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()

    @asynccontextmanager
    async def running(self, name: str, work: Work) -> AsyncIterator[None]:
        """Keeps a task running for as long as this is open, whatever it raises and whoever cancels it.

        Args:
            name: A fixed word for the log and for metrics.
            work: Is called for each start; what it returns should run until it is cancelled.
        """
        self.failures[name] += 0  # a counter that is missing looks like one that was never wrong
        task = _SupervisedTask(name, work, self.failures)
        task.start()
        try:
            yield
        finally:
            await task.stop()


class _SupervisedTask:
    """One task and its restarts, which a callback makes: there is no second task that could die."""

    def __init__(self, name: str, work: Work, failures: Counter[str]) -> None:
        self._name = name
        self._work = work
        self._failures = failures
        self._loop = asyncio.get_running_loop()
        self._in_a_row = 0  # ends without a steady run in between
        self._stopping = False
        self._restart: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None]
        self._began: float

    def start(self) -> None:
        self._began = self._loop.time()
        self._task = self._loop.create_task(self._work(), name=self._name)
        self._task.add_done_callback(self._on_end)

    async def stop(self) -> None:
        self._stopping = True
        if self._restart is not None:
            self._restart.cancel()
        self._task.cancel()
        await asyncio.wait([self._task])

    def _on_end(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if self._stopping and error is None:
            return
        self._failures[self._name] += 1
        pause = None
        if not self._stopping:
            pause = self._next_pause()
            self._restart = self._loop.call_later(pause, self.start)
        with suppress(Exception):  # a log that cannot be written keeps no task from its next start
            log.error("background task ended", task=self._name, again_in=pause, **_origin(error))

    def _next_pause(self) -> float:
        steady = self._loop.time() - self._began >= _STEADY_SECONDS
        self._in_a_row = 1 if steady else self._in_a_row + 1
        return float(min(_MIN_PAUSE_SECONDS * 2 ** min(self._in_a_row - 1, 10), _MAX_PAUSE_SECONDS))


def _origin(error: BaseException | None) -> dict[str, object]:
    return origin_of(error) if error else {"error": None}
