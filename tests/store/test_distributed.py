"""A database that is distributed over the workers of Citus: how it becomes one, and what its statements do there."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from structlog.testing import capture_logs

from server.app.database import SchemaBehind, open_store, prepare_schema
from server.errors import OperatorError
from server.settings.service import Settings
from server.store import change_log
from server.store.connection import read_batching
from server.store.connection.bounds import Bounds
from server.store.connection.execution import Execute, Execution, Rows
from server.store.connection.layout import DISTRIBUTED, ONE_SERVER, find_layout
from server.store.connection.opening import DatabaseConfigError, open_database, verify
from server.store.distribution import DistributeRefused, distribute, plan_distribution
from server.store.erasing import ErasureRefused, count_rows
from server.store.erasures import Subject
from server.store.migrate import migrate
from server.store.placement import place_new_tables
from server.store.purge import purge
from server.store.sql import conversations
from server.store.sql.schema import metadata
from server.store.sql.shard_functions import READ
from tests.support.build import append, batch_get, copy_of, create, delete, get, get_item, list_items, user_message
from tests.support.distributed import make_joined_database, missing
from tests.support.postgres import drop_everywhere, execute, fetch, fresh_database, node_urls, with_database
from tests.support.service import Service, intercepted, running_service
from tests.support.shards import connected

pytestmark = pytest.mark.citus


@dataclass(frozen=True)
class Sent:
    """A statement of a call, as it was sent."""

    text: str
    arguments: tuple[Any, ...]


@pytest.fixture
async def joined(postgres: str) -> AsyncIterator[str]:
    """A migrated database that is not distributed, of which the workers know."""
    name = f"joined_{uuid4().hex}"
    url = await make_joined_database(postgres, name)
    await migrate(url)
    yield url
    await drop_everywhere(postgres, name)


async def sent_by(service: Service, method: str, request: Any) -> list[Sent]:
    """The statements that a call sends."""
    sent: list[Sent] = []

    async def record(execute: Execute, execution: Execution) -> Rows:
        sent.extend(Sent(execution.statement.text, arguments) for arguments in execution.arguments)
        return await execute(execution)

    with intercepted(service.database, record):
        await getattr(service.stub, method)(request)
    return sent


async def new_conversation(service: Service, *texts: str) -> str:
    """The id of a conversation with messages."""
    made = await service.stub.CreateConversation(create(*map(user_message, texts)))
    return str(made.id)


# --- becoming one


async def test_distribute(joined: str) -> None:
    """A look changes nothing; every table is then distributed or copied, once and for all."""
    plan = await plan_distribution(joined)
    assert {*metadata.tables, "alembic_version"} == {*plan.distributed, *plan.copied}
    assert ONE_SERVER is await layout_of(joined)
    assert plan == await distribute(joined, 4)
    assert DISTRIBUTED is await layout_of(joined)
    assert (await distribute(joined, 4)).is_empty
    rows = await fetch(joined, "SELECT count(*) FROM citus_shards WHERE table_name = 'items'::regclass")
    assert 4 == rows[0]["count"]


async def layout_of(url: str) -> Any:
    async with connected(url) as connection:
        return await find_layout(connection)


async def test_filled_tables(joined: str) -> None:
    """What was stored on one server is there, goes on, and has left the coordinator's own tables."""
    async with running_service(joined) as service:
        conversation_id = await new_conversation(service, "one", "two")
    await distribute(joined, 4)
    async with running_service(joined) as service:
        await service.stub.CreateItems(append(conversation_id, user_message("three")))
        page = await service.stub.ListItems(list_items(conversation_id))
        assert [3, 2, 1] == [item.sequence for item in page.items]
    assert 0 == (await fetch(joined, "SELECT pg_relation_size('items') AS size"))[0]["size"]


async def test_distribute_refuses_while_the_service_runs(joined: str) -> None:
    """Its sessions would go on with plans for one server."""
    async with running_service(joined) as service:
        await new_conversation(service)
        with pytest.raises(DistributeRefused, match=r"The service has \d+ connections .* stop it first"):
            await distribute(joined, 4)


async def test_distribute_refuses_a_log_of_changes(joined: str) -> None:
    """Nobody could follow it any more."""
    await execute(joined, "UPDATE change_log SET is_on = true")
    with pytest.raises(DistributeRefused, match="changes off"):
        await distribute(joined, 4)


async def test_distribute_refuses_a_database_without_citus(postgres: str) -> None:
    """It says what is missing."""
    name = f"plain_{uuid4().hex}"
    await execute(postgres, f'CREATE DATABASE "{name}"')
    url = with_database(postgres, name)
    await migrate(url)
    with pytest.raises(DistributeRefused, match="CREATE EXTENSION citus"):
        await distribute(url, 4)
    await execute(url, "CREATE EXTENSION citus")
    with pytest.raises(DistributeRefused, match="citus_set_coordinator_host"):
        await distribute(url, 4)
    await execute(postgres, f'DROP DATABASE "{name}" WITH (FORCE)')


