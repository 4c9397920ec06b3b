"""One way to the database: a pool, bounded waits, retries, and errors by SQLSTATE.

Statements run outside of transactions, one per call, and pooled connections
keep no session state: that is why the pool's reset query can be off, and why
nothing here may SET, LISTEN or take a session lock.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import Any

import asyncpg
import structlog

from server.errors import Conflict, DeadlineExceeded, OperatorError, OutcomeUnknown, StoreUnavailable
from server.observability.stats import StoreStats
from server.store.connection.execution import Execute, Execution, Interceptor, Rows
from server.store.connection.pgbouncer import PgBouncerConnection, session_differences
from server.store.connection.read_batching import ReadBatcher
from server.store.connection.warm_connections import Connection, WarmConnections
from server.store.sql.statement import Statement

log = structlog.get_logger(__name__)

MINIMUM_VERSION = 150000  # PostgreSQL 15
_TRIES = 3  # of a statement that lost a race, or of a repeatable one that lost its connection
_RACES = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)  # 40001, 40P01
# What a lost, refused or restarting server looks like: class 08, 57P01-57P03,
# 53300, and asyncpg's own view of a closed socket (traps §3.5).
_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    OSError,
)
_SLOW = (asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError, TimeoutError)  # 57014, 55P03
_PING = Statement("SELECT 1", (), "read")


class NotConnected(Exception):
    """No connection could be made, so nothing was sent."""


class DatabaseConfigError(OperatorError):
    """The database answers but cannot be used; the text is for the operator."""


@dataclass(frozen=True)
class Bounds:
    """How long to wait for what, in seconds (traps §3.3)."""

    connect: float = 5.0
    acquire: float = 1.0
    statement: float = 5.0  # on the server; the client waits a second longer
    lock: float = 2.0

    def session(self) -> dict[str, str]:
        """The settings of each session, as pg_settings shows them."""
        return {
            "jit": "off",  # no statement here runs long enough to earn its compilation
            # Every statement walks indexes. A plan from when a table was small would scan
            # it, and be kept while the table grows, until statistics catch up (ADR 10).
            "enable_seqscan": "off",
            "enable_bitmapscan": "off",
            "plan_cache_mode": "force_generic_plan",
            "statement_timeout": _milliseconds(self.statement),
            "lock_timeout": _milliseconds(self.lock),
            "idle_in_transaction_session_timeout": _milliseconds(10),
        }


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))  # 0 would be no bound


class Database:
    """Runs compiled statements on a pool of connections.

    Args:
        pool: Of asyncpg.
        size: The most connections that ``pool`` makes.
        bounds: How long to wait for what.
        via_pgbouncer: Whether ``pool`` connects to a PgBouncer in transaction mode.
        interceptors: Run around each attempt of a statement, the last one outermost.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        size: int,
        bounds: Bounds,
        *,
        via_pgbouncer: bool = False,
        interceptors: Iterable[Interceptor] = (),
    ) -> None:
        self.answered = 0  # statements; who sees it grow knows that the database is there
        self.size = size  # the most connections there may be
        self.waiting = 0  # statements without a connection
        self.stats = StoreStats()
        self.interceptors = list(interceptors)
        self._via_pgbouncer = via_pgbouncer
        self._connections = WarmConnections(pool)
        self._free = asyncio.Semaphore(size)
        self._bounds = bounds
        self._reads = ReadBatcher(self._execute_reads)

    async def fetch(
        self,
        statement: Statement,
        values: Mapping[str, Any],
        *,
        repeatable: bool = True,
        callers: Sequence[Context] = (),
    ) -> Rows:
        """The rows of ``statement``.

        Args:
            statement: What to run, outside of any transaction.
            values: Of all its parameters, by name; more do no harm.
            repeatable: Whether it may run again after its connection was lost:
                true for reads and for writes under a request id.
            callers: As `Execution.callers`.

        Raises:
            StoreUnavailable: No connection, or none in time.
            OutcomeUnknown: The connection was lost after the statement was sent, and it is not ``repeatable``.
            Conflict: Lost a race (40001, 40P01) at every try.
            DeadlineExceeded: The statement or a lock took longer than its bound.
            asyncpg.IntegrityConstraintViolationError: For the store to explain.
        """
        return await self._execute(Execution(statement, (statement.arguments(values),), callers), repeatable=repeatable)

    async def read(self, statement: Statement, values: Mapping[str, Any]) -> Rows:
        """As `fetch`, for short reads: those of many calls may share a round trip."""
        rows = await self._reads.fetch(statement, statement.arguments(values))
        self.stats.reads += 1
        return rows

    async def fetchrow(
        self,
        statement: Statement,
        values: Mapping[str, Any],
        *,
        repeatable: bool = True,
        callers: Sequence[Context] = (),
    ) -> asyncpg.Record | None:
        """The first row of ``statement``, or None; as `fetch` otherwise."""
        rows = await self.fetch(statement, values, repeatable=repeatable, callers=callers)
        return rows[0] if rows else None

    @property
    def in_use(self) -> int:
        """How many connections run a statement now."""
        return self._connections.in_use

    @property
    def pool(self) -> asyncpg.Pool:
        """The pool, for what is no statement of a call."""
        return self._connections.pool

    async def _execute_reads(self, execution: Execution) -> Rows:
        if len(execution.arguments) > 1:
            self.stats.shared_reads.add(len(execution.arguments))
        return await self._execute(execution)

    async def ping(self) -> None:
        """Has the database answer; raises as `fetch` does."""
        await self._execute(Execution(_PING, ((),)))

    async def examine(self, *, unsafe_durability: bool) -> None:
        """Sees whether the database is what the service needs.

        Raises:
            DatabaseConfigError: It is too old, would lose committed data in a crash, or its
                PgBouncer makes sessions without our settings.
            StoreUnavailable: It cannot be reached.
        """
        await self.pool.expire_connections()  # their sessions may be from before somebody mended it
        with _reaching():
            await check(self.pool, unsafe_durability=unsafe_durability)
            if self._via_pgbouncer and (wrong := await session_differences(self.pool, self._bounds.session())):
                raise DatabaseConfigError(
                    f"Sessions of PgBouncer lack settings: {'; '.join(wrong)}. "
                    "Its connect_query has to set them (docs/scale.md)."
                )

    async def close(self) -> None:
        """Closes the pool; calls still running get a few seconds."""
        await self._connections.close()

    def _intercepted(self) -> Execute:
        """`_run_once` within the interceptors."""
        execute: Execute = self._run_once
        for interceptor in self.interceptors:
            execute = partial(interceptor, execute)
        return execute

    async def _run_once(self, execution: Execution) -> Rows:
        await self._enter()
        began = time.perf_counter()
        sent = False

        def send(connection: Connection) -> Awaitable[Rows]:
            nonlocal sent
            sent = True
            return _send(connection, execution)

        try:
            return await self._connections.run(send)
        except _LOST as error:
            if sent:
                raise
            raise NotConnected from error
        finally:
            self._free.release()
            self.stats.seconds[execution.statement.kind].add(time.perf_counter() - began)

    async def _enter(self) -> None:
        """Waits for a connection to be free; asyncpg's own wait is a task per call."""
        if not self._free.locked():
            await self._free.acquire()
            return
        began = time.perf_counter()
        self.waiting += 1
        try:
            async with asyncio.timeout(self._bounds.acquire):
                await self._free.acquire()
        except TimeoutError:
            self.stats.failures["pool"] += 1
            raise StoreUnavailable from None
        finally:
            self.waiting -= 1
            self.stats.waits.add(time.perf_counter() - began)

    async def _execute(self, execution: Execution, *, repeatable: bool = True) -> Rows:
        """Runs ``execution``, again where that may help; see `fetch`."""
        for attempt in range(1, _TRIES + 1):
            try:
                rows = await self._intercepted()(execution)
            except _RACES as error:
                self.stats.failures["race"] += 1
                if attempt == _TRIES:
                    raise Conflict from error
            except (NotConnected, *_LOST) as error:
                cause = error.__cause__ if isinstance(error, NotConnected) else error
                self.stats.failures["connection"] += 1
                log.warning("database connection lost", error=type(cause).__name__, attempt=attempt)
                await self._connections.renew()
                if not (repeatable or isinstance(error, NotConnected)):
                    raise OutcomeUnknown from cause
                if attempt == _TRIES:
                    raise StoreUnavailable from cause
            except _SLOW as error:
                self.stats.failures["timeout"] += 1
                raise DeadlineExceeded from error
            else:
                self.answered += 1
                return rows
            self.stats.retries += 1
            await asyncio.sleep(random.uniform(0.005, 0.02) * attempt)  # noqa: S311 - jitter
        raise AssertionError("unreachable")


