"""Several processes on one address: the parent, which starts, watches and ends them, and the worker.

A worker is an interpreter of its own, never a fork (grpc/grpc#13873, ADR 14). The two talk through its standard
streams:

* Input: one line, the settings it is given; arguments and environment would show the database's password.
  The end of the input is the end of the parent, however that came, and the worker drains and ends too.
* Output: a line `null` once it serves, or a line with the reason why it cannot.

Every worker listens on the address with SO_REUSEPORT, and the kernel deals new connections out among them.
"""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import structlog

from server.app.database import provision_database
from server.app.reserved_port import reserved
from server.errors import OperatorError
from server.settings.addresses import Address
from server.settings.service import Settings

log = structlog.get_logger(__name__)

_TRIES = 3  # of a worker that dies without a reason before all have served once
_STEADY = 60.0  # seconds of service after which earlier failures are forgotten
_SHORTEST, _LONGEST = 0.25, 30.0  # seconds between the end of a worker and the next start
_LONGEST_LINE = 16 * 1024 * 1024  # bytes: a policy may have many mistakes
_MARGIN = 15.0  # seconds beyond the grace in which a worker refuses calls, closes its pool and ends


class WorkersFailed(OperatorError):
    """The workers cannot serve; the text is for the operator."""


@dataclass
class RestartBackoff:
    """How often a worker has ended in a row."""

    count: int = 0

    def pause(self, served: float) -> float:
        """Seconds until the next start of one that ended after ``served`` seconds of service."""
        self.count = 1 if served >= _STEADY else self.count + 1
        return min(_SHORTEST * 2.0 ** min(self.count - 1, 10), _LONGEST)


@dataclass
class Worker:
    """A process, from its start to its end."""

    number: int
    process: Process
    serves_since: float | None = None
    reload_missed: bool = False

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, unless it has ended."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def reload(self) -> None:
        """Has it read its policy again, as soon as it can: before it serves, the signal could end it."""
        if self.serves_since is None:
            self.reload_missed = True
        else:
            self.send(signal.SIGHUP)

    def serves(self, now: float) -> None:
        """Notes that it has begun to."""
        self.serves_since = now
        if self.reload_missed:
            self.send(signal.SIGHUP)


@dataclass(frozen=True)
class End:
    """How a worker ended, or that it could not be started."""

    pid: int | None = None
    code: int | None = None  # negative: the signal that ended it
    served: float = 0.0  # seconds
    problem: str | None = None  # in its own words


class Workers:
    """As many workers as wanted, each started again when it ends."""

    def __init__(
        self, addresses: tuple[Address, ...], name: str, count: int, start: Callable[[int], Any], patience: float
    ) -> None:
        """``start`` makes the process of a number; ``patience``: seconds from SIGTERM to SIGKILL."""
        self.addresses = addresses
        self.name = name  # of the database
        self._count = count
        self._start = start
        self._patience = patience
        self._running: dict[int, Worker] = {}
        self._complete = asyncio.Event()  # all have served at the same time
        self.waits_for = ""  # each worker says in its log what it waits for

    def reload(self) -> None:
        """Has all read their policy again; safe in a signal handler."""
        for worker in self._running.values():
            worker.reload()

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Open once all serve; leaving ends them.

        Raises:
            WorkersFailed: One cannot serve; only before all have.
        """
        try:
            async with asyncio.TaskGroup() as group:
                keepers = [group.create_task(self._keep(number)) for number in range(self._count)]
                await self._complete.wait()
                yield
                for keeper in keepers:
                    keeper.cancel()
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            await self._end()

    async def _keep(self, number: int) -> None:
        """Runs the worker of this number for ever."""
        failures = RestartBackoff()
        while True:
            end = await self._life(number)
            pause = failures.pause(end.served)
            if not self._complete.is_set():
                _give_up_if_hopeless(number, end, failures)
            told = {"problem": end.problem} if end.problem else {}
            log.warning("worker ended", worker=number, pid=end.pid, exit_code=end.code, again_in=pause, **told)
            await asyncio.sleep(pause)

    async def _life(self, number: int) -> End:
        """Starts a worker and sees it to its end."""
        try:
            worker = self._running[number] = Worker(number, await self._start(number))
        except OSError as error:  # no memory for one more process: later there may be
            return End(problem=str(error))
        log.info("worker started", worker=number, pid=worker.process.pid)
        try:
            problem = await self._listen_to(worker)
        except ValueError:  # half a line, or what is no status at all: an end like any other
            problem = "It broke off in the middle of what it had to say."
            worker.send(signal.SIGKILL)
        code = await worker.process.wait()
        del self._running[number]
        return End(worker.process.pid, code, _now() - (worker.serves_since or _now()), problem)

    async def _listen_to(self, worker: Worker) -> str | None:
        """Takes in what it says until it ends; what kept it from serving, if it has told."""
        problem = None
        assert worker.process.stdout is not None
        async for line in worker.process.stdout:
            problem = json.loads(line)
            if problem is None:
                worker.serves(_now())
                if sum(each.serves_since is not None for each in self._running.values()) == self._count:
                    self._complete.set()
        return problem

    async def _end(self) -> None:
        """SIGTERM to all, time for their running calls, SIGKILL to the rest."""
        ends = {asyncio.create_task(each.process.wait()): each for each in self._running.values()}
        if not ends:
            return
        for worker in ends.values():
            worker.send(signal.SIGTERM)
        _, late = await asyncio.wait(ends, timeout=self._patience)
        for worker in (ends[task] for task in late):
            log.warning("worker killed: it did not end in time", worker=worker.number, pid=worker.process.pid)
            worker.send(signal.SIGKILL)
        await asyncio.wait(ends)


def _give_up_if_hopeless(number: int, end: End, failures: RestartBackoff) -> None:
    if end.problem:
        raise WorkersFailed(end.problem)
    if failures.count == _TRIES:
        raise WorkersFailed(
            f"Worker {number} ended {_TRIES} times before the service was up, at last with exit code {end.code}."
        )


def _now() -> float:
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def supervise_workers(settings: Settings) -> AsyncIterator[Workers]:
    """The whole service, open once every worker serves; leaving drains them, and then stops a private PostgreSQL.

    Raises:
        WorkersFailed: In the words of the worker that could not start.
        StartFailed: The address cannot be used.
    """
    with ExitStack() as stack:
        addresses = tuple(stack.enter_context(reserved(listen)) for listen in settings.listen)
        async with provision_database(settings) as (url, name):
            given = {"listen": [*map(str, addresses)], "database_url": url, "workers": settings.workers}
            job = json.dumps(given).encode()
            patience = settings.grace_seconds + _MARGIN
            workers = Workers(addresses, name, settings.workers, lambda number: _started(number, job), patience)
            async with workers.kept():
                yield workers


async def _started(number: int, job: bytes) -> Process:
    """A worker's process, with its job; it finds our modules where we found them."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "server.app.worker", str(number)),
        stdin=PIPE,
        stdout=PIPE,
        limit=_LONGEST_LINE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,  # Ctrl-C is for the parent alone
    )
    assert process.stdin is not None
    process.stdin.write(job + b"\n")  # no need to drain: it is short, and a process that has ended is seen to
    return process