async def test_distribute_refuses_a_worker(postgres: str, template: str) -> None:
    """The coordinator has to do it."""
    async with fresh_database(postgres, template) as url:
        worker = (await node_urls(postgres))[1]
        with pytest.raises(DistributeRefused, match="This is a worker"):
            await plan_distribution(with_database(worker, url.rpartition("/")[2]))


async def test_new_tables_are_placed(postgres: str, template: str) -> None:
    """A table that a migration has added is distributed by it."""
    async with fresh_database(postgres, template) as url:
        await execute(url, "SELECT undistribute_table('erasures')")
        assert ("erasures",) == (await missing(url)).copied
        async with connected(url) as connection:
            await place_new_tables(connection)
        assert (await missing(url)).is_empty


# --- the start


async def test_the_start_checks_every_node(postgres: str, template: str) -> None:
    """A node that may lose what it has committed is named, with the setting."""
    async with fresh_database(postgres, template) as url:
        name = url.rpartition("/")[2]
        worker = (await node_urls(postgres))[1]
        await execute(worker, f'ALTER DATABASE "{name}" SET synchronous_commit = off')
        async with open_database(url, 1, Bounds()) as database:
            with pytest.raises(DatabaseConfigError, match=r"synchronous_commit is off on 127\.0\.0\.1:\d+"):
                await verify(database, via_pgbouncer=False, unsafe_durability=False)
            await verify(database, via_pgbouncer=False, unsafe_durability=True)
            assert DISTRIBUTED is database.layout


async def test_the_start_checks_sessions_at_every_node(postgres: str, template: str) -> None:
    """A node whose sessions lack a setting of the role is named, with the setting."""
    async with fresh_database(postgres, template) as url:
        name = url.rpartition("/")[2]
        worker = await asyncpg.connect((await node_urls(postgres))[2])
        await worker.execute("SET citus.enable_ddl_propagation = off")
        await worker.execute(f'ALTER ROLE CURRENT_USER IN DATABASE "{name}" SET lock_timeout = 0')
        await worker.close()
        async with open_database(url, 1, Bounds()) as database:
            with pytest.raises(DatabaseConfigError, match=r"sessions at \S+:\d+ have lock_timeout = 0 and not 2000, "):
                await verify(database, via_pgbouncer=False, unsafe_durability=True)


async def test_the_start_waits_for_functions(postgres: str, template: str) -> None:
    """A database that an older version has distributed lacks those of this one, and each call would be INTERNAL."""
    async with fresh_database(postgres, template) as url:
        settings = Settings.model_validate({"database_url": url, "migrate": False})
        async with open_store(settings) as store:
            await execute(url, f"ALTER FUNCTION {READ} RENAME TO read_conversation_0")
            with pytest.raises(SchemaBehind, match=f"server distribute`.*: function {READ}: is distributed"):
                await prepare_schema(settings, store)
            await distribute(url, 4)
            assert await prepare_schema(settings, store)


async def test_the_start_says_what_is_refused(postgres: str, template: str) -> None:
    """Its log names the layout, and each call that ends as NOT_SUPPORTED or finds nothing kept."""
    async with fresh_database(postgres, template) as url:
        settings = Settings.model_validate({"database_url": url})
        async with open_store(settings) as store:
            with capture_logs() as lines:
                await prepare_schema(settings, store)
    (line,) = lines
    assert ("database layout", "distributed") == (line["event"], line["layout"])
    assert ("WatchConversations", "EraseSubject", 'order_by: "active_time desc"') == line["refuses"]


async def test_pgbouncer_is_refused(postgres: str, template: str) -> None:
    """Sessions need settings that depend on the layout."""
    async with fresh_database(postgres, template) as url, open_database(url, 1, Bounds()) as database:
        with pytest.raises(DatabaseConfigError, match="without PgBouncer"):
            await verify(database, via_pgbouncer=True, unsafe_durability=False)


async def test_what_is_refused(postgres: str, template: str) -> None:
    """The log of changes and erasures, each with the reason."""
    async with fresh_database(postgres, template) as url:
        refused: list[OperatorError] = []
        for work in (change_log.turn_on(url, Any), count_rows(url, "", Subject.of_principal("a"))):  # type: ignore[arg-type]
            with pytest.raises(OperatorError, match="distributed") as caught:
                await work
            refused.append(caught.value)
        assert [change_log.ChangesNotTurned, ErasureRefused] == [type(error) for error in refused]


