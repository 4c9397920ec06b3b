"""Tells how far a migration is that builds an index, which takes minutes on a table with many rows.

PostgreSQL tells it in a view, to others than the session that builds: so this has a connection of its own.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import asyncpg

from server.errors import OperatorError
from server.store.connection.failures import DRIVER_ERRORS
from server.store.connection.opening import direct_connection

_POLL_SECONDS = 0.5
# One phase counts rows, the others count blocks.
_STEP = """
    SELECT relid::regclass::text AS table, phase,
        CASE WHEN tuples_total > 0 THEN tuples_done ELSE blocks_done END AS done,
        CASE WHEN tuples_total > 0 THEN tuples_total ELSE blocks_total END AS total
    FROM pg_stat_progress_create_index WHERE datname = current_database() ORDER BY pid LIMIT 1"""


@dataclass(frozen=True)
class IndexStep:
    """How far an index is.

    Attributes:
        table: That gets the index.
        phase: In the words of PostgreSQL.
        done: Rows or blocks that are dealt with.
        total: Of how many; 0 in a phase that counts nothing.
    """

    table: str
    phase: str
    done: int
    total: int


async def read_step(connection: asyncpg.Connection) -> IndexStep | None:
    """Returns how far the index is that is being built, or None if there is none."""
    row = await connection.fetchrow(_STEP)
    return IndexStep(**row) if row else None


async def follow_migration(url: str, on_step: Callable[[IndexStep], None]) -> None:
    """Calls ``on_step`` with every step of the migration that runs, until it is cancelled.

    A database that does not answer ends it without a word: the migration itself says what is wrong.
    """
    try:
        async with direct_connection(url) as connection:
            while True:
                if step := await read_step(connection):
                    on_step(step)
                await asyncio.sleep(_POLL_SECONDS)
    except (*DRIVER_ERRORS, OperatorError):
        return
