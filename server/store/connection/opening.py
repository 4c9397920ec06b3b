"""Opens the database: the pool, connections outside of it, and the checks before it is used."""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg

from server.errors import NotReadyYet, OperatorError
from server.store.connection.bounds import Bounds
from server.store.connection.connector import Connector
from server.store.connection.database import Database
from server.store.connection.execution import Interceptor
from server.store.connection.failures import DRIVER_ERRORS, Failure, Problem, find_rule
from server.store.connection.layout import ONE_SERVER, find_layout
from server.store.connection.nodes import node_problems, read_nodes, session_problems
from server.store.connection.pgbouncer import PgBouncerConnection, session_differences
from server.store.connection.pooled_connection import PooledConnection

MINIMUM_VERSION = 150000  # PostgreSQL 15
_COMMAND_SECONDS = 60.0  # for a statement outside of the pool, which may change many rows
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")  # parameters of a URL
_REFUSALS = ("28", "3D", "42501")  # SQLSTATEs that an operator has to see to before a start


class DatabaseConfigError(OperatorError):
    """The database answers but cannot be used, or its URL is wrong; the text is for the operator."""


class DatabaseUnreachable(NotReadyYet):
    """The database cannot be used now, and may be later; the text is for the operator and says why."""


@asynccontextmanager
async def open_database(
    url: str,
    size: int,
    bounds: Bounds,
    *,
    via_pgbouncer: bool = False,
    interceptors: Iterable[Interceptor] = (),
) -> AsyncIterator[Database]:
    """Opens a database, whether it can be reached or not: connections are made when they are first needed.

    Args:
        url: Of PostgreSQL, or of a PgBouncer in transaction mode.
        size: As of `Database`.
        bounds: As of `Database`.
        via_pgbouncer: Whether ``url`` is that of a PgBouncer.
        interceptors: As of `Database`.

    Raises:
        DatabaseConfigError: The URL cannot be used.
    """
    connector = _connector_for(url)
    options = _connection_options(bounds, via_pgbouncer=via_pgbouncer)
    reset = PgBouncerConnection.forget_statements if via_pgbouncer else _skip_reset
    pool = await asyncpg.create_pool(
        min_size=0,
        max_size=size,
        connect=connector.connect,
        timeout=bounds.connect,
        reset=reset,
        max_inactive_connection_lifetime=300,  # a plan from before a migration is not kept for long
        **options,
    )
    database = Database(pool, connector, partial(connector.connect, **options), size, bounds, interceptors)
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def direct_connection(
    url: str, *, settings: Mapping[str, str] | None = None, seconds: float = Bounds.connect
) -> AsyncIterator[asyncpg.Connection]:
    """Connects outside of the pool, for what keeps session state: a lock, a migration.

    Args:
        url: Of PostgreSQL itself, not of PgBouncer.
        settings: Of the session, as in ``{"lock_timeout": "1s"}``.
        seconds: To wait for the connection.

    Raises:
        DatabaseConfigError: PostgreSQL refuses the connection, or the URL cannot be used.
        DatabaseUnreachable: PostgreSQL cannot be reached now.
    """
    connector = _connector_for(url)
    with translated_errors():
        options = {"command_timeout": _COMMAND_SECONDS, "server_settings": dict(settings or {})}
        connection = await connector.connect(timeout=seconds, **options)
    try:
        yield connection
    finally:
        with suppress(*DRIVER_ERRORS):
            await connection.close(timeout=Bounds.connect)


async def verify(database: Database, *, via_pgbouncer: bool, unsafe_durability: bool) -> None:
    """Checks that the database is what the service needs.

    Args:
        database: Its pool is asked, and makes new connections from then on.
        via_pgbouncer: Whether to check the sessions that a PgBouncer makes.
        unsafe_durability: Accept a server that may lose committed transactions in a crash.

    Raises:
        DatabaseConfigError: It or one of its nodes is too old or would lose committed data in a crash, or its
            PgBouncer makes sessions without our settings.
        DatabaseUnreachable: It cannot be reached now.
    """
    await database.pool.expire_connections()  # their sessions may be from before an operator changed a setting
    with translated_errors():
        await _verify_server(database.pool, unsafe_durability=unsafe_durability)
        await _adopt_layout(database, via_pgbouncer=via_pgbouncer, unsafe_durability=unsafe_durability)
        if via_pgbouncer and (wrong := await session_differences(database.pool, database.bounds.session())):
            raise DatabaseConfigError(
                f"Sessions of PgBouncer lack settings: {'; '.join(wrong)}. "
                "Its connect_query has to set them (docs/scale.md)."
            )


