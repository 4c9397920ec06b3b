"""A database with conversations gets what lists by activity read."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.store import migrate as migrate_module
from server.store.connection.opening import direct_connection
from server.store.migrate import MigrationFailed, migrate
from tests.support.activity import compared, differences, until
from tests.support.postgres import EMPTY_TEMPLATE, fetch, fresh_database

MIGRATIONS = Path(migrate_module.__file__).parent / "migrations"
BEFORE = """
    WITH made AS (
        INSERT INTO conversations (id, tenant, owner, attributes, metadata, last_sequence, version, revision,
            create_time, update_time, delete_time)
        SELECT 'conv_' || n, 'acme', 'ann', '{teams=red}', '{}', 1, 1, 1, now(), now(),
            CASE n % 10 WHEN 0 THEN now() END
        FROM generate_series(1, 2001) AS n RETURNING id
    ), indexed AS (
        INSERT INTO conversation_attributes SELECT id, 'teams=red', 'acme', now() FROM made
    )
    INSERT INTO items (conversation_id, sequence, item_id, version, type, role, status, create_time, body)
    SELECT id, 1, 'msg_1', 1, 'message', 'user', '', now() + interval '1 h', '' FROM made"""


@pytest.fixture
async def older(postgres: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[str]:
    """A database with conversations from before this revision."""
    scripts = shutil.copytree(MIGRATIONS, tmp_path / "migrations")
    (scripts / "versions" / "0010_activity.py").unlink()
    async with fresh_database(postgres, EMPTY_TEMPLATE) as url:
        with monkeypatch.context() as patch:
            patch.setattr(migrate_module, "_SCRIPTS", scripts)
            patch.setattr(migrate_module, "HEAD", "0009")
            assert await migrate(url)
        await fetch(url, BEFORE)
        yield url


async def test_a_filled_database(older: str) -> None:
    """Every conversation has its row when the migration ends, and their times are told from their items later."""
    assert await migrate(older)
    assert [] == await differences(older)
    assert [(1801,)] == [tuple(row) for row in await fetch(older, "SELECT count(*) FROM activity")]
    assert await compared(older)
    assert [] == await differences(older)
    late = "SELECT count(*) FROM activity JOIN conversations ON id = conversation_id"
    await until(older, f"{late} WHERE activity.active_time > create_time", 1801)


async def _fail(url: str) -> None:
    """Runs the migration up to its indexes."""
    await fetch(url, "CREATE TABLE activity_by_owner ()")
    with pytest.raises(MigrationFailed):
        await migrate(url)
    await fetch(url, "DROP TABLE activity_by_owner")


async def test_a_migration_that_is_interrupted_is_repeated(older: str) -> None:
    """What it has done stays, and the next try does the rest."""
    await _fail(older)
    await fetch(older, "DELETE FROM activity WHERE conversation_id = 'conv_5'")
    await fetch(older, "UPDATE conversations SET owner = 'bob' WHERE id = 'conv_7'")
    assert await migrate(older)
    assert [] == await differences(older)


PAUSE = """
    CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_advisory_lock_shared(7); RETURN NULL; END';
    CREATE TRIGGER pause BEFORE INSERT ON activity FOR EACH STATEMENT EXECUTE FUNCTION pause()"""


async def test_a_migration_waits_for_no_conversation(older: str) -> None:
    """One that somebody has locked gets its row in the end, unless it was deleted meanwhile."""
    await _fail(older)
    await fetch(
        older, "DELETE FROM activity WHERE conversation_id IN ('conv_5', 'conv_77', 'conv_78')", *PAUSE.split(";\n")
    )
    async with direct_connection(older) as other:
        await other.execute("SELECT pg_advisory_lock(7)")
        migrating = asyncio.create_task(migrate(older))
        await until(older, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted", 1)
        async with other.transaction():
            await other.execute("SELECT FROM conversations WHERE id = 'conv_77' FOR UPDATE")
            await fetch(older, "UPDATE conversations SET delete_time = now() WHERE id = 'conv_78'")
            await other.execute("SELECT pg_advisory_unlock(7)")
            await until(older, "SELECT count(*) FROM activity WHERE conversation_id = 'conv_5'", 1)
            assert not migrating.done()
    assert await migrating
    assert [] == await differences(older)
