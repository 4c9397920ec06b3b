"""Conversations are removed with all they have, in short steps, and nothing else is."""

from collections import Counter
from collections.abc import AsyncIterator

import asyncpg
import pytest

from server.store import remover
from server.store.remover import remove_conversations
from server.store.steps import LOOKUPS
from tests.support.postgres import fresh_database

ROWS = """
    WITH made AS (
        INSERT INTO conversations (id, tenant, owner, attributes, metadata, last_sequence, version, revision,
            create_time, update_time, delete_time)
        SELECT 'conv_' || n, 'acme', 'ann', '{teams=red}', '{}', n, 1, 1, now(), now(), now()
        FROM generate_series(0, 9) AS n RETURNING id, last_sequence
    ), indexed AS (
        INSERT INTO conversation_attributes SELECT id, 'teams=red', 'acme', now() FROM made
    ), reserved AS (
        INSERT INTO requests SELECT id, 'ann', 4, gen_random_uuid(), '', 1, 1 FROM made
    )
    INSERT INTO items (conversation_id, sequence, item_id, version, type, role, status, create_time, body)
    SELECT id, 3 * sequence, 'msg_' || sequence, 1, 'message', 'user', '', now(), ''
    FROM made, generate_series(1, last_sequence) AS sequence"""
COUNTS = """
    SELECT (SELECT count(*) FROM conversations) AS conversations, (SELECT count(*) FROM items) AS items,
        (SELECT count(*) FROM requests) AS requests, (SELECT count(*) FROM conversation_attributes) AS attributes"""
IDS = [f"conv_{number}" for number in range(9)]  # one stays


@pytest.fixture
async def connection(postgres: str, template: str) -> AsyncIterator[asyncpg.Connection]:
    """A database with ten deleted conversations, `conv_<n>` with n items in places with gaps."""
    async with fresh_database(postgres, template) as url:
        connection = await asyncpg.connect(url, server_settings=LOOKUPS)
        await connection.execute(ROWS)
        yield connection
        await connection.close()


@pytest.mark.parametrize("step", [1, 2, 3, 7, 36, 37, 5000])
async def test_each_size_of_step(connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """However many rows a step has, all of these conversations go, all others stay, and the counts are those rows."""
    monkeypatch.setattr(remover, "STEP", step)
    counts, most = Counter[str](), 0

    async def note(table: str, count: int) -> None:
        nonlocal most
        counts[table] += count
        most = max(most, 0 if table == "conversations" else count)

    await remove_conversations(connection, IDS, note, requests=True)
    assert {"conversations": 9, "items": 36, "requests": 9, "attributes": 9} == +counts
    assert most <= step
    assert {"conversations": 1, "items": 9, "requests": 1, "attributes": 1} == dict(await connection.fetchrow(COUNTS))


async def test_request_ids_stay_unless_told(connection: asyncpg.Connection) -> None:
    """A create that is repeated after its conversation was removed is still known."""

    async def note(_table: str, _count: int) -> None:
        pass

    await remove_conversations(connection, IDS, note)
    assert 10 == await connection.fetchval("SELECT count(*) FROM requests")


async def test_an_interruption_anywhere(connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever step ends it, that step is undone with its count, and another run does the rest."""
    monkeypatch.setattr(remover, "STEP", 4)
    counts = Counter[str]()
    left = step = 1

    async def note(table: str, count: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise ConnectionError
        counts[table] += count

    while True:
        left = step = step + 1
        try:
            await remove_conversations(connection, IDS, note, requests=True)
            break
        except ConnectionError:
            found = dict(await connection.fetchrow(COUNTS))
            assert {"conversations": 10, "items": 45, "requests": 10, "attributes": 10} == Counter(found) + counts
    assert {"conversations": 9, "items": 36, "requests": 9, "attributes": 9} == +counts
    assert step > 5


async def test_what_lives_stays(connection: asyncpg.Connection) -> None:
    """A conversation that is not a tombstone is never removed, even if somebody names it."""

    async def note(_table: str, _count: int) -> None:
        pass

    await connection.execute("UPDATE conversations SET delete_time = NULL WHERE id = 'conv_8'")
    await remove_conversations(connection, IDS, note)
    assert 8 + 9 == await connection.fetchval("SELECT count(*) FROM items")
    left = await connection.fetch("SELECT id FROM conversations ORDER BY id")
    assert ["conv_8", "conv_9"] == [row["id"] for row in left]
