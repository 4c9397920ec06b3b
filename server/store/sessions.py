"""What the jobs that look through all conversations run their statements on: a connection, or each shard in turn.

On a distributed database such a statement runs once for each shard, as it is, on the tables of that shard; nothing else
of it depends on how the tables lie.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Protocol

import asyncpg

from server.store.connection.layout import DISTRIBUTED, find_layout
from server.store.shard_keys import KEYS
from server.store.sql.routing import shard_statement
from server.store.sql.shard_functions import WRITE

_FETCH = f"SELECT * FROM {WRITE}($1, $2, $3, $4, ARRAY[]::bytea[], false)"  # noqa: S608 - our own text
_EXECUTE = f"SELECT count FROM {WRITE}($1, $2, $3, $4, ARRAY[]::bytea[], true)"  # noqa: S608 - our own text


class Session(Protocol):
    """What statements run on; as a connection of asyncpg."""

    async def fetch(self, query: str, *args: Any) -> list[asyncpg.Record]:
        """Returns the rows of a statement."""

    async def fetchrow(self, query: str, *args: Any) -> asyncpg.Record | None:
        """Returns the first row of a statement, or None."""

    async def execute(self, query: str, *args: Any) -> str:
        """Runs a statement; returns its status, which ends with the number of rows."""

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """Opens a transaction, where statements can share one."""


class ShardSession:
    """Runs statements on the tables of one shard, each in a transaction of its own."""

    def __init__(self, connection: asyncpg.Connection, key: str) -> None:
        self._connection = connection
        self._key = key

    async def fetch(self, query: str, *args: Any) -> list[asyncpg.Record]:
        """As of `Session`; rows have the columns of `server.store.sql.shard_functions`."""
        text, tables, texts = shard_statement(query, args)
        rows: list[asyncpg.Record] = await self._connection.fetch(_FETCH, self._key, tables, text, texts)
        return rows

    async def fetchrow(self, query: str, *args: Any) -> asyncpg.Record | None:
        """As of `Session`."""
        return next(iter(await self.fetch(query, *args)), None)

    async def execute(self, query: str, *args: Any) -> str:
        """As of `Session`."""
        text, tables, texts = shard_statement(query, args)
        count = await self._connection.fetchval(_EXECUTE, self._key, tables, text, texts)
        word = "DELETE" if "DELETE" in query else "UPDATE"
        return f"{word} {count}"

    def transaction(self) -> AbstractAsyncContextManager[None]:
        """As of `Session`: none, since the coordinator forwards no call within one."""
        return nullcontext()


async def open_sessions(connection: asyncpg.Connection) -> Sequence[Session]:
    """Returns what statements have to run on to see every conversation: ``connection``, or a session for each shard."""
    if await find_layout(connection) is not DISTRIBUTED:
        return [connection]
    return [ShardSession(connection, row["key"]) for row in await connection.fetch(KEYS)]
