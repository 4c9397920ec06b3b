"""Removes from the files of the database what an erasure has removed from its tables."""

import asyncpg

from server.store.connection.opening import direct_connection

_TABLES = (
    "items",
    "requests",
    "conversation_attributes",
    "conversations",
    "changes",
    "erasures",
    "expirations",
    "imports",
    "author_progress",
    "activity",
    "pending",
    "activity_progress",
)
_SECONDS = 24 * 3600.0  # for one table


async def vacuum(url: str) -> None:
    """Vacuums the tables, makes their statistics anew, and builds their indexes anew.

    Dead versions of rows go, values that the planner has noted, and those that an index keeps as borders between its
    pages. The service may run meanwhile; a transaction that is open keeps what it can still see.

    Raises:
        DatabaseConfigError, DatabaseUnreachable: As `direct_connection`.
        asyncpg.PostgresError, asyncpg.InterfaceError, OSError: A statement failed; those before it are done.
    """
    async with direct_connection(url, settings={"application_name": "conversations vacuum"}) as connection:
        for table in _TABLES:
            # Without the option, entries of an index stay when few rows of the table have gone.
            await _execute(connection, f"VACUUM (ANALYZE, INDEX_CLEANUP ON) {table}")
            await _execute(connection, f"REINDEX TABLE CONCURRENTLY {table}")
        await _execute(connection, "VACUUM pg_catalog.pg_statistic")  # only a warning for who may not


async def _execute(connection: asyncpg.Connection, statement: str) -> None:
    await connection.execute(statement, timeout=_SECONDS)
