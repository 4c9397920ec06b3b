"""The functions that run statements at the worker of a conversation: kept plans, and shards that move."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from conversations.v1.conversations_service_pb2 import ORDER_ASCENDING

from server.store.distribution import distribute
from server.store.sql.shard_functions import FUNCTIONS, MOST_LITERAL_BYTES, MOST_PLANS, READ, WRITE
from tests.support.build import append, create, list_items, user_message
from tests.support.postgres import CITUS, execute, fetch, node_urls, with_database
from tests.support.service import Service, list_all_items
from tests.support.shards import connected, move, other_places

pytestmark = pytest.mark.citus
_KEPT = "SELECT sum(generic_plans + custom_plans)::int FROM pg_prepared_statements WHERE name LIKE 'conv%'"
_COUNT_KEPT = "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'conv%'"
_ITEMS = "SELECT sequence FROM {items} AS items WHERE conversation_id = $1[1] ORDER BY sequence"
_RENAME = "UPDATE {conversations} AS conversations SET metadata = ($1[2])::jsonb WHERE id = $1[1] RETURNING metadata"
_READ = f"SELECT * FROM {READ}($1, $2, $3, $4) AS read(sequence bigint)"
_WRITE = f"SELECT metadata FROM {WRITE}($1, $2, $3, $4, $5, false)"


@asynccontextmanager
async def at_worker(service: Service, conversation_id: str) -> AsyncIterator[asyncpg.Connection]:
    """A session as the coordinator has it at the worker of a conversation: it forwards nothing to other nodes."""
    (_, port), _other = await other_places(service, conversation_id)
    name = service.url.rpartition("/")[2]
    urls = [with_database(url, name) for url in await node_urls(os.environ[CITUS]) if f":{port}/" in url]
    async with connected(urls[0], "citus_internal gpid=10000000001") as session:
        yield session


async def new_conversation(service: Service, *texts: str) -> str:
    """The id of a conversation with messages."""
    return str((await service.stub.CreateConversation(create(*map(user_message, texts)))).id)


async def read(session: asyncpg.Connection, conversation_id: str, statement: str = _ITEMS, more: str = "") -> list[int]:
    """The sequences that the function returns."""
    rows = await session.fetch(_READ, conversation_id, ["items"], statement, [conversation_id, more])
    return [row["sequence"] for row in rows]


async def write(session: asyncpg.Connection, conversation_id: str, metadata: str, bodies: Any = ()) -> list[str]:
    """The metadata that the function has set."""
    rows = await session.fetch(_WRITE, conversation_id, ["conversations"], _RENAME, [conversation_id, metadata], bodies)
    return [row["metadata"] for row in rows]


async def test_a_plan_is_kept(own_service: Service) -> None:
    """A statement is prepared once for a shard, and run from then on; also after a transaction that was undone."""
    conversation_id = await new_conversation(own_service, "one", "two")
    async with at_worker(own_service, conversation_id) as session:
        for count in (1, 2, 3):
            assert [1, 2] == await read(session, conversation_id)
            assert (1, count) == (await session.fetchval(_COUNT_KEPT), await session.fetchval(_KEPT))
        for _ in range(2):
            with pytest.raises(asyncpg.InvalidTextRepresentationError):
                await write(session, conversation_id, "no json")
        assert ['{"a": "b"}'] == await write(session, conversation_id, '{"a": "b"}')
        assert 2 == await session.fetchval(_COUNT_KEPT)


async def test_plans_do_not_depend_on_values(own_service: Service) -> None:
    """They are generic from the first run, as on one server."""
    conversation_id = await new_conversation(own_service, "one")
    async with at_worker(own_service, conversation_id) as session:
        await read(session, conversation_id)
        assert 0 == await session.fetchval(_KEPT.replace("generic_plans + ", ""))


@pytest.mark.parametrize("text", ["it's", 'a "b" \\ c', "\\'; DROP TABLE items; --", "$1 {items} %s %L", "ä\n\t\u2028"])
async def test_values_stay_values(own_service: Service, text: str) -> None:
    """Whatever they are, they reach the statement as they were."""
    made = await own_service.stub.CreateConversation(create(user_message(text), metadata={"a": text}))
    for number in range(2):
        await own_service.stub.CreateItems(append(made.id, user_message(text + str(number))))
    items = await list_all_items(own_service.stub, made.id, ORDER_ASCENDING)
    assert [text, text + "0", text + "1"] == [item.message.content[0].input_text.text for item in items]
    assert {"a": text} == dict(made.metadata)


async def test_plans_are_bounded(own_service: Service) -> None:
    """A session keeps `MOST_PLANS`; the next statement runs all the same."""
    conversation_id = await new_conversation(own_service, "one")
    async with at_worker(own_service, conversation_id) as session:
        statements = [f"{_ITEMS} -- {number}" for number in range(MOST_PLANS + 1)]
        kept = []
        others = await session.fetchval("SELECT count(*) FROM pg_prepared_statements")
        for statement in statements[: MOST_PLANS - others - 2]:
            await session.execute(
                f"SELECT * FROM {READ}($${conversation_id}$$, $${{items}}$$, $${statement}$$, "
                f"ARRAY[$${conversation_id}$$]) AS read(sequence bigint)"
            )
        for statement in statements[-3:]:
            assert [1] == await read(session, conversation_id, statement)
            kept.append(await session.fetchval("SELECT count(*) FROM pg_prepared_statements"))
        assert MOST_PLANS == max(kept)


async def test_large_values_are_no_literals(own_service: Service) -> None:
    """Arguments of more than `MOST_LITERAL_BYTES` are passed to a statement that is planned anew."""
    conversation_id = await new_conversation(own_service, "one")
    async with at_worker(own_service, conversation_id) as session:
        fixed = await session.fetchval(
            "SELECT pg_column_size($1::text[]) + pg_column_size($2::bytea[])", [conversation_id, ""], []
        )
        room = MOST_LITERAL_BYTES - fixed
        for size, kept in ((room + 1, 0), (room, 1)):
            assert [1] == await read(session, conversation_id, more="x" * size)
            assert kept == await session.fetchval(_COUNT_KEPT)


async def test_tables_that_change(own_service: Service) -> None:
    """A kept plan follows a migration."""
    conversation_id = await new_conversation(own_service, "one")
    async with at_worker(own_service, conversation_id) as session:
        await read(session, conversation_id)
        await execute(own_service.url, "ALTER TABLE items ADD COLUMN more text DEFAULT 'x'")
        assert [1] == await read(session, conversation_id)
        assert 1 == await session.fetchval(_COUNT_KEPT)
    await own_service.stub.CreateItems(append(conversation_id, user_message("two")))
    assert 2 == len((await own_service.stub.ListItems(list_items(conversation_id))).items)


async def test_a_shard_that_has_moved(own_service: Service) -> None:
    """The old place refuses, as a lost race does; when the shard is back, its new tables are read by the kept plan."""
    conversation_id = await new_conversation(own_service, "one")
    here, there = await other_places(own_service, conversation_id)
    async with at_worker(own_service, conversation_id) as session:
        assert [1] == await read(session, conversation_id)
        assert ["{}"] == await write(session, conversation_id, "{}")
        await move(own_service, conversation_id, here, there)
        for call in (read, partial(write, metadata="{}")):
            with pytest.raises(asyncpg.SerializationError, match="at another node"):
                await call(session, conversation_id)
        await own_service.stub.CreateItems(append(conversation_id, user_message("two")))
        await move(own_service, conversation_id, there, here)
        assert [1, 2] == await read(session, conversation_id)
        assert ['{"a": "b"}'] == await write(session, conversation_id, '{"a": "b"}')
        assert 2 == await session.fetchval(_COUNT_KEPT)


async def test_a_shard_moves_under_load(own_service: Service) -> None:
    """Calls that read and append go on meanwhile; what was stored is read at once."""
    conversation_id = await new_conversation(own_service)
    here, there = await other_places(own_service, conversation_id)
    stop = asyncio.Event()
    count = 0

    async def call() -> None:
        nonlocal count
        while not stop.is_set():
            await own_service.stub.CreateItems(append(conversation_id, user_message("a"), request_id=str(uuid4())))
            count += 1
            page = await own_service.stub.ListItems(list_items(conversation_id, page_size=1))
            assert count == page.items[0].sequence

    calling = asyncio.create_task(call())
    try:
        for _ in range(2):
            await move(own_service, conversation_id, here, there)
            await move(own_service, conversation_id, there, here)
    finally:
        stop.set()
        await calling
    assert count > 4


async def test_the_coordinator_refuses(own_service: Service) -> None:
    """A call that it runs itself reads and writes nothing."""
    conversation_id = await new_conversation(own_service, "one")
    async with connected(own_service.url) as coordinator:
        for query in (_READ, _WRITE.replace("$5", "ARRAY[]::bytea[]")):
            async with coordinator.transaction():
                await coordinator.execute("SELECT 1 FROM conversations")  # nothing is forwarded in a transaction
                with pytest.raises(asyncpg.PostgresError, match="not forwarded"):
                    await coordinator.fetch(query, conversation_id, ["items"], _ITEMS, [conversation_id])
                await coordinator.execute("ROLLBACK")


async def test_distribute_makes_what_is_missing(own_service: Service) -> None:
    """A database that an older version has distributed gets the functions, and goes on."""
    conversation_id = await new_conversation(own_service, "one")
    for function in (READ, "kept_plan_1"):
        await execute(own_service.url, f"DROP FUNCTION {function}")
    plan = await distribute(own_service.url, 4)
    assert ({READ, "kept_plan_1"}, ()) == (set(plan.functions), plan.distributed)
    assert (await distribute(own_service.url, 4)).is_empty
    await own_service.stub.CreateItems(append(conversation_id, user_message("two")))
    assert 2 == len((await own_service.stub.ListItems(list_items(conversation_id))).items)
    for url in await node_urls(os.environ[CITUS]):
        names = await fetch(with_database(url, own_service.url.rpartition("/")[2]), "SELECT proname FROM pg_proc")
        assert {function.name for function in FUNCTIONS} <= {row["proname"] for row in names}
