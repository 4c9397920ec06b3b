"""Where the data is: which database, how it is reached, and how it is made fit for calls."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from server.errors import NotReadyYet
from server.settings.service import Settings
from server.store.connection.database import Bounds, Database, reachable
from server.store.embedded import default_data_dir, embedded
from server.store.migrate import HEAD, is_behind, migrate, revision
from server.store.sql import schema
from server.store.sql.statement import compiled

log = structlog.get_logger(__name__)

_TOKEN_KEYS = compiled(schema.page_token_keys.select().order_by(schema.page_token_keys.c.id.desc()))


class SchemaBehind(NotReadyYet):
    """Another process migrates, or will: the start waits for it."""


@dataclass(frozen=True)
class Store:
    """Its address for connections of their own, what to call it, and the pool."""

    url: str
    name: str
    database: Database


@asynccontextmanager
async def provision_database(settings: Settings) -> AsyncIterator[tuple[str, str]]:
    """The database's address and its name for people; the private PostgreSQL runs as long as this is open."""
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
        yield url, f"PostgreSQL at {_without_password(url)}"
        return
    async with embedded(settings.data_dir or default_data_dir()) as private:
        how = "started" if private.started else "joined"
        yield private.url, f"private PostgreSQL {private.version} in {private.data_dir} ({how})"


@asynccontextmanager
async def open_store(settings: Settings, make: Callable[..., Database] = Database) -> AsyncIterator[Store]:
    """The store as configured, whether it can be reached or not; calls go by way of PgBouncer if there is one.

    ``make``: makes the `Database`.
    """
    bounds, bouncer = Bounds(statement=settings.statement_timeout_seconds), settings.pgbouncer_url
    async with provision_database(settings) as (url, name):
        address = bouncer.get_secret_value() if bouncer else url
        async with reachable(
            address, settings.pool_size, bounds, via_pgbouncer=bouncer is not None, make=make
        ) as database:
            yield Store(url, name, database)


async def prepare_schema(settings: Settings, store: Store) -> list[bytes]:
    """Makes the store fit for calls; the secrets of page tokens, which are kept in it.

    Raises:
        StoreUnavailable, SchemaBehind: It will be fit, later.
        DatabaseConfigError, MigrationFailed: It will not.
    """
    await store.database.examine(unsafe_durability=settings.unsafe_durability)
    await _up_to_date(store.url, migrating=settings.migrate)
    return [row["secret"] for row in await store.database.fetch(_TOKEN_KEYS, {})]


async def _up_to_date(url: str, *, migrating: bool) -> None:
    if migrating:
        if await migrate(url):
            log.info("database schema brought up to date", revision=HEAD)
    elif is_behind(found := await revision(url)):
        raise SchemaBehind(
            f"The database schema is at {found or 'nothing'}, not {HEAD}: run `python -m server migrate`."
        )


def _without_password(url: str) -> str:
    """Host and database of a URL; credentials and parameters stay unsaid."""
    rest = url.partition("://")[2]
    return rest.rpartition("@")[2].partition("?")[0] or "the default socket"
