"""The database of the process: which one it is, how it is connected to, and how its schema is prepared."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from server.app.migration import migrate_apart
from server.errors import NotReadyYet
from server.observability.task_supervisor import TaskSupervisor
from server.settings.service import Settings
from server.store.connection.bounds import Bounds
from server.store.connection.database import Database
from server.store.connection.execution import Interceptor
from server.store.connection.opening import open_database, translated_errors, verify
from server.store.embedded import default_data_dir, run_embedded
from server.store.migrate import HEAD, current_revision, is_behind
from server.store.placement import find_missing
from server.store.sql import schema
from server.store.sql.statement import compile_statement

log = structlog.get_logger(__name__)

_TOKEN_KEYS = compile_statement(schema.page_token_keys.select().order_by(schema.page_token_keys.c.id.desc()), "read")


class SchemaBehind(NotReadyYet):
    """The schema lacks what this version needs, and this process may not add it; readiness waits until another has."""


@dataclass(frozen=True)
class Store:
    """An open database.

    Attributes:
        url: Of PostgreSQL itself, for connections outside of the pool; with the password.
        name: For people; without credentials.
        database: The pool.
    """

    url: str
    name: str
    database: Database


@asynccontextmanager
async def provision_database(settings: Settings, tasks: TaskSupervisor | None = None) -> AsyncIterator[tuple[str, str]]:
    """Yields the database's URL and its name for people; the private PostgreSQL runs as long as this is open.

    Args:
        settings: Which database.
        tasks: As of `run_embedded`.

    Raises:
        EmbeddedError: The private PostgreSQL cannot be run.
    """
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
        yield url, f"PostgreSQL at {_without_password(url)}"
        return
    async with run_embedded(settings.data_dir or default_data_dir(), tasks) as private:
        how = "started" if private.started else "joined"
        yield private.url, f"private PostgreSQL {private.version} in {private.data_dir} ({how})"


@asynccontextmanager
async def open_store(
    settings: Settings, interceptors: Iterable[Interceptor] = (), tasks: TaskSupervisor | None = None
) -> AsyncIterator[Store]:
    """Opens the store as configured, whether it can be reached or not; calls go through PgBouncer if there is one.

    Args:
        settings: Which database, and how it is used.
        interceptors: As of `Database`.
        tasks: As of `run_embedded`.

    Raises:
        EmbeddedError: The private PostgreSQL cannot be run.
        DatabaseConfigError: The URL cannot be used.
    """
    bounds, bouncer = Bounds(statement=settings.statement_timeout_seconds), settings.pgbouncer_url
    async with provision_database(settings, tasks) as (url, name):
        address = bouncer.get_secret_value() if bouncer else url
        async with open_database(
            address, settings.pool_size, bounds, via_pgbouncer=bouncer is not None, interceptors=interceptors
        ) as database:
            yield Store(url, name, database)


async def prepare_schema(settings: Settings, store: Store) -> list[bytes]:
    """Checks the database and migrates its schema; returns the secrets that sign page tokens, newest first.

    Raises:
        DatabaseUnreachable, StoreUnavailable, SchemaBehind: Not yet; the same call may succeed later.
        DatabaseConfigError, MigrationFailed: An operator has to mend something first.
    """
    await verify(
        store.database,
        via_pgbouncer=settings.pgbouncer_url is not None,
        unsafe_durability=settings.unsafe_durability,
    )
    await _ensure_schema(store.url, migrating=settings.migrate)
    layout = store.database.layout
    if layout.is_distributed:
        await _require_placement(store.database)
        log.info("database layout", layout=layout.name, refuses=layout.refuses)
    return [row["secret"] for row in await store.database.fetch(_TOKEN_KEYS, {})]


async def _ensure_schema(url: str, *, migrating: bool) -> None:
    if migrating:
        if await migrate_apart(url):
            log.info("database schema brought up to date", revision=HEAD)
    elif is_behind(found := await current_revision(url)):
        raise SchemaBehind(
            f"The database schema is at {found or 'nothing'}, not {HEAD}: run `python -m server migrate`."
        )


async def _require_placement(database: Database) -> None:
    """Returns if all tables and functions of this version are placed: an older version has placed its own."""
    with translated_errors():
        async with database.pool.acquire() as connection:
            plan = await find_missing(connection, ())  # settings of nodes have been looked at
    if not plan.is_empty:
        lines = "; ".join(plan.lines())
        raise SchemaBehind(f"The distributed database needs `python -m server distribute` for this version: {lines}.")


def _without_password(url: str) -> str:
    """Returns host and database of a URL, without credentials and parameters."""
    rest = url.partition("://")[2]
    return rest.rpartition("@")[2].partition("?")[0] or "the default socket"