def _send(connection: Connection, execution: Execution) -> Awaitable[Rows]:
    """Sends ``execution`` in one round trip."""
    text, arguments = execution.statement.text, execution.arguments
    if len(arguments) == 1:
        return connection.fetch(text, *arguments[0])  # type: ignore[no-any-return]
    return connection.fetchmany(text, arguments)  # type: ignore[no-any-return]


@asynccontextmanager
async def reachable(
    url: str,
    size: int,
    bounds: Bounds,
    *,
    via_pgbouncer: bool = False,
    interceptors: Iterable[Interceptor] = (),
) -> AsyncIterator[Database]:
    """A database, whether it is there or not; it is first connected to when it is first used.

    Args:
        url: Of PostgreSQL, or of a PgBouncer in transaction mode.
        size: As of `Database`.
        bounds: As of `Database`.
        via_pgbouncer: As of `Database`.
        interceptors: As of `Database`.

    Raises:
        DatabaseConfigError: The URL cannot be read.
    """
    with _reaching():
        pool = await _pool(url, size, bounds, via_pgbouncer=via_pgbouncer)
    database = Database(pool, size, bounds, via_pgbouncer=via_pgbouncer, interceptors=interceptors)
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def connected(
    url: str, size: int, bounds: Bounds, *, unsafe_durability: bool, via_pgbouncer: bool = False
) -> AsyncIterator[Database]:
    """As `reachable`, of a database that is what the service needs.

    Raises:
        DatabaseConfigError, StoreUnavailable: As `Database.examine`.
    """
    async with reachable(url, size, bounds, via_pgbouncer=via_pgbouncer) as database:
        await database.examine(unsafe_durability=unsafe_durability)
        yield database


