"""A `Database` without the service around it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.store.connection.bounds import Bounds
from server.store.connection.database import Database
from server.store.connection.opening import open_database, verify


@asynccontextmanager
async def verified_database(
    url: str, size: int, bounds: Bounds, *, unsafe_durability: bool, via_pgbouncer: bool = False
) -> AsyncIterator[Database]:
    """Opens a database that is what the service needs.

    Raises:
        DatabaseConfigError, DatabaseUnreachable: As `open_database` and `verify`.
    """
    async with open_database(url, size, bounds, via_pgbouncer=via_pgbouncer) as database:
        await verify(database, via_pgbouncer=via_pgbouncer, unsafe_durability=unsafe_durability)
        yield database
