"""Several processes on one address: the parent starts workers, restarts those that end, and stops them.

A worker is an interpreter of its own, never a fork (grpc/grpc#13873, ADR 14). The two communicate through the
worker's standard streams:

* Input: one line of JSON with settings, because arguments and environment would show the database's password.
  The end of the input means that the parent has ended, for whatever reason; the worker then drains and ends too.
* Output: the line `null` once the worker serves, or a line with the reason why it cannot.

Every worker listens on the address with SO_REUSEPORT, and the kernel distributes new connections among them.
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
from functools import partial
from typing import Any

import structlog

from server.app.database import provision_database
from server.app.reserved_port import reserved
from server.errors import OperatorError
from server.settings.addresses import Address
from server.settings.service import Settings

log = structlog.get_logger(__name__)

_MAX_STARTS = 3  # of a worker that ends without a reason before all workers have served at the same time
_RESET_SECONDS = 60.0  # of service, after which earlier failures do not count
_MIN_BACKOFF, _MAX_BACKOFF = 0.25, 30.0  # seconds between the end of a worker and its next start
_MAX_LINE_BYTES = 16 * 1024 * 1024  # a policy may have many mistakes
_MARGIN = 15.0  # seconds beyond the grace in which a worker refuses calls, closes its pool and ends


class WorkersFailed(OperatorError):
    """The workers cannot serve; the text is for the operator."""


@dataclass
class RestartBackoff:
    """The growing pause between the starts of one worker.

    Attributes:
        count: How often the worker has ended in a row.
    """

    count: int = 0

    def pause(self, served: float) -> float:
        """Returns the seconds to wait before the next start of a worker that ended after ``served`` seconds."""
        self.count = 1 if served >= _RESET_SECONDS else self.count + 1
        return min(_MIN_BACKOFF * 2.0 ** min(self.count - 1, 10), _MAX_BACKOFF)


@dataclass
class Worker:
    """A process from its start to its end.

    Attributes:
        serves_since: The loop's time at which it began to serve; None before.
        reload_missed: Whether a reload was asked for before.
    """

    number: int
    process: Process
    serves_since: float | None = None
    reload_missed: bool = False

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, unless the process has ended."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def reload(self) -> None:
        """Has the worker read its policy again once it serves: before, the signal could end it."""
        if self.serves_since is None:
            self.reload_missed = True
        else:
            self.send(signal.SIGHUP)

    def serves(self, now: float) -> None:
        """Notes that the worker has begun to serve."""
        self.serves_since = now
        if self.reload_missed:
            self.send(signal.SIGHUP)


@dataclass(frozen=True)
class WorkerExit:
    """How a worker ended, or that it could not be started.

    Attributes:
        code: The exit code; negative for the signal that ended the process.
        served: Seconds of service.
        problem: Why the worker could not serve, as it reported.
    """

    pid: int | None = None
    code: int | None = None
    served: float = 0.0
    problem: str | None = None


class Workers:
    """A fixed number of workers, each started again when it ends.

    Args:
        addresses: What the workers serve.
        name: Of the database, for people.
        count: How many workers.
        start: Starts the process of a number.
        grace: Seconds from SIGTERM to SIGKILL.

    Attributes:
        waits_for: Always '': each worker logs what it waits for.
    """

    def __init__(
        self, addresses: tuple[Address, ...], name: str, count: int, start: Callable[[int], Any], grace: float
    ) -> None:
        self.addresses = addresses
        self.name = name
        self._count = count
        self._start = start
        self._grace = grace
        self._running: dict[int, Worker] = {}
        self._complete = asyncio.Event()  # all have served at the same time
        self.waits_for = ""

    def reload(self) -> None:
        """Has all workers read their policy again; safe in a signal handler."""
        for worker in self._running.values():
            worker.reload()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Runs the workers: the context opens once all of them serve, and leaving it ends them.

        Raises:
            WorkersFailed: A worker cannot serve; only before all of them have.
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
        """Starts the worker of this number again and again, until it is cancelled."""
        failures = RestartBackoff()
        while True:
            end = await self._run_once(number)
            pause = failures.pause(end.served)
            if not self._complete.is_set():
                _raise_if_hopeless(number, end, failures)
            reported = {"problem": end.problem} if end.problem else {}
            log.warning("worker ended", worker=number, pid=end.pid, exit_code=end.code, again_in=pause, **reported)
            await asyncio.sleep(pause)

    async def _run_once(self, number: int) -> WorkerExit:
        """Starts a worker and waits for its end."""
        try:
            worker = self._running[number] = Worker(number, await self._start(number))
        except OSError as error:  # such as no memory for another process, which may be there later
            return WorkerExit(problem=str(error))
        log.info("worker started", worker=number, pid=worker.process.pid)
        try:
            problem = await self._read_reports(worker)
        except ValueError:  # half a line, or what is no status at all: an end like any other
            problem = "It broke off in the middle of what it had to say."
            worker.send(signal.SIGKILL)
        code = await worker.process.wait()
        del self._running[number]
        return WorkerExit(worker.process.pid, code, _now() - (worker.serves_since or _now()), problem)

    async def _read_reports(self, worker: Worker) -> str | None:
        """Reads the lines of a worker until it ends; returns why it could not serve, if it reported that."""
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
        """Sends SIGTERM to all workers, waits for their calls in flight, and sends SIGKILL to the rest."""
        ends = {asyncio.create_task(each.process.wait()): each for each in self._running.values()}
        if not ends:
            return
        for worker in ends.values():
            worker.send(signal.SIGTERM)
        _, late = await asyncio.wait(ends, timeout=self._grace)
        for worker in (ends[task] for task in late):
            log.warning("worker killed: it did not end in time", worker=worker.number, pid=worker.process.pid)
            worker.send(signal.SIGKILL)
        await asyncio.wait(ends)


def _raise_if_hopeless(number: int, end: WorkerExit, failures: RestartBackoff) -> None:
    if end.problem:
        raise WorkersFailed(end.problem)
    if failures.count == _MAX_STARTS:
        raise WorkersFailed(
            f"Worker {number} ended {_MAX_STARTS} times before the service was up, at last with exit code {end.code}."
        )


def _now() -> float:
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def supervise_workers(settings: Settings) -> AsyncIterator[Workers]:
    """Runs the whole service in several processes; the context opens once every worker serves.

    Leaving it drains the workers, and then stops the private PostgreSQL if there is one.

    Raises:
        WorkersFailed: A worker cannot serve; the text is what it reported.
        StartFailed: An address cannot be used.
    """
    with ExitStack() as stack:
        addresses = tuple(stack.enter_context(reserved(listen)) for listen in settings.listen)
        async with provision_database(settings) as (url, name):
            given = {
                "listen": [*map(str, addresses)],
                "http_listen": [str(stack.enter_context(reserved(listen))) for listen in settings.http_listen],
                "database_url": url,
                "workers": settings.workers,
            }
            startup_message = json.dumps(given).encode() + b"\n"
            grace = settings.grace_seconds + _MARGIN
            workers = Workers(addresses, name, settings.workers, partial(_start, startup_message), grace)
            async with workers.running():
                yield workers


async def _start(startup_message: bytes, number: int) -> Process:
    """Starts a worker, which finds modules in the same places as this process, and sends it its settings."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "server.app.worker", str(number)),
        stdin=PIPE,
        stdout=PIPE,
        limit=_MAX_LINE_BYTES,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,  # Ctrl-C is for the parent alone
    )
    assert process.stdin is not None
    process.stdin.write(startup_message)  # not drained: it is short, and the end of the process is noticed anyway
    return process
