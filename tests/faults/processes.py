"""Processes that are killed, stopped or replaced."""

import asyncio
import os
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.faults.history import Append
from tests.faults.http_callers import SdkAppender
from tests.faults.postgres import ROLE
from tests.faults.repeat import repeated
from tests.faults.scene import Scene

_WORKER_SECONDS = 10.0  # in which a worker is started again; the pauses grow when it is killed again and again
_BACKEND = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    f" WHERE usename = '{ROLE}' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1"
)


@asynccontextmanager
async def server_killed(scene: Scene) -> AsyncIterator[None]:
    """The only server is killed, and started again by whoever watches it."""
    await scene.server.kill()
    yield
    await scene.server.start()


@asynccontextmanager
async def worker_killed(scene: Scene) -> AsyncIterator[None]:
    """One of the workers is killed; its parent starts the next, and the other one goes on meanwhile."""
    before = scene.server.workers()
    os.kill(scene.random.choice(before), signal.SIGKILL)
    yield
    end = time.monotonic() + _WORKER_SECONDS
    while len(scene.server.workers()) < len(before) and time.monotonic() < end:  # noqa: ASYNC110 - polls /proc
        await asyncio.sleep(0.1)
    scene.expect(len(scene.server.workers()) == len(before), "a worker that was killed was not started again")


@asynccontextmanager
async def server_stopped(scene: Scene) -> AsyncIterator[None]:
    """The server gets no time of the processor, as on a machine that swaps or migrates."""
    scene.server.send(signal.SIGSTOP)
    try:
        yield
    finally:
        scene.server.send(signal.SIGCONT)


@asynccontextmanager
async def servers_restarted(scene: Scene) -> AsyncIterator[None]:
    """One server after the other is drained, ended and replaced."""
    for server in scene.servers:
        await server.end()
        await server.start()
        scene.expect(server.exits[-1] == 0, f"a server that was asked to end exited with {server.exits[-1]}")
    yield


@asynccontextmanager
async def postmaster_killed(scene: Scene) -> AsyncIterator[None]:
    """PostgreSQL is killed as for want of memory, and later started again: it recovers from its log."""
    scene.postgres.kill()
    yield
    await scene.postgres.gone()
    await scene.postgres.start()


@asynccontextmanager
async def embedded_killed(scene: Scene) -> AsyncIterator[None]:
    """The service's own PostgreSQL is killed; nobody but the service can start it again."""
    scene.postgres.kill()
    yield


@asynccontextmanager
async def postgres_stopped(scene: Scene) -> AsyncIterator[None]:
    """No process of PostgreSQL gets time of the processor."""
    stopped = scene.postgres.pids()
    _send(stopped, signal.SIGSTOP)
    try:
        yield
    finally:
        _send(stopped, signal.SIGCONT)


def _send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@asynccontextmanager
async def backends_terminated(scene: Scene) -> AsyncIterator[None]:
    """Twenty times a second somebody ends one of the service's sessions."""
    connection = await scene.postgres.connect()
    try:
        async with repeated(lambda: connection.execute(_BACKEND), every=0.05):
            yield
    finally:
        await connection.close()


@asynccontextmanager
async def calls_cancelled(scene: Scene) -> AsyncIterator[None]:
    """Callers leave a third of their calls within 10 ms."""
    scene.workload.cancelled = 1 / 3
    yield
    scene.workload.cancelled = 0.0


@asynccontextmanager
async def nothing(_scene: Scene) -> AsyncIterator[None]:
    """Nothing is broken: what callers do is enough."""
    yield


@asynccontextmanager
async def servers_restarted_under_sdks(scene: Scene) -> AsyncIterator[None]:
    """The same, and no call of an SDK with its default retries may fail."""
    async with servers_restarted(scene):
        yield
    callers = defaultdict[str, list[Append]](list)
    for append in scene.workload.history.appends:
        if SdkAppender.__name__ in append.caller:
            callers[append.caller].append(append)
    calls = [call for each in callers.values() for call in each[:-1]]  # the last one of each may not have ended
    failed = [call for call in calls if call.acknowledged == float("inf")]
    scene.facts["calls of SDKs"] = f"{len(calls):,}"
    scene.facts["failed"] = f"{len(failed)}"
    scene.expect(not failed, f"{len(failed)} calls of SDKs failed")
    scene.expect(len(calls) > 100, f"SDKs made {len(calls)} calls: the row shows nothing")