# --- statements


async def test_a_write_is_one_command(service: Service) -> None:
    """Of one worker, which commits by itself: no transaction over several nodes."""
    conversation_id = await new_conversation(service)
    request = append(conversation_id, user_message("a"), user_message("b"))
    (sent,) = await sent_by(service, "CreateItems", request)
    connection = await asyncpg.connect(service.url, server_settings={"citus.log_remote_commands": "on"})
    commands: list[str] = []
    connection.add_log_listener(lambda _, notice: commands.append(notice.message))
    key, tables, text, values, bodies = sent.arguments
    again = [value and value.replace("msg_", "msg_again_") for value in values]  # the ids are taken
    assert 1 == len(await connection.fetch(sent.text, key, tables, text, again, bodies))
    await connection.close()
    (issued,) = commands
    assert issued.startswith("issuing SELECT base FROM public.write_conversation_2(")


@pytest.mark.parametrize("method", ["GetConversation", "GetItem", "BatchGetItems", "ListItems"])
async def test_a_read_is_one_task(service: Service, method: str) -> None:
    """A read of one conversation asks one worker."""
    conversation_id = await new_conversation(service, "one", "two")
    page = await service.stub.ListItems(list_items(conversation_id))
    item_ids = [item.id for item in page.items]
    requests = {
        "GetConversation": get(conversation_id),
        "GetItem": get_item(conversation_id, item_ids[0]),
        "BatchGetItems": batch_get(conversation_id, *item_ids),
        "ListItems": list_items(conversation_id),
    }
    connection = await asyncpg.connect(service.url)
    for sent in await sent_by(service, method, requests[method]):
        plan = await connection.fetch(f"EXPLAIN {sent.text}", *sent.arguments)
        assert "Task Count: 1" in "\n".join(row[0] for row in plan)
    await connection.close()


async def test_reads_share_a_round_trip(own_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Citus plans by itself, also when its statement is compiled again, as that of a policy that was reloaded."""
    monkeypatch.setattr(read_batching, "GATHER_TICKS", 1000)
    ids = [await new_conversation(own_service) for _ in range(8)]
    await own_service.stub.GetConversation(get(ids[0]))
    conversations.get.cache_clear()
    shared: list[int] = []

    async def count(execute: Execute, execution: Execution) -> Rows:
        shared.append(len(execution.arguments))
        return await execute(execution)

    with intercepted(own_service.database, count):
        for _ in range(10):
            await asyncio.gather(*(own_service.stub.GetConversation(get(each)) for each in ids))
    assert max(shared) > 1


async def test_a_session_that_forwards_nothing_is_replaced(own_service: Service) -> None:
    """A statement that Citus refuses leaves the session so; the next write undoes itself and is done over a new one."""
    service = own_service
    conversation_id = await new_conversation(service)
    async with service.database.pool.acquire() as connection:
        for _ in range(service.database.pool.get_size()):
            with pytest.raises(asyncpg.FeatureNotSupportedError):
                await connection.fetch("SELECT 1 FROM conversations ORDER BY owner FOR UPDATE")
    for _ in range(3):
        await service.stub.CreateItems(append(conversation_id, user_message("a")))
    got = await service.stub.ListItems(list_items(conversation_id))
    assert [3, 2, 1] == [item.sequence for item in got.items]


async def test_references_to_another_shard(service: Service) -> None:
    """They are copied with their ids and times, whichever worker they lie on."""
    sources = [await new_conversation(service, f"text {number}") for number in range(8)]
    pages = [await service.stub.ListItems(list_items(each)) for each in sources]
    target = await new_conversation(service)
    for source, page in zip(sources, pages, strict=True):
        await service.stub.CreateItems(append(target, copy_of(source, page.items[0].id)))
    copies = await service.stub.ListItems(list_items(target, page_size=100))
    assert [page.items[0].id for page in pages] == [item.id for item in reversed(copies.items)]


async def test_the_purge(own_service: Service) -> None:
    """It removes what was deleted from every shard."""
    service = own_service
    ids = [await new_conversation(service, "one", "two") for _ in range(20)]
    for conversation_id in ids[:15]:
        await service.stub.DeleteConversation(delete(conversation_id))
    old = "UPDATE conversations SET delete_time = timestamptz '2020-01-01' WHERE delete_time IS NOT NULL"
    await execute(service.url, old)
    purged = await purge(service.url, timedelta(days=30))
    assert purged is not None
    assert (15, 30) == (purged.conversations, purged.items)
    left = [(await fetch(service.url, f"SELECT count(*) FROM {table}"))[0][0] for table in ("conversations", "items")]
    assert [5, 10] == left
