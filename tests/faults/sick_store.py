"""A PostgreSQL that answers, and cannot be used."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import chain

import asyncpg

from tests.faults.history import Attempt
from tests.faults.postgres import ROLE, Postgres
from tests.faults.scene import Scene
from tests.support.tcp_proxy import Upstream

SESSIONS_ENDED = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'"
SESSIONS_COUNTED = f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{ROLE}'"
OTHERS = "others"
_RELOAD = "SELECT pg_reload_conf()"
POOL_SECONDS = 1.1  # in which a call that finds no connection is told so
_SLACK = 0.3  # seconds, of the machine
_STALLED = 0.5  # seconds: an append to another conversation takes no longer behind a lock


@asynccontextmanager
async def login_refused(scene: Scene) -> AsyncIterator[None]:
    """The service's role may not log in any more, and its sessions are ended (28000)."""
    await scene.postgres.execute(f"ALTER ROLE {ROLE} NOLOGIN", SESSIONS_ENDED)
    yield
    await scene.postgres.execute(f"ALTER ROLE {ROLE} LOGIN")


@asynccontextmanager
async def connections_exhausted(scene: Scene) -> AsyncIterator[None]:
    """Others hold every connection there may be (53300)."""
    held: list[asyncpg.Connection] = []
    watching = await scene.postgres.connect()
    try:
        await watching.execute(f"CREATE ROLE {OTHERS} LOGIN")
        while await watching.fetchval(SESSIONS_COUNTED):
            await watching.execute(SESSIONS_ENDED)
            with suppress(asyncpg.TooManyConnectionsError):
                while True:
                    held.append(await scene.postgres.connect(user=OTHERS))
        yield
    finally:
        await asyncio.gather(*(each.close() for each in held))
        await watching.execute(f"DROP ROLE {OTHERS}")
        await watching.close()


@asynccontextmanager
async def read_only(scene: Scene) -> AsyncIterator[None]:
    """Every transaction is read-only, as some managed databases make it when their disk is nearly full (25006)."""
    await scene.postgres.execute("ALTER SYSTEM SET default_transaction_read_only = on", _RELOAD)
    yield
    await scene.postgres.execute("ALTER SYSTEM RESET default_transaction_read_only", _RELOAD)


@asynccontextmanager
async def disk_full(scene: Scene) -> AsyncIterator[None]:
    """The tables' disk has no byte left (53100); the log has a disk of its own."""
    assert scene.disk is not None
    ballast = scene.disk / "ballast"
    with ballast.open("wb") as file:
        try:
            while True:
                os.write(file.fileno(), bytes(64 * 1024))
        except OSError:
            pass
    yield
    ballast.unlink()


@asynccontextmanager
async def failed_over(scene: Scene) -> AsyncIterator[None]:
    """The primary is killed, its synchronous standby is promoted, and the address leads there."""
    standby = scene.standby
    assert standby is not None
    scene.postgres.kill()
    await asyncio.sleep(0.5)  # in which somebody notices
    await standby.execute("SELECT pg_promote()")
    _lead_to(scene, standby)
    yield


@asynccontextmanager
async def switched_over(scene: Scene) -> AsyncIterator[None]:
    """As `failed_over`, but the old primary lives on, read-only, and so do all sessions on it."""
    standby = scene.standby
    assert standby is not None
    old = scene.postgres
    await old.execute("ALTER SYSTEM SET default_transaction_read_only = on", _RELOAD)
    await asyncio.sleep(0.5)
    await standby.execute("SELECT pg_promote()")
    _lead_to(scene, standby)
    yield


def _lead_to(scene: Scene, postgres: Postgres) -> None:
    scene.retired.append(scene.postgres)
    scene.postgres = postgres
    scene.store_proxy.upstream = Upstream.of(postgres.own_url)


@asynccontextmanager
async def led_to_standby(scene: Scene) -> AsyncIterator[None]:
    """The address leads to a standby for a while, which answers reads alone."""
    assert scene.standby is not None
    primary = scene.store_proxy.upstream
    scene.store_proxy.upstream = Upstream.of(scene.standby.own_url)
    scene.store_proxy.reset()
    yield
    scene.store_proxy.upstream = primary
    scene.store_proxy.reset()


@asynccontextmanager
async def conversation_locked(scene: Scene) -> AsyncIterator[None]:
    """Somebody holds the lock of one conversation; appends to the others do not wait for it."""
    locked = scene.workload.tenants[0].shared
    connection = await scene.postgres.connect(scene.postgres.database)
    began = time.monotonic()
    try:
        async with connection.transaction():
            await connection.execute("SELECT 1 FROM conversations WHERE id = $1 FOR UPDATE", locked)
            yield
            ended = time.monotonic()
    finally:
        await connection.close()
    appends = [each for each in scene.workload.history.appends if each.conversation_id != locked]
    attempts = chain.from_iterable(append.attempts for append in appends)
    worst = _longest(attempts, began, ended, lambda _: True)
    scene.facts["longest append elsewhere"] = f"{worst:.2f} s"
    scene.expect(worst <= _STALLED, f"an append to another conversation took {worst:.2f} s")


@asynccontextmanager
async def pool_exhausted(scene: Scene) -> AsyncIterator[None]:
    """Every statement waits for a lock, so no connection becomes free: calls are told so in time."""
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        connection = await scene.postgres.connect(scene.postgres.database)
        stack.push_async_callback(connection.close)
        await stack.enter_async_context(connection.transaction())
        await connection.execute("LOCK TABLE conversations IN ACCESS EXCLUSIVE MODE")
        yield
    ended = time.monotonic()
    refused = [each for each in scene.workload.history.attempts if began < each.began < ended]
    worst = _longest(refused, began, ended, lambda attempt: attempt.code == "UNAVAILABLE")
    scene.facts["longest refusal"] = f"{worst:.2f} s"
    scene.expect(worst <= POOL_SECONDS + _SLACK, f"UNAVAILABLE for want of a connection came after {worst:.2f} s")
    scene.expect(worst > 0, "no call was refused: the row shows nothing")


def _longest(attempts: object, began: float, ended: float, counts: Callable[[Attempt], bool]) -> float:
    times = [
        attempt.ended - attempt.began
        for attempt in attempts  # type: ignore[attr-defined]
        if began <= attempt.began <= ended and attempt.ended and counts(attempt)
    ]
    return max(times, default=0.0)
