"""The proxy of the fault tests does what it says: a fault that does not happen would prove nothing."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.support.tcp_proxy import Direction, TcpProxy, tcp_proxy


@pytest.fixture
async def proxy(postgres: str) -> AsyncIterator[TcpProxy]:
    """A proxy in front of PostgreSQL."""
    async with tcp_proxy(postgres) as made:
        yield made


async def ask(connection: asyncpg.Connection, seconds: float = 0.3) -> int:
    """The answer of the server, or TimeoutError."""
    return int(await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(connection.fetchval("SELECT 1"))), seconds))


async def test_it_passes_bytes_on(proxy: TcpProxy, postgres: str) -> None:
    """Without a fault a connection works as without the proxy, and is counted."""
    connection = await asyncpg.connect(proxy.url(postgres))
    assert (1, 1) == (await ask(connection, 5), proxy.connections)
    await connection.close()


async def test_a_frozen_connection_goes_on(proxy: TcpProxy, postgres: str) -> None:
    """A frozen network loses nothing: the answer comes when it thaws."""
    connection = await asyncpg.connect(proxy.url(postgres))
    proxy.freeze()
    asked = asyncio.ensure_future(connection.fetchval("SELECT 7"))
    done, _ = await asyncio.wait([asked], timeout=0.3)
    assert not done
    await proxy.heal()
    assert 7 == await asyncio.wait_for(asked, 5)
    await connection.close()


async def test_a_black_hole_accepts_nobody(proxy: TcpProxy, postgres: str) -> None:
    """No connection is made, and none is refused, until it heals."""
    await proxy.black_hole()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.open_connection("127.0.0.1", proxy.port), 0.5)
    assert 0 == proxy.accepted
    await proxy.heal()
    connection = await asyncpg.connect(proxy.url(postgres))
    await connection.close()


async def test_refused_and_reset(proxy: TcpProxy, postgres: str) -> None:
    """A refusal ends open connections and makes no new ones; after it all is as before, on the same port."""
    connection = await asyncpg.connect(proxy.url(postgres))
    await proxy.refuse()
    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)):
        await asyncio.wait_for(connection.fetchval("SELECT 1"), 5)
    with pytest.raises(ConnectionRefusedError):
        await asyncpg.connect(proxy.url(postgres))
    await proxy.heal()
    connection = await asyncpg.connect(proxy.url(postgres))
    await connection.close()


async def test_a_swallowed_answer(proxy: TcpProxy, postgres: str) -> None:
    """What the server was told is done although its answer never arrives."""
    connection, other = await asyncpg.connect(proxy.url(postgres)), await asyncpg.connect(postgres)
    lock = await connection.prepare("SELECT pg_advisory_lock(7, 7)")
    proxy.swallow.add(Direction.DOWN)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(lock.fetch())), 0.3)
    assert not await other.fetchval("SELECT pg_try_advisory_lock(7, 7)")
    connection.terminate()
    await other.close()


async def test_a_lost_answer(proxy: TcpProxy, postgres: str) -> None:
    """Of the requests with certain bytes each second one is done and not answered, and its connection is reset."""
    proxy.lose_answers(b"lose me", every=2)
    connection, other = await asyncpg.connect(proxy.url(postgres)), await asyncpg.connect(postgres)
    notify = await connection.prepare("SELECT pg_notify('lost', $1)")
    await other.add_listener("lost", lambda *told: heard.append(told[3]))
    heard: list[str] = []
    await notify.fetch("lose me 1")
    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)):
        await asyncio.wait_for(notify.fetch("lose me 2"), 5)
    await other.fetchval("SELECT 1")
    assert (["lose me 1", "lose me 2"], 1) == (heard, proxy.lost)
    await other.close()


async def test_a_half_closed_connection_ends(proxy: TcpProxy, postgres: str) -> None:
    """PostgreSQL ends a session whose client will say no more."""
    connection = await asyncpg.connect(proxy.url(postgres))
    proxy.half_close(Direction.UP)
    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)):
        await asyncio.wait_for(connection.fetchval("SELECT 1"), 5)
    connection.terminate()


async def test_delay(proxy: TcpProxy, postgres: str) -> None:
    """Each way takes as long as it is told to."""
    connection = await asyncpg.connect(proxy.url(postgres))
    proxy.delay_seconds = 0.2
    with pytest.raises(TimeoutError):
        await ask(connection, 0.3)
    connection.terminate()
