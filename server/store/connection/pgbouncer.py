"""Connections through PgBouncer in transaction mode (docs/scale.md).

From one statement to the next PgBouncer may put another PostgreSQL process behind a connection. So a statement leaves
nothing there that a later one needs: it is sent whole, text and arguments, up to the Sync that ends its transaction.
Only the types of its parameters and columns are kept, on this side.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import asyncpg

from server.store.connection.pooled_connection import PooledConnection

_MAX_DESCRIBED = 200  # statements whose types a connection keeps


class PgBouncerConnection(PooledConnection):
    """A connection whose statements are unnamed; it needs ``statement_cache_size=0``.

    Without a cache asyncpg has a statement described before each run, in a round trip of its own. Here that is done
    once. asyncpg's prepared statement, which is unnamed then, is parsed again with every run, in the same
    round trip.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._described: dict[str, asyncpg.prepared_stmt.PreparedStatement] = {}

    async def fetch(self, query: str, *args: Any, **options: Any) -> list[asyncpg.Record]:
        """Returns the rows of ``query``; of asyncpg's other options only ``timeout`` is taken."""
        statement = await self._statement(query)
        return await statement.fetch(*args, timeout=options.get("timeout"))  # type: ignore[no-any-return]

    async def fetchmany(self, query: str, args: Iterable[tuple[Any, ...]], **options: Any) -> list[asyncpg.Record]:
        """Returns the rows of ``query`` run with each of ``args``, in one round trip."""
        statement = await self._statement(query)
        return await statement.fetchmany(args, timeout=options.get("timeout"))  # type: ignore[no-any-return]

    async def forget_statements(self) -> None:
        """Drops all prepared statements: asyncpg's are good only until the connection is released to its pool."""
        self._described.clear()

    async def _statement(self, query: str) -> Any:
        found = self._described.get(query)
        if found is None:
            found = await self.prepare(query)
            if len(self._described) >= _MAX_DESCRIBED:
                self._described.clear()
            self._described[query] = found
        return found


async def session_differences(pool: asyncpg.Pool, session: Mapping[str, str]) -> list[str]:
    """Returns a sentence for each setting of ``session`` that is another one in the sessions behind ``pool``.

    PgBouncer passes on none of the settings that a client starts with.
    """
    rows = await pool.fetch("SELECT name, setting FROM pg_settings WHERE name = ANY($1::text[])", list(session))
    found = {row["name"]: row["setting"] for row in rows}
    return [f"{name} is {found[name]}, not {value}" for name, value in session.items() if found[name] != value]
