"""Connections that break while a statement is on its way."""

import asyncio
import os
import socket
import time

import asyncpg
import pytest

from server.store.connection.bounds import Bounds
from server.store.connection.opening import open_database
from server.store.connection.warm_connections import Connection
from server.store.sql.statement import Statement
from tests.support.loop_errors import collected_loop_errors
from tests.support.tcp_proxy import tcp_proxy

SELECT_1 = Statement("SELECT 1", (), "read")


async def test_a_call_that_is_cancelled_ends_soon(postgres: str) -> None:
    """Where the database does not answer, a cancelled statement does not wait for its own cancellation."""
    async with tcp_proxy(postgres) as proxy, open_database(proxy.url(postgres), 2, Bounds()) as database:
        await database.fetch(SELECT_1, {})
        proxy.freeze()
        call = asyncio.create_task(database.fetch(SELECT_1, {}))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert time.monotonic() - began < 0.6
        await proxy.heal()


async def test_a_call_that_is_cancelled_twice(postgres: str) -> None:
    """A caller that is cancelled again while its connection is released leaves no error that nobody has asked for."""
    with collected_loop_errors() as told:
        async with tcp_proxy(postgres) as proxy, open_database(proxy.url(postgres), 2, Bounds()) as database:
            await database.fetch(SELECT_1, {})
            proxy.freeze()
            call = asyncio.create_task(database.fetch(SELECT_1, {}))
            for _ in range(2):
                await asyncio.sleep(0.05)
                call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await asyncio.sleep(0.5)
            await proxy.heal()
    assert [] == told


async def test_expired_connections_whose_server_is_gone(postgres: str) -> None:
    """The pool closes them beside the next statement: that they are broken is no error that nobody has asked for."""
    with collected_loop_errors() as told:
        async with open_database(postgres, 1, Bounds()) as database:
            pool = database.pool
            async with pool.acquire() as connection:
                sent = connection._con._transport.get_extra_info("socket")
            await pool.expire_connections()
            with socket.socket(fileno=os.dup(sent.fileno())) as same:
                same.shutdown(socket.SHUT_WR)
            await pool.fetch("SELECT 1")
            await asyncio.sleep(0.1)
    assert [] == told


async def test_a_statement_on_a_terminated_connection(postgres: str) -> None:
    """The driver raises AttributeError for a connection that was terminated just then: it is a lost one."""

    async def terminated(connection: Connection) -> list[asyncpg.Record]:
        connection.terminate()
        raise AttributeError("'NoneType' object has no attribute 'bind_execute'")

    async with open_database(postgres, 1, Bounds()) as database:
        with pytest.raises(asyncpg.InterfaceError):
            await database._connections.run(terminated)


async def test_a_defect_is_no_lost_connection(postgres: str) -> None:
    """AttributeError of anything else goes on as it is."""

    async def defective(_connection: Connection) -> list[asyncpg.Record]:
        raise AttributeError("a defect")

    async with open_database(postgres, 1, Bounds()) as database:
        with pytest.raises(AttributeError, match="a defect"):
            await database._connections.run(defective)
        assert 1 == (await database.fetch(SELECT_1, {}))[0][0]


async def test_connections_that_are_taken_while_others_are_released(postgres: str) -> None:
    """A statement that takes an idle connection while others are released does not end the release."""
    async with open_database(postgres, 4, Bounds()) as database:
        await asyncio.gather(*(database.fetch(Statement("SELECT pg_sleep(0.1)", (), "read"), {}) for _ in range(4)))
        warm = database._connections
        count = len(warm._idle)
        assert count >= 2
        release = asyncio.create_task(warm._release_oldest(count))
        await asyncio.sleep(0)  # it waits for its first connection
        taken = [await warm._acquire() for _ in range(count - 1)]
        assert not warm._idle
        await release
        for connection in taken:
            await warm._release(connection)
