"""Connections through PgBouncer in transaction mode (docs/scale.md).

From one statement to the next PgBouncer may put another PostgreSQL process
behind a connection. So a statement leaves nothing there that a later one needs:
it is sent whole, text and arguments, up to the Sync with which its transaction
ends. Only what its parameters and columns are is kept, on this side.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import asyncpg

_MOST = 200  # descriptions that a connection keeps


class PgBouncerConnection(asyncpg.Connection):  # type: ignore[misc] # has no types
    """A connection whose statements are unnamed; it needs ``statement_cache_size=0``.

    Without a cache asyncpg describes a statement before each run. Here it does so
    once, and its own prepared statement, which has no name then and is parsed
    again with every run, takes one round trip.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._described: dict[str, asyncpg.prepared_stmt.PreparedStatement] = {}

    async def fetch(self, query: str, *args: Any, **asked: Any) -> list[asyncpg.Record]:
        """The rows of ``query``; of what else asyncpg can be asked for, there is the timeout."""
        statement = await self._statement(query)
        return await statement.fetch(*args, timeout=asked.get("timeout"))  # type: ignore[no-any-return]

    async def fetchmany(self, query: str, args: Iterable[tuple[Any, ...]], **asked: Any) -> list[asyncpg.Record]:
        """The rows of ``query`` with each of ``args``."""
        statement = await self._statement(query)
        return await statement.fetchmany(args, timeout=asked.get("timeout"))  # type: ignore[no-any-return]

    async def forget(self) -> None:
        """Lets go of what is described: it ends with the time that the connection is out of its pool."""
        self._described.clear()

    async def _statement(self, query: str) -> Any:
        found = self._described.get(query)
        if found is None:
            found = await self.prepare(query)
            if len(self._described) >= _MOST:
                self._described.clear()
            self._described[query] = found
        return found


async def differences(pool: asyncpg.Pool, session: Mapping[str, str]) -> list[str]:
    """The settings that sessions behind ``pool`` have and should not have; PgBouncer passes on none of ours."""
    rows = await pool.fetch("SELECT name, setting FROM pg_settings WHERE name = ANY($1::text[])", list(session))
    found = {row["name"]: row["setting"] for row in rows}
    return [f"{name} is {found[name]}, not {value}" for name, value in session.items() if found[name] != value]
