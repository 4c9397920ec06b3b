"""Brings the schema up to date, one process at a time.

The lock is a session advisory lock on a connection of its own: a transaction lock would be lost with the first
CREATE INDEX CONCURRENTLY, and a pooled connection must keep no session state (sqlalchemy/alembic#633).
"""

import asyncio
from pathlib import Path

import asyncpg

from server.errors import OperatorError
from server.store.connection.opening import direct_connection

HEAD = "0002"  # newest file in migrations/versions; known here so that a start need not load Alembic
_LOCK = 0x636F6E76  # "conv"
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


def is_behind(found: str | None) -> bool:
    """Returns whether a schema is too old for this version; a newer one works, because migrations only add."""
    return found is None or found < HEAD


async def migrate(url: str, wait_seconds: float = 60) -> bool:
    """Brings the schema to `HEAD`; returns whether anything had to be done.

    Raises:
        MigrationFailed: Another process held the lock for longer than ``wait_seconds``, or a revision failed; it was
            rolled back.
        DatabaseConfigError, DatabaseUnreachable: As `direct_connection`.
    """
    if not is_behind(await current_revision(url)):
        return False
    async with direct_connection(url) as lock:  # closing it releases the lock
        await _acquire_lock(lock, wait_seconds)
        if not is_behind(await current_revision(url)):
            return False
        await asyncio.to_thread(_upgrade, url)
        return True


async def _acquire_lock(lock: asyncpg.Connection, wait_seconds: float) -> None:
    try:
        async with asyncio.timeout(wait_seconds):
            while not await lock.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise MigrationFailed(f"Another migration has been running for {wait_seconds:g} seconds.") from None


def _upgrade(url: str) -> None:
    """Runs Alembic on an event loop of its own, in a thread: Alembic is synchronous."""
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
            async_creator=lambda: asyncpg.connect(url),
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
        raise MigrationFailed(f"A migration failed and was rolled back: {type(error).__name__}.") from error
