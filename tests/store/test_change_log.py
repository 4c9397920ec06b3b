"""The log of changes is turned on and off while writers run, and misses none of them."""

import asyncio
from datetime import timedelta
from secrets import token_hex

import asyncpg
import pytest

from server.store import change_log
from server.store.change_log import ChangesNotTurned
from tests.support.build import append, create, user_message
from tests.support.service import Service

KEEP = timedelta(hours=1)


async def test_every_write_since_it_was_turned_on(own_service: Service) -> None:
    """Writers go on meanwhile; from the floor on each version of a conversation is in the log, once."""
    name = (await own_service.stub.CreateConversation(create())).id
    ends = asyncio.Event()

    async def write() -> None:
        while not ends.is_set():
            await own_service.stub.CreateItems(append(name, user_message()))

    writers = [asyncio.create_task(write()) for _ in range(4)]
    await asyncio.sleep(0.1)
    assert await change_log.turn_on(own_service.url, KEEP)
    await asyncio.sleep(0.2)
    ends.set()
    await asyncio.gather(*writers)
    pool = own_service.database.pool
    newest = await pool.fetchval("SELECT version FROM conversations WHERE id = $1", name)
    rows = await pool.fetch("SELECT * FROM changes ORDER BY position, conversation_id, version")
    sequences = [(row["previous_sequence"], row["last_sequence"]) for row in rows]
    assert rows
    assert rows[-1]["version"] == newest
    assert [after for _, after in sequences[:-1]] == [before for before, _ in sequences[1:]]
    assert rows[0]["position"] >= await pool.fetchval("SELECT floor FROM change_log")


async def test_a_transaction_that_holds_the_table(own_service: Service) -> None:
    """It is waited for in short tries, between which writers go on; then nothing is changed, and it says so."""
    name = (await own_service.stub.CreateConversation(create())).id
    other = await asyncpg.connect(own_service.url)
    try:
        async with other.transaction():
            await other.execute("UPDATE conversations SET version = version WHERE id = $1", "conv_none")
            turning = asyncio.create_task(change_log.turn_on(own_service.url, KEEP, wait_seconds=0.5))
            async with asyncio.timeout(5):
                await own_service.stub.CreateItems(append(name, user_message()))
            with pytest.raises(ChangesNotTurned, match="pg_locks"):
                await turning
    finally:
        await other.close()
    assert not (await change_log.read_status(own_service.url)).is_on
    assert await change_log.turn_on(own_service.url, KEEP)


async def test_a_role_that_does_not_own_the_tables(own_service: Service) -> None:
    """The operator is told that PostgreSQL refuses it, and nothing is changed."""
    pool, role = own_service.database.pool, f"reader_{token_hex(4)}"
    await pool.execute(f"CREATE ROLE {role} LOGIN; GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}")
    try:
        with pytest.raises(ChangesNotTurned, match="InsufficientPrivilegeError"):
            await change_log.turn_on(own_service.url.replace("//postgres@", f"//{role}@"), KEEP)
    finally:
        await pool.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert not (await change_log.read_status(own_service.url)).is_on


async def test_the_purge_keeps_what_is_young(own_service: Service) -> None:
    """It removes the oldest changes up to the first that is kept, and raises the floor behind them."""
    await change_log.turn_on(own_service.url, KEEP)
    for _ in range(4):
        await own_service.stub.CreateConversation(create())
    pool = own_service.database.pool
    positions = [row["position"] for row in await pool.fetch("SELECT position FROM changes ORDER BY position")]
    aged = "UPDATE changes SET change_time = change_time - interval '2 hours' WHERE position = ANY($1)"
    await pool.execute(aged, [positions[0], positions[1], positions[3]])
    connection = await asyncpg.connect(own_service.url)
    try:
        assert await change_log.purge_changes(connection) == 2
        assert await change_log.purge_changes(connection) == 0
    finally:
        await connection.close()
    assert await pool.fetchval("SELECT floor FROM change_log") == positions[1] + 1
    assert (await change_log.read_status(own_service.url)).rows == 2


async def test_what_waits_for_a_transaction_is_shown(own_service: Service) -> None:
    """The status says for how long the oldest change has been waiting."""
    await change_log.turn_on(own_service.url, KEEP)
    other = await asyncpg.connect(own_service.url)
    try:
        async with other.transaction():
            await other.fetchval("SELECT pg_current_xact_id()")
            await own_service.stub.CreateConversation(create())
            await asyncio.sleep(0.05)
            assert (await change_log.read_status(own_service.url)).held > timedelta(seconds=0.04)
    finally:
        await other.close()
    assert (await change_log.read_status(own_service.url)).held == timedelta()
