"""How soon health says that the database cannot be used, and how soon that it can again: with the real periods."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import grpc.aio
import pytest
from structlog.testing import capture_logs

from server.store.sql.statement import Statement
from tests.support.build import create, get
from tests.support.postgres import fresh_database
from tests.support.readiness import FALSE_SECONDS, NOT_SERVING, SERVING, TRUE_SECONDS, wait_for
from tests.support.service import Service, running_service
from tests.support.tcp_proxy import TcpProxy, tcp_proxy


async def freeze(proxy: TcpProxy) -> None:
    """Nothing passes."""
    proxy.freeze()


async def black_hole(proxy: TcpProxy) -> None:
    """Nothing passes, and no connection is made."""
    await proxy.black_hole()


async def refuse(proxy: TcpProxy) -> None:
    """Connections end, and none is made."""
    await proxy.refuse()


@asynccontextmanager
async def callers(service: Service, count: int) -> AsyncIterator[Counter[str]]:
    """As many callers, who read again and again; the codes of their calls, and LATE for each that took too long."""
    codes: Counter[str] = Counter()
    made = await service.stub.CreateConversation(create())

    async def call() -> None:
        while True:
            began = time.monotonic()
            try:
                await service.stub.GetConversation(get(made.id), timeout=8)
                codes["OK"] += 1
            except grpc.aio.AioRpcError as error:
                codes[error.code().name] += 1
            if time.monotonic() - began > FALSE_SECONDS:
                codes["LATE"] += 1
            await asyncio.sleep(0.02)

    tasks = [asyncio.create_task(call()) for _ in range(count)]
    yield codes
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def go_through(
    postgres: str, template: str, fault: Callable[[TcpProxy], Awaitable[None]], count: int
) -> tuple[float, float, Counter[str]]:
    """Seconds until not ready, and until ready again after the end of the fault; the codes of callers meanwhile."""
    async with (
        fresh_database(postgres, template) as url,
        tcp_proxy(url) as proxy,
        running_service(proxy.url(url)) as service,
        callers(service, count) as codes,
    ):
        await asyncio.sleep(0.3)
        await fault(proxy)
        down = await wait_for(service, NOT_SERVING)
        await asyncio.sleep(0.5)
        await proxy.heal()
        up = await wait_for(service, SERVING)
        assert (await service.stub.CreateConversation(create(), timeout=2)).id
        return down, up, codes


async def test_health_follows_the_database(postgres: str, template: str) -> None:
    """A database that is frozen, out of reach or gone is told within 5 s, with callers and without; its return in 2."""
    rows = [(fault, count) for fault in (freeze, black_hole, refuse) for count in (0, 4)]
    results = await asyncio.gather(*(go_through(postgres, template, *row) for row in rows))
    for (fault, count), (down, up, codes) in zip(rows, results, strict=True):
        assert down <= FALSE_SECONDS, (fault.__name__, count)
        assert up <= TRUE_SECONDS, (fault.__name__, count)
        assert codes.keys() <= {"OK", "UNAVAILABLE"}
        assert (codes["UNAVAILABLE"] > 0) == (count > 0), fault.__name__  # nobody waits for what does not come


async def test_an_outage_is_one_line(postgres: str, template: str) -> None:
    """However many calls fail, the log has one line for the begin of an outage, with the reason."""
    async with (
        fresh_database(postgres, template) as url,
        tcp_proxy(url) as proxy,
        running_service(proxy.url(url)) as service,
        callers(service, 4) as codes,
    ):
        with capture_logs() as lines:
            await proxy.refuse()
            await wait_for(service, NOT_SERVING)
            await asyncio.sleep(1)
        assert codes["UNAVAILABLE"] > 20
    told = [line for line in lines if line["log_level"] == "warning"]
    assert ["not ready: the database cannot be used"] == [line["event"] for line in told]
    assert told[0]["reason"] in ("connection_lost", "connection_refused")


async def test_a_full_pool_is_ready(own_service: Service) -> None:
    """A probe does not queue behind the calls: a service whose connections are all busy is ready."""
    database = own_service.database
    sleep = Statement("SELECT pg_sleep(3)", (), "read")
    busy = asyncio.gather(*(database.fetch(sleep, {}) for _ in range(database.size)))
    async with asyncio.timeout(2):
        while database.in_use < database.size:  # noqa: ASYNC110 - they connect first
            await asyncio.sleep(0.01)
    assert "" == await database.probe()
    assert not busy.done()
    await busy


async def test_probes_share_a_connection(own_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes at the same time leave at most one connection open, not one for each."""
    probe, made = own_service.database._probe, []
    connect = probe._connect

    async def recorded(**options: Any) -> asyncpg.Connection:
        made.append(await connect(**options))
        return made[-1]

    monkeypatch.setattr(probe, "_connect", recorded)
    probe.close()
    assert [""] * 8 == await asyncio.gather(*(own_service.database.probe() for _ in range(8)))
    assert 1 >= len([connection for connection in made if not connection.is_closed()])


