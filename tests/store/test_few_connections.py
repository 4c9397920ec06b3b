"""A PostgreSQL that takes fewer connections than the pool would make: the pool goes on with those that it gets."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from server.errors import StoreUnavailable
from server.observability.stats import StoreStats
from server.store.connection import slots
from server.store.connection.bounds import Bounds
from server.store.connection.database import Database
from server.store.connection.opening import open_database
from server.store.connection.slots import ConnectionSlots
from server.store.sql.statement import Statement
from tests.support.postgres import execute

SLEEP = Statement("SELECT pg_sleep(0.02)", (), "read")
SIZE, LIMIT = 8, 3


@asynccontextmanager
async def limited(postgres: str, limit: int = LIMIT) -> AsyncIterator[tuple[Database, str]]:
    """A pool of `SIZE`, as a role that may have ``limit`` connections; and the name of the role."""
    role = f"limited_{time.monotonic_ns()}"
    await execute(postgres, f"CREATE ROLE {role} LOGIN CONNECTION LIMIT {limit}")
    parts = urlsplit(postgres)
    host = parts.netloc.rpartition("@")[2]
    url = urlunsplit((parts.scheme, f"{role}@{host}", parts.path, parts.query, ""))
    try:
        async with open_database(url, SIZE, Bounds()) as database:
            yield database, role
    finally:
        await execute(postgres, f"DROP ROLE {role}")


async def test_statements_share_the_connections_that_there_are(postgres: str) -> None:
    """No statement fails because the pool cannot have as many connections as it may: it waits for one that works."""
    async with limited(postgres) as (database, _):
        for _ in range(3):
            await asyncio.gather(*(database.fetch(SLEEP, {}) for _ in range(4 * SIZE)))
        assert LIMIT == database.pool.get_size()


async def test_the_pool_grows_again(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A while after the limit was raised, the pool has all its connections."""
    monkeypatch.setattr(slots, "WITHHELD_SECONDS", 0.3)
    async with limited(postgres) as (database, role):
        await asyncio.gather(*(database.fetch(SLEEP, {}) for _ in range(4 * SIZE)))
        await execute(postgres, f"ALTER ROLE {role} CONNECTION LIMIT 20")
        await asyncio.sleep(0.4)
        await asyncio.gather(*(database.fetch(SLEEP, {}) for _ in range(4 * SIZE)))
        assert SIZE == database.pool.get_size()


async def test_no_connection_at_all(postgres: str) -> None:
    """With no connection every statement is refused within the usual time, and the last slot stays."""
    async with limited(postgres, limit=0) as (database, _):
        began = time.monotonic()
        results = await asyncio.gather(*(database.fetch(SLEEP, {}) for _ in range(2 * SIZE)), return_exceptions=True)
        assert {StoreUnavailable} == {type(each) for each in results}
        assert time.monotonic() - began < 1.5


@pytest.mark.parametrize(("size", "most"), [(1, 0), (2, 1), (8, 7)])
async def test_one_slot_stays(size: int, most: int) -> None:
    """However often a connection is refused, one statement runs at a time, whether or not it may wait for a row."""
    found = ConnectionSlots(size, 0.05, StoreStats())
    taken = [number < size - max(1, size // 4) or size == 1 for number in range(size)]
    for waits in taken:
        await found.acquire(waits=waits)
    assert most == sum(found.withhold() for _ in range(2 * size))
    for waits in taken:
        found.release(waits=waits)
    for waits in (False, True):
        await found.acquire(waits=waits)
        with pytest.raises(StoreUnavailable):
            await found.acquire(waits=waits)
        found.release(waits=waits)


async def test_a_slot_that_is_withheld_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slot of a statement that runs is left out when it ends, and is there again later."""
    monkeypatch.setattr(slots, "WITHHELD_SECONDS", 1.0)
    found = ConnectionSlots(2, 0.05, StoreStats())
    for _ in range(2):
        await found.acquire(waits=False)
    assert found.withhold()
    found.release(waits=False)
    with pytest.raises(StoreUnavailable):
        await found.acquire(waits=False)
    await asyncio.sleep(1.1)
    await found.acquire(waits=False)


def test_the_error_is_that_of_postgresql() -> None:
    """What the role's limit raises is what a full server raises."""
    assert "53300" == asyncpg.TooManyConnectionsError.sqlstate