@asynccontextmanager
async def direct(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection outside of the pool, for what keeps session state: a lock, a migration.

    Raises:
        DatabaseConfigError, StoreUnavailable: As `connected`.
    """
    with _reaching():
        connection = await asyncpg.connect(url, timeout=5)
    try:
        yield connection
    finally:
        await connection.close()


@contextmanager
def _reaching() -> Iterator[None]:
    """Tells why no connection could be made."""
    try:
        yield
    except asyncpg.ProtocolViolationError as error:  # how PgBouncer refuses whatever it does not like
        raise DatabaseConfigError(
            "The connection is refused (SQLSTATE 08P01): PgBouncer does so when it does not know the database or the "
            "user, cannot reach PostgreSQL, or is the address in CONVERSATIONS_DATABASE_URL, which has to be that of "
            "PostgreSQL itself (docs/scale.md)."
        ) from error
    except (*_LOST, *_SLOW) as error:
        raise StoreUnavailable from error
    except asyncpg.PostgresError as error:
        raise DatabaseConfigError(f"The database refuses the connection (SQLSTATE {error.sqlstate}).") from error


async def _pool(url: str, size: int, bounds: Bounds, *, via_pgbouncer: bool) -> asyncpg.Pool:
    named: dict[str, Any] = {"application_name": "conversations"}
    if via_pgbouncer:  # takes no other setting, and no statement by name
        own = {
            "connection_class": PgBouncerConnection,
            "statement_cache_size": 0,
            "reset": PgBouncerConnection.forget_statements,
            "server_settings": named,
        }
    else:
        own = {"reset": _keep, "server_settings": named | bounds.session()}
    return await asyncpg.create_pool(
        url,
        min_size=0,
        max_size=size,
        timeout=bounds.connect,
        command_timeout=bounds.statement + 1,
        max_inactive_connection_lifetime=300,  # plans do not outlive a migration for long (traps §3.7)
        **own,
    )


async def _keep(_connection: asyncpg.Connection) -> None:
    """Replaces asyncpg's reset query, a second round trip for state nobody set."""


async def check(pool: asyncpg.Pool, *, unsafe_durability: bool) -> None:
    """Raises DatabaseUnfit unless the server is recent and durable enough."""
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