async def test_a_slow_database_is_ready_while_it_answers(own_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that is not answered in time says nothing while calls are answered."""

    async def too_late(*_arguments: object, **_options: object) -> bool:
        await own_service.stub.CreateConversation(create())
        raise TimeoutError

    monkeypatch.setattr(own_service.database._probe, "ask", too_late)
    assert "" == await own_service.database.probe()


async def test_a_standby_is_not_ready(own_service: Service) -> None:
    """A database that takes no writes cannot be used, although it answers."""
    name = "SELECT current_database()"
    connection = await asyncpg.connect(own_service.url)
    quoted = f'"{await connection.fetchval(name)}"'
    await connection.execute(f"ALTER DATABASE {quoted} SET default_transaction_read_only = on")
    async with asyncio.timeout(10):
        while "read_only" not in await own_service.database.probe():
            own_service.database._probe.close()  # it may be a connection that was being made at the ALTER
    await connection.execute("SET default_transaction_read_only = off")
    await connection.execute(f"ALTER DATABASE {quoted} RESET default_transaction_read_only")
    await connection.close()
    assert "" == await own_service.database.probe()


async def test_a_probe_leaves_a_connection_that_takes_no_writes(own_service: Service) -> None:
    """The connection of the last time may lead to a primary that was demoted: another one is made."""
    probe = own_service.database._probe
    await probe.ask(disk=False)
    assert not await probe.ask(disk=False)
    assert probe._connection is not None
    await probe._connection.execute("SET default_transaction_read_only = on")
    assert await probe.ask(disk=False)


@pytest.mark.parametrize(("lost", "usable"), [(2, True), (1000, False)])
async def test_a_probe_survives_the_end_of_single_connections(
    own_service: Service,
    monkeypatch: pytest.MonkeyPatch,
    lost: int,
    usable: bool,  # noqa: FBT001
) -> None:
    """A server that ends some connections answers over another one; one that ends all cannot be used."""
    assert "" == await own_service.database.probe()  # the first probe of the service is over
    probe = own_service.database._probe
    connect, left = probe._connect, [lost]

    async def ended(**options: float) -> asyncpg.Connection:
        connection = await connect(**options)
        if left[0]:
            left[0] -= 1
            connection.terminate()
        return connection

    monkeypatch.setattr(probe, "_connect", ended)
    probe.close()
    assert usable == ("" == await own_service.database.probe())


async def test_an_unknown_error_is_not_ready(own_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a probe raises, the database has not answered."""
    database = own_service.database

    async def broken(**_options: object) -> bool:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(database._probe, "ask", broken)
        assert "unexpected (ZeroDivisionError)" in await database.probe()
        assert not database.usable
    async with asyncio.timeout(10):
        while not database.usable:  # noqa: ASYNC110 - health may not have noticed, and still say SERVING
            await asyncio.sleep(0.02)
    assert (await own_service.stub.CreateConversation(create())).id
