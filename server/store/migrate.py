"""Brings the schema up to date, one process at a time.

The lock is a session advisory lock on a connection of its own: a transaction lock would be lost with the first
CREATE INDEX CONCURRENTLY, and a pooled connection must keep no session state (sqlalchemy/alembic#633).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import asyncpg

from server.errors import OperatorError
from server.store.connection.opening import direct_connection
from server.store.lock_retries import LOCK_TIMEOUT, try_until_locked
from server.store.placement import place_new_tables

HEAD = "0010"  # newest file in migrations/versions; known here so that a start need not load Alembic
_LOCK = 0x636F6E76  # "conv"
_SESSION = {"lock_timeout": LOCK_TIMEOUT, "application_name": "conversations migration"}
_SCRIPTS = Path(__file__).parent / "migrations"


class MigrationFailed(OperatorError):
    """The schema could not be brought up to date; the text is for the operator."""


async def current_revision(url: str) -> str | None:
    """Returns the schema's revision, None for an empty database.

    Raises:
        DatabaseConfigError, DatabaseUnreachable: As `direct_connection`.
    """
    async with direct_connection(url) as connection:
        if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
            return None
        version: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
        return version


class SchemaTooOld(OperatorError):
    """A command needs a newer schema; the text is for the operator."""


async def require_schema(url: str) -> None:
    """Returns if the schema is new enough for this version.

    Raises:
        SchemaTooOld: It is not.
        DatabaseConfigError, DatabaseUnreachable: As `direct_connection`.
    """
    if is_behind(await current_revision(url)):
        raise SchemaTooOld(f"The database schema is older than {HEAD}: run `python -m server migrate` first.")


def is_behind(found: str | None) -> bool:
    """Returns whether a schema is too old for this version; a newer one works, because migrations only add."""
    return found is None or found < HEAD


async def migrate(url: str, wait_seconds: float = 60) -> bool:
    """Brings the schema to `HEAD`; returns whether anything had to be done.

    Args:
        url: Of PostgreSQL itself, not of PgBouncer.
        wait_seconds: For another migration, and then for the locks of each table that is changed.

    Raises:
        MigrationFailed: Another session held a lock for longer than ``wait_seconds``, or a revision failed; it was
            rolled back.
        DatabaseConfigError, DatabaseUnreachable: As `direct_connection`.
    """
    if not is_behind(await current_revision(url)):
        return False
    async with migration_lock(url, wait_seconds):
        if not is_behind(await current_revision(url)):
            return False
        await _upgrade_between_statements(url, wait_seconds)
        async with direct_connection(url, settings=_SESSION) as connection:
            await place_new_tables(connection)
        return True


@asynccontextmanager
async def migration_lock(url: str, wait_seconds: float = 60) -> AsyncIterator[None]:
    """Holds the lock of migrations meanwhile.

    Raises:
        MigrationFailed: Another session held it for longer than ``wait_seconds``.
        DatabaseConfigError, DatabaseUnreachable: As `direct_connection`.
    """
    async with direct_connection(url) as lock:  # closing it releases the lock
        await _acquire_lock(lock, wait_seconds)
        yield


async def _acquire_lock(lock: asyncpg.Connection, wait_seconds: float) -> None:
    try:
        async with asyncio.timeout(wait_seconds):
            while not await lock.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise MigrationFailed(f"Another migration has been running for {wait_seconds:g} seconds.") from None


async def _upgrade_between_statements(url: str, wait_seconds: float) -> None:
    """Runs the revisions, again and again while one of them does not get a lock at once; those that are done stay."""
    if not await try_until_locked(partial(asyncio.to_thread, _upgrade, url), wait_seconds):
        raise MigrationFailed(
            f"A migration could not lock a table for {wait_seconds:g} seconds and was rolled back: end the session "
            "that holds it (pg_locks, pg_stat_activity), and try again."
        )


def _upgrade(url: str) -> bool:
    """Runs Alembic on an event loop of its own, in a thread: Alembic is synchronous.

    Returns:
        Whether the schema is up to date; False when a lock was not granted in time (SQLSTATE 55P03).

    Raises:
        MigrationFailed: A revision failed.
    """
    # Imported here: only the first start of a version pays for Alembic.
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import Connection
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS))

    def upgrade(connection: Connection) -> None:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    async def run() -> None:
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=lambda: asyncpg.connect(url, timeout=10, server_settings=_SESSION),
            poolclass=NullPool,
            hide_parameters=True,
        )
        async with engine.connect() as connection:
            await connection.run_sync(upgrade)
            await connection.commit()
        await engine.dispose()

    try:
        asyncio.run(run())
    except SQLAlchemyError as error:
        if getattr(getattr(error, "orig", None), "sqlstate", None) == asyncpg.LockNotAvailableError.sqlstate:
            return False
        raise MigrationFailed(f"A migration failed and was rolled back: {type(error).__name__}.") from error
    return True
