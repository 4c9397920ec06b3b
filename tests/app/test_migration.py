"""The start of a service migrates in another process, which says what became of it and leaves nothing behind."""

import asyncio
import subprocess
import sys

import asyncpg
import pytest

from server.app import migration
from server.app.migration import migrate_apart
from server.store.connection.opening import DatabaseConfigError, DatabaseUnreachable
from server.store.migrate import HEAD, MigrationFailed, current_revision
from tests.support.postgres import EMPTY_TEMPLATE, fetch, fresh_database

LOCK = 0x636F6E76
LOADED = """
import asyncio, sys
from server.app.migration import migrate_apart
print(asyncio.run(migrate_apart(sys.argv[1])), "alembic" in sys.modules)
"""


async def test_a_migration_apart(postgres: str) -> None:
    """It says whether anything was done, and of several at once one does it."""
    async with fresh_database(postgres, EMPTY_TEMPLATE) as url:
        assert [False, True] == sorted(await asyncio.gather(migrate_apart(url), migrate_apart(url)))
        assert HEAD == await current_revision(url)
        assert not await migrate_apart(url)


async def test_alembic_is_not_loaded(postgres: str) -> None:
    """The process that has asked for the migration did not import Alembic, which would take memory for good."""
    async with fresh_database(postgres, EMPTY_TEMPLATE) as url:
        command = (sys.executable, "-c", LOADED, url)
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True, text=True)
        assert ["True", "False"] == done.stdout.split()


async def test_a_failed_migration_is_told(postgres: str) -> None:
    """The error of the other process is raised here, with its sentence."""
    async with fresh_database(postgres, EMPTY_TEMPLATE) as url:
        await fetch(url, "CREATE TABLE items (other int)")
        with pytest.raises(MigrationFailed, match="rolled back"):
            await migrate_apart(url)
        assert await current_revision(url) is None


async def test_a_database_that_is_gone() -> None:
    """A database that does not answer is waited for, and one that refuses is not, as without the other process."""
    with pytest.raises(DatabaseUnreachable):
        await migrate_apart("postgresql://127.0.0.1:1/none")
    assert {"error": "DatabaseUnreachable"}.items() <= (await migration._said("postgresql://127.0.0.1:1/none")).items()
    with pytest.raises(DatabaseUnreachable, match="later"):
        migration._outcome(b'{"error": "DatabaseUnreachable", "text": "later"}', 0)
    with pytest.raises(DatabaseConfigError, match="wrong"):
        migration._outcome(b'{"error": "DatabaseConfigError", "text": "wrong"}', 0)


@pytest.mark.parametrize("output", [b"", b"Traceback", b'{"done": '])
def test_a_process_that_ends_early(output: bytes) -> None:
    """A process that was killed or could not start is a failed migration, with its status."""
    with pytest.raises(MigrationFailed, match="ended with status -9"):
        migration._outcome(output, -9)


async def test_a_cancelled_migration_is_killed(postgres: str) -> None:
    """When the start is given up, the other process ends, and with it its session and what it waits for."""
    waiting = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%pg_try_advisory_lock%' AND pid <> pg_backend_pid()"
    async with fresh_database(postgres, EMPTY_TEMPLATE) as url:
        other = await asyncpg.connect(url)
        await other.execute("SELECT pg_advisory_lock($1)", LOCK)
        migrating = asyncio.create_task(migrate_apart(url))
        async with asyncio.timeout(20):
            while not await fetch(url, waiting):  # noqa: ASYNC110 - the database tells nobody
                await asyncio.sleep(0.05)
            migrating.cancel()
            with pytest.raises(asyncio.CancelledError):
                await migrating
            while await fetch(url, waiting):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await other.close()
        assert await current_revision(url) is None
