"""The PostgreSQL of a run: one database for each target, and the statistics of the server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from server.store.embedded import run_embedded

_IDLE_FLUSH_SECONDS = 10.5  # an idle backend reports to pg_stat_database after 10 s (PGSTAT_IDLE_INTERVAL)
_SHOWN = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "autovacuum")


@dataclass(frozen=True)
class Postgres:
    """A running server, and a connection for queries and for creating databases."""

    url: str
    pid: int
    connection: asyncpg.Connection

    async def database(self, name: str) -> str:
        """Creates an empty database and returns its URL."""
        await self.connection.execute(f'CREATE DATABASE "{name}"')
        return self._at(name)

    def _at(self, name: str) -> str:
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc or "", f"/{name}", parts.query, ""))

    async def settle(self, name: str) -> None:
        """Vacuums and analyses a database, so that plans do not depend on when autovacuum does."""
        connection = await asyncpg.connect(self._at(name))
        try:
            await connection.execute("VACUUM ANALYZE")
        finally:
            await connection.close()

    async def wal_bytes(self) -> int:
        """Bytes of the write-ahead log so far."""
        return int(await self.connection.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))

    async def databases(self) -> set[str]:
        """The names of all databases."""
        return {row["datname"] for row in await self.connection.fetch("SELECT datname FROM pg_database")}

    async def transactions(self) -> dict[str, int]:
        """Committed and rolled back transactions of each database, after its idle backends have reported theirs."""
        await asyncio.sleep(_IDLE_FLUSH_SECONDS)
        rows = await self.connection.fetch("SELECT datname, xact_commit + xact_rollback AS total FROM pg_stat_database")
        return {row["datname"]: row["total"] for row in rows if row["datname"]}

    async def settings(self) -> dict[str, str]:
        """The settings that influence the figures."""
        return {name: await self.connection.fetchval("SELECT current_setting($1)", name) for name in _SHOWN}

    @asynccontextmanager
    async def without_autovacuum(self) -> AsyncIterator[None]:
        """Turns autovacuum off, whose transactions would be counted too."""
        await self._reconfigure("ALTER SYSTEM SET autovacuum = off")
        try:
            yield
        finally:
            await self._reconfigure("ALTER SYSTEM RESET autovacuum")

    async def _reconfigure(self, statement: str) -> None:
        await self.connection.execute(statement)
        await self.connection.execute("SELECT pg_reload_conf()")


@asynccontextmanager
async def private_postgres(folder: Path) -> AsyncIterator[Postgres]:
    """Runs a PostgreSQL in ``folder``, with its default durability."""
    async with run_embedded(folder / "data") as private:
        connection = await asyncpg.connect(private.url)
        try:
            data = await connection.fetchval("SELECT current_setting('data_directory')")
            pid = int((Path(data) / "postmaster.pid").read_text().split()[0])
            yield Postgres(private.url, pid, connection)
        finally:
            await connection.close()
