"""An erasure is complete whatever happens beside it, and the same after any interruption."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from random import Random
from typing import Any
from uuid import uuid4

import asyncpg
import grpc.aio
import pytest

from server.app.erasure_runner import parse_filter
from server.store import change_log, erasing, remover
from server.store.authors import fill_in_authors
from server.store.connection import opening
from server.store.erasing import count_rows, erase_next, erase_subject
from server.store.erasures import Subject, begin_values, rows_of
from server.store.purge import purge
from server.store.sql import erasures as sql
from tests.support.access import ANN, BOB, EVE, GuardedService
from tests.support.build import append, copy_of, create, delete, delete_item, user_message
from tests.support.erasure import ALL_ROWS, ERASURE_RULES
from tests.support.interruptions import FailingConnection, Killed
from tests.support.postgres import fetch, fresh_database

NAME = Subject.of_principal("ann")
LEFT = """
    SELECT (SELECT count(*) FROM conversations WHERE tenant = 'acme' AND owner = 'ann')
        + (SELECT count(*) FROM items WHERE author = 'ann')
        + (SELECT count(*) FROM requests WHERE principal = 'ann')
        + (SELECT count(*) FROM items WHERE conversation_id NOT IN (SELECT id FROM conversations))
        + (SELECT count(*) FROM conversation_attributes WHERE conversation_id NOT IN (SELECT id FROM conversations))
        + (SELECT count(*) FROM changes WHERE owner = 'ann')"""
KEY = ("acme", "b2a1a3c0-0000-4000-8000-000000000001")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasing, "_WATCH_SECONDS", 0.0)
    monkeypatch.setattr(erasing, "_LOG_SECONDS", 0.0)


@pytest.fixture
async def world(guarded: GuardedService) -> GuardedService:
    """A service in which everybody may do everything with conversations."""
    await guarded.connection.execute("TRUNCATE conversations, items, requests, conversation_attributes, erasures")
    guarded.obey(ERASURE_RULES)
    return guarded


async def fill(world: GuardedService) -> None:
    """What Ann has, in several conversations of hers and of Bob, beside what Bob and Eve have."""
    ann, bob, eve = (world.by(each) for each in (ANN, BOB, EVE))
    bobs = [(await bob.CreateConversation(create(user_message()))).id for _ in range(3)]
    for each in bobs:
        await ann.CreateItems(append(each, user_message(), user_message(), request_id=str(uuid4())))
        await eve.CreateItems(append(each, user_message(), request_id=str(uuid4())))
    for _ in range(5):
        made = await ann.CreateConversation(create(user_message(), user_message(), request_id=str(uuid4())))
        await bob.CreateItems(append(made.id, user_message(), request_id=str(uuid4())))
    await ann.DeleteConversation(delete(made.id))


async def begun(connection: asyncpg.Connection, subject: Subject = NAME) -> None:
    """Stores an erasure of the tenant acme."""
    values = begin_values(*KEY, subject, requested_by="operator")
    await connection.execute(sql.BEGIN.text, *sql.BEGIN.arguments(values))


async def carried_on(url: str) -> asyncpg.Record | None:
    """What `erase_next` returns."""
    return await erase_next(url, "acme", parse_filter, 5.0)


# --- interruptions


async def interrupted(url: str, monkeypatch: pytest.MonkeyPatch, number: int, *, behind: bool) -> bool:
    """Carries the erasure on until its n-th statement; whether it was interrupted."""
    direct = opening.direct_connection

    @asynccontextmanager
    async def failing(*arguments: Any, **options: Any) -> AsyncIterator[Any]:
        async with direct(*arguments, **options) as connection:
            yield FailingConnection(connection, number, behind=behind)

    with monkeypatch.context() as patch:
        patch.setattr(erasing, "direct_connection", failing)
        try:
            await carried_on(url)
        except Killed:
            return True
    return False


@pytest.mark.parametrize("behind", [False, True], ids=["before a statement", "behind a statement"])
async def test_each_attempt_comes_further(
    world: GuardedService,
    monkeypatch: pytest.MonkeyPatch,
    behind: bool,  # noqa: FBT001
) -> None:
    """An erasure that is interrupted again and again ends with the receipt of one that is not."""
    monkeypatch.setattr(remover, "STEP", 4)
    monkeypatch.setattr(remover, "CONVERSATIONS", 2)
    monkeypatch.setattr(erasing, "_FEW", 2)
    monkeypatch.setattr(erasing, "_SCANNED", 2)
    await fill(world)
    counted = await count_rows(world.url, "acme", NAME)
    await begun(world.connection)
    number = 0
    while await interrupted(world.url, monkeypatch, number := number + 1, behind=behind):
        pass
    assert number > 20
    row = await world.connection.fetchrow("SELECT * FROM erasures")
    assert {"conversations": 5, "items": 15, "foreign_items": 6, "requests": 13} == counted == rows_of(row)
    assert row["end_time"] is not None
    assert 0 == await world.value(LEFT)


FILLED = """
    WITH made AS (
        INSERT INTO conversations (id, tenant, owner, attributes, metadata, last_sequence, version, revision,
            create_time, update_time, delete_time)
        SELECT owner || n, 'acme', owner, '{teams=red}', '{}', 3, 1, 1, now(), now(), CASE n WHEN 2 THEN now() END
        FROM generate_series(1, 3) AS n, unnest('{ann,bob}'::text[]) AS owner RETURNING id, owner
    ), indexed AS (
        INSERT INTO conversation_attributes SELECT id, 'teams=red', 'acme', now() FROM made
    ), reserved AS (
        INSERT INTO requests
        SELECT id, principal, 4, gen_random_uuid(), '', 1, 1 FROM made, unnest('{ann,bob}'::text[]) AS principal
    )
    INSERT INTO items (conversation_id, sequence, item_id, version, type, role, status, create_time, body, author)
    SELECT id, n, 'msg_' || n, 1, 'message', 'user', '', now(), 'text',
        CASE WHEN n > 1 AND owner = 'bob' THEN 'ann' ELSE '' END
    FROM made, generate_series(1, 3) AS n"""


@pytest.mark.slow
@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
async def test_each_statement(
    postgres: str,
    template: str,
    monkeypatch: pytest.MonkeyPatch,
    behind: bool,  # noqa: FBT001
) -> None:
    """Whichever statement an erasure is interrupted at, another attempt ends with the same receipt and rows."""
    monkeypatch.setattr(remover, "STEP", 4)
    monkeypatch.setattr(remover, "CONVERSATIONS", 2)
    monkeypatch.setattr(erasing, "_FEW", 2)
    expected = {"conversations": 3, "items": 9, "foreign_items": 6, "requests": 9}
    async with fresh_database(postgres, template) as filled:
        await change_log.turn_on(filled, timedelta(hours=1))
        connection = await asyncpg.connect(filled)
        await connection.execute(FILLED)
        await begun(connection)
        await connection.close()
        name = filled.partition("?")[0].rpartition("/")[2]
        number, more = 0, True
        while more:
            number += 1
            async with fresh_database(postgres, name) as url:
                more = await interrupted(url, monkeypatch, number, behind=behind)
                await carried_on(url)
                (row,) = await fetch(url, "SELECT * FROM erasures")
                assert expected == rows_of(row), number
                assert [(0, 3)] == [tuple(each) for each in await fetch(url, f"{LEFT}, (SELECT count(*) FROM items)")]
    assert number > 20


# --- beside others


async def test_others_keep_what_they_have(world: GuardedService) -> None:
    """A namesake in another tenant and everybody else have the same rows as before."""
    await fill(world)
    await world.row("ann", tenant="umbrella")
    theirs = await world.row("bob", tenant="umbrella")
    await world.connection.execute("UPDATE items SET author = 'ann' WHERE conversation_id = $1", theirs)
    await world.connection.execute(
        "INSERT INTO requests VALUES ($1, 'ann', 4, gen_random_uuid(), '', 1, 1, now())", theirs
    )
    await erase_subject(world.url, "acme", NAME, parse_filter, 5.0)
    before = await world.value(ALL_ROWS)
    assert (2, 2, 1) == tuple(
        await world.connection.fetchrow(
            """SELECT (SELECT count(*) FROM conversations WHERE tenant = 'umbrella'),
                (SELECT count(*) FROM items WHERE author = 'ann'),
                (SELECT count(*) FROM requests WHERE principal = 'ann')"""
        )
    )
    await erase_subject(world.url, "acme", NAME, parse_filter, 5.0)
    assert before == await world.value(ALL_ROWS)


async def test_old_items_are_found(world: GuardedService) -> None:
    """Authors from before there was a column are filled in first."""
    await fill(world)
    await world.connection.execute("UPDATE items SET author = ''")
    await world.connection.execute("UPDATE author_progress SET conversation_id = '', sequence = 0, is_done = false")
    row = await erase_subject(world.url, "acme", NAME, parse_filter, 5.0)
    assert 6 == row["foreign_item_count"]
    assert 0 == await fill_in_authors(world.connection)


async def test_the_purge_leaves_it_to_the_erasure(world: GuardedService) -> None:
    """A purge beside an erasure removes nothing that the receipt counts."""
    await world.row("ann")
    await world.connection.execute("UPDATE conversations SET delete_time = '-infinity'")
    await purge(world.url, timedelta(0))
    assert 1 == await world.value("SELECT count(*) FROM conversations")
    row = await erase_subject(world.url, "acme", NAME, parse_filter, 5.0)
    assert (1, 2) == (row["conversation_count"], row["item_count"])


async def test_one_session_of_a_tenant(world: GuardedService) -> None:
    """While one session erases in a tenant, another leaves it to the first, and is not kept from other tenants."""
    await world.row("ann")
    await begun(world.connection)
    async with transaction(world.url) as other:
        await other.execute("SELECT pg_advisory_xact_lock($1, hashtext('acme'))", 0x65726173)
        assert await carried_on(world.url) is None
        assert 0 == await world.value("SELECT count(*) FROM conversations WHERE delete_time IS NOT NULL")
        await erase_subject(world.url, "umbrella", NAME, parse_filter, 0.2)
    rows = await asyncio.gather(*(carried_on(world.url) for _ in range(3)))
    assert [(1, 2)] == [(row["conversation_count"], row["item_count"]) for row in rows if row]


async def test_a_copy_that_began_before(world: GuardedService) -> None:
    """A statement that still saw an item ends before the rows go, so what it has copied goes as well."""
    source = await world.row("ann")
    target = await world.row("bob")
    async with transaction(world.url) as connection:
        await connection.execute(
            """INSERT INTO items SELECT $1, 9, 'msg_9', 1, type, role, status, create_time, NULL, body, 'ann'
            FROM items WHERE conversation_id = $2 AND sequence = 1""",
            target,
            source,
        )
        erasing_ = asyncio.create_task(erase_subject(world.url, "acme", NAME, parse_filter, 30.0))
        hidden = "SELECT count(*) FROM conversations WHERE delete_time = '-infinity'"
        async with asyncio.timeout(10):
            while not await world.value(hidden):  # noqa: ASYNC110 - the database tells nobody
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert not erasing_.done()
    assert 1 == (await erasing_)["foreign_item_count"]
    assert 0 == await world.value(LEFT)


async def test_a_transaction_that_does_not_end(world: GuardedService) -> None:
    """One that runs for longer than a statement of the service may is not one of them, and is not waited for."""
    await world.row("ann")
    async with transaction(world.url) as connection:
        await connection.execute("SELECT 1")
        async with asyncio.timeout(10):
            row = await erase_subject(world.url, "acme", NAME, parse_filter, 0.2)
    assert 1 == row["conversation_count"]


@asynccontextmanager
async def transaction(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection with a transaction that is committed at the end."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


@pytest.mark.parametrize("runs", [2, pytest.param(100, marks=pytest.mark.slow)])
async def test_beside_everything(world: GuardedService, runs: int) -> None:
    """Whatever the person and others do with its items meanwhile, nothing is left once they have stopped."""
    await change_log.turn_on(world.url, timedelta(hours=1))
    try:
        for seed in range(runs):
            await _race(world, Random(seed))
            assert 0 == await world.value(LEFT), seed
    finally:
        await change_log.turn_off(world.url)


async def _race(world: GuardedService, random: Random) -> None:
    """Writers run beside an erasure, and end before it looks for the last time."""
    clients = [world.by(each) for each in (ANN, BOB, EVE)]
    ids = [(await each.CreateConversation(create(user_message(id="msg_1")))).id for each in clients for _ in range(2)]
    stop, ended = asyncio.Event(), asyncio.Event()
    wait_for_transactions = erasing._Erasure._wait_for_transactions

    async def wait(erasure: erasing._Erasure) -> None:
        await ended.wait()  # what they begin behind the last look is not erased
        await wait_for_transactions(erasure)

    async def write() -> None:
        while not stop.is_set():
            client, target, source = random.choice(clients), random.choice(ids), random.choice(ids)
            item = random.choice((user_message(), copy_of(source, "msg_1"), copy_of(source, f"msg_{target[-4:]}")))
            call = random.choice(
                (
                    lambda: client.CreateItems(append(target, item, request_id=random.choice(("", str(uuid4()))))),  # noqa: B023
                    lambda: client.CreateItems(append(target, user_message(id=f"msg_{target[-4:]}"))),  # noqa: B023
                    lambda: client.CreateConversation(create(item, request_id=str(uuid4()))),  # noqa: B023
                    lambda: client.DeleteItem(delete_item(target, "msg_1")),  # noqa: B023
                    lambda: client.DeleteConversation(delete(target)),  # noqa: B023
                )
            )
            with suppress(grpc.aio.AioRpcError):
                made = await call()
                if hasattr(made, "owner"):
                    ids[random.randrange(len(ids))] = made.id

    writers = [asyncio.create_task(write()) for _ in range(6)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(erasing._Erasure, "_wait_for_transactions", wait)
        erasure = asyncio.create_task(erase_subject(world.url, "acme", NAME, parse_filter, 6.0))
        await asyncio.sleep(random.uniform(0.02, 0.3))
        stop.set()
        await asyncio.gather(*writers)
        ended.set()
        await erasure