async def _adopt_layout(database: Database, *, via_pgbouncer: bool, unsafe_durability: bool) -> None:
    layout = await find_layout(database.pool)
    if layout is ONE_SERVER:
        await database.adopt(layout)
        return
    if via_pgbouncer:
        raise DatabaseConfigError(
            "The database is distributed, and CONVERSATIONS_PGBOUNCER_URL is set: a distributed database is used "
            "without PgBouncer, because sessions need settings that depend on it (docs/scale.md)."
        )
    async with database.pool.acquire() as connection:
        nodes = await read_nodes(connection)
    if problems := [*node_problems(nodes, unsafe_durability=unsafe_durability), *session_problems(nodes)]:
        raise DatabaseConfigError(f"Nodes of the database are set wrongly: {'; '.join(problems)} (docs/scale.md).")
    await database.adopt(layout)


@contextmanager
def translated_errors() -> Iterator[None]:
    """Tells apart what passes by waiting from what an operator has to mend.

    Raises:
        DatabaseUnreachable: The same may succeed later.
        DatabaseConfigError: It will not.
    """
    try:
        yield
    except DRIVER_ERRORS as error:
        cause = Failure.of(error).cause
        raise _translate(cause) from cause


def _translate(error: BaseException) -> DatabaseUnreachable | DatabaseConfigError:
    if isinstance(error, asyncpg.ProtocolViolationError):  # how PgBouncer refuses whatever it does not like
        return DatabaseConfigError(
            "The connection is refused (SQLSTATE 08P01): PgBouncer does so when it does not know the database or the "
            "user, cannot reach PostgreSQL, or is the address in CONVERSATIONS_DATABASE_URL, which has to be that of "
            "PostgreSQL itself (docs/scale.md)."
        )
    sqlstate = error.sqlstate if isinstance(error, asyncpg.PostgresError) else None
    if find_rule(error) and not (sqlstate and sqlstate.startswith(_REFUSALS)):
        return DatabaseUnreachable(Problem.of(error).sentence)
    if sqlstate:
        return DatabaseConfigError(f"The database refuses the connection (SQLSTATE {sqlstate}).")
    return DatabaseConfigError(
        f"The URL of the database cannot be used ({type(error).__name__}): see to its hosts, ports and ssl parameters."
    )


def _connector_for(url: str) -> Connector:
    """Returns a connector for ``url``.

    Raises:
        DatabaseConfigError: Its hosts and ports do not match, or a file that it names is not there. asyncpg's error
            for a missing file is that for a missing Unix socket, which is waited for.
    """
    query = parse_qs(urlsplit(url).query)
    for name in _FILES:
        for path in query.get(name, []):
            if not Path(path).expanduser().is_file():
                raise DatabaseConfigError(f"The file of {name} in the URL of the database cannot be found: {path}.")
    try:
        return Connector(url)
    except ValueError:
        raise DatabaseConfigError("The URL of the database cannot be used: hosts and ports do not match.") from None


def _connection_options(bounds: Bounds, *, via_pgbouncer: bool) -> dict[str, Any]:
    settings = {"application_name": "conversations"}
    if via_pgbouncer:  # takes no other setting, and no statement by name
        own: dict[str, Any] = {"connection_class": PgBouncerConnection, "statement_cache_size": 0}
    else:
        own, settings = {"connection_class": PooledConnection}, settings | bounds.session()
    return {"command_timeout": bounds.command, "server_settings": settings, **own}


async def _skip_reset(_connection: asyncpg.Connection) -> None:
    """Replaces asyncpg's reset query, a second round trip for state that nobody set."""


async def _verify_server(pool: asyncpg.Pool, *, unsafe_durability: bool) -> None:
    row = await pool.fetchrow(
        "SELECT current_setting('server_version_num')::int AS number, current_setting('server_version') AS version,"
        " current_setting('fsync') AS fsync, current_setting('synchronous_commit') AS commit"
    )
    assert row is not None
    if row["number"] < MINIMUM_VERSION:
        raise DatabaseConfigError(f"PostgreSQL {row['version']} is too old: 15 is the oldest that works.")
    lax = [name for name, value in (("fsync", row["fsync"]), ("synchronous_commit", row["commit"])) if value == "off"]
    if lax and not unsafe_durability:
        raise DatabaseConfigError(
            f"{' and '.join(lax)} off: a crash would lose acknowledged writes. Turn it on, or allow it with "
            "CONVERSATIONS_UNSAFE_DURABILITY=true."
        )
