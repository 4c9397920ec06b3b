"""Runs statements: a pool of connections, bounded waits, retries, and errors by what has failed.

Statements run outside of transactions, one per call, and pooled connections keep no session state: that is why the
pool's reset query can be off, and why nothing here may SET, LISTEN or take a session lock.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from contextvars import Context
from functools import partial
from typing import Any

import asyncpg

from server.errors import OutcomeUnknown, StoreUnavailable
from server.observability.stats import StoreStats
from server.store.connection.bounds import Bounds
from server.store.connection.connector import Connector
from server.store.connection.execution import Execute, Execution, Interceptor, Rows
from server.store.connection.failures import (
    DISK_FULL,
    DRIVER_ERRORS,
    TOO_MANY_CONNECTIONS,
    ConnectFailed,
    Failure,
    FailureRule,
    Problem,
    find_taken_key,
)
from server.store.connection.layout import ONE_SERVER, Layout
from server.store.connection.outage import OutageLog
from server.store.connection.probe import Connect, Probe
from server.store.connection.read_batching import ReadBatcher
from server.store.connection.scan_limit import ScanLimit
from server.store.connection.slots import ConnectionSlots, waited, waited_since
from server.store.connection.warm_connections import Connection, WarmConnections
from server.store.sql.statement import Statement

_TRIES = 3  # of a statement whose failure another attempt may mend


class Database:
    """Runs compiled statements on a pool of connections.

    Args:
        pool: Of asyncpg.
        connector: Makes the connections of ``pool``.
        connect: Makes a connection outside of ``pool``, for probes.
        size: The most connections that ``pool`` makes.
        bounds: How long to wait for what; public.
        interceptors: Run around each attempt of a statement, the last one outermost.

    Attributes:
        answered: How many statements the database has answered.
        usable: Whether the last probe found that it can be used; True before the first one.
        layout: How the tables lie; of one server until `adopt`.
        outage: What has failed of late.
        scans: Bounds those that run at once; whoever runs one takes a place there.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        connector: Connector,
        connect: Connect,
        size: int,
        bounds: Bounds,
        interceptors: Iterable[Interceptor] = (),
    ) -> None:
        self.answered = 0
        self.usable = True
        self.layout = ONE_SERVER
        self.size = size
        self.bounds = bounds
        self.stats = StoreStats()
        self.outage = OutageLog()
        self.interceptors = list(interceptors)
        self._connector = connector
        self._connections = WarmConnections(pool)
        self._slots = ConnectionSlots(size, bounds.acquire, self.stats)
        self.scans = ScanLimit(size, bounds.acquire)
        self._reads = ReadBatcher(self._execute_reads)
        self._probe = Probe(connect, bounds.probe)
        self._suspicion = asyncio.Event()  # a statement failed for a reason that may concern all
        self._disk_is_full = False  # as far as is known

    async def fetch(
        self,
        statement: Statement,
        values: Mapping[str, Any],
        *,
        repeatable: bool = True,
        callers: Sequence[Context] = (),
    ) -> Rows:
        """Returns the rows of ``statement``.

        Args:
            statement: What to run, outside of any transaction.
            values: Of all its parameters, by name; more do no harm.
            repeatable: Whether it may run again when it is not known whether it has run:
                true for reads and for writes under a request id.
            callers: As `Execution.callers`.

        Raises:
            StoreUnavailable: The database cannot be used now, or no connection was free in time.
            OutcomeUnknown: The statement was sent, its answer never came, and it is not ``repeatable``.
            Conflict: The statement lost a race (40001, 40P01) at every attempt.
            DeadlineExceeded: The statement or a lock took longer than its bound.
            KeyTaken: The statement would have stored a key that exists; for the store to explain.
            NotSupported: The database is distributed, and cannot do this.
            asyncpg.PostgresError: What has no rule in `failures`: a defect.
        """
        sent = self.layout.route(statement)
        return await self._execute(Execution(sent, (sent.arguments(values),), callers), repeatable=repeatable)

    async def read(self, statement: Statement, values: Mapping[str, Any]) -> Rows:
        """As `fetch`, for short reads: those of many calls may share a round trip, unless they are routed."""
        sent = self.layout.route(statement)
        if sent == statement:  # not the same object: statements are compiled again
            rows = await self._reads.fetch(statement, statement.arguments(values))
        else:  # the coordinator forwards no second one in the same round trip
            rows = await self._execute(Execution(sent, (sent.arguments(values),)))
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
        """As `fetch`; returns the first row, or None."""
        rows = await self.fetch(statement, values, repeatable=repeatable, callers=callers)
        return rows[0] if rows else None

    @property
    def in_use(self) -> int:
        """How many connections run a statement now."""
        return self._connections.in_use

    @property
    def waiting(self) -> int:
        """How many statements wait for a connection."""
        return self._slots.waiting

    @property
    def pool(self) -> asyncpg.Pool:
        """The pool, for what is no statement of a call."""
        return self._connections.pool

    async def adopt(self, layout: Layout) -> None:
        """Runs statements as ``layout`` wants them, on connections that are made from now on."""
        if layout is not self.layout:
            self.layout = layout
            self._connector.session = layout.session
            await self.pool.expire_connections()

    async def probe(self) -> str:
        """Asks the database, on a connection of its own, whether it can be used; takes `Bounds.probe` at most.

        When it cannot be used any more all connections are ended, and with them the statements that wait for an answer.

        Returns:
            Why it cannot be used, in words for operators; '' if it can.
        """
        self._suspicion.clear()
        answered = self.answered
        try:
            replaced = await self._probe.ask(disk=self._disk_is_full)
        except Exception as error:  # noqa: BLE001 - whatever it is, the database has not answered
            if isinstance(error, TimeoutError) and self.answered > answered:
                return ""  # it answers calls: it is slow, not gone
            return await self._give_up(Problem.of(error))
        self._disk_is_full = False
        if replaced:  # what ended that connection may have ended others, or left them on a standby
            await self._connections.renew()
        self.usable = True
        return ""

    async def wait_for_suspicion(self, seconds: float) -> bool:
        """Returns True when a statement fails for a reason that may concern all, False after ``seconds``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._suspicion.wait()
        return self._suspicion.is_set()

    def report_failures(self, *, ready: bool) -> None:
        """Writes to the log what there is to tell of failures; ``ready``: whether calls are served."""
        self.outage.report(ready=ready)

    async def release_unused(self) -> None:
        """Releases connections that are not needed, until it is cancelled."""
        await self._connections.release_unused()

    async def close(self) -> None:
        """Closes all connections; statements that still run get a few seconds."""
        self._probe.close()
        await self._connections.close()

    async def _give_up(self, problem: Problem) -> str:
        self.outage.add(problem)
        if self.usable:
            self.usable = False
            self._connector.terminate_all()
            await self._connections.renew()
        return problem.sentence

    async def _execute_reads(self, execution: Execution) -> Rows:
        if len(execution.arguments) > 1:
            self.stats.shared_reads.add(len(execution.arguments))
        return await self._execute(execution)

    async def _execute(self, execution: Execution, *, repeatable: bool = True) -> Rows:
        """Runs ``execution``, again where that may help; see `fetch`."""
        began = time.perf_counter() - waited()
        for attempt in range(1, _TRIES + 1):
            try:
                with waited_since(began) if attempt > 1 else nullcontext():
                    rows = await self._intercepted()(execution)
            except DRIVER_ERRORS as error:
                if taken := find_taken_key(error):
                    raise taken from error
                failure = Failure.of(error)
                if failure.rule is None:
                    raise self.layout.explain(failure.cause) from None
                await self._note(failure.rule, failure.cause)
                if not (repeatable or failure.undone):
                    raise OutcomeUnknown from failure.cause
                if attempt == _TRIES or not failure.rule.retry:
                    raise failure.rule.error() from failure.cause
            else:
                self.answered += 1
                return rows
            self.stats.retries += 1
            await asyncio.sleep(random.uniform(0.005, 0.02) * attempt)  # noqa: S311 - jitter
        raise AssertionError("unreachable")

    async def _note(self, rule: FailureRule, error: BaseException) -> None:
        """Counts a failure, and does what its rule says about connections and probes."""
        self.stats.failures[rule.metric] += 1
        if rule.error is StoreUnavailable:
            self.outage.add(Problem.of(error))
        if rule is DISK_FULL:
            self._disk_is_full = True
        if rule.probe:
            self._suspicion.set()
        if rule.renew:
            await self._connections.renew()

    def _intercepted(self) -> Execute:
        """`_run_once` within the interceptors."""
        execute: Execute = self._run_once
        for interceptor in self.interceptors:
            execute = partial(interceptor, execute)
        return execute

    async def _run_once(self, execution: Execution) -> Rows:
        waits = execution.statement.waits
        await self._slots.acquire(waits=waits)
        began = time.perf_counter()
        try:
            self._refuse_to_connect()
            return await self._connections.run(partial(_send, execution=execution))
        except ConnectFailed as error:
            if Failure.of(error).rule is TOO_MANY_CONNECTIONS:
                self._slots.withhold()
            raise
        finally:
            self._slots.release(waits=waits)
            self.stats.seconds[execution.statement.kind].add(time.perf_counter() - began)

    def _refuse_to_connect(self) -> None:
        """While the database cannot be used, only probes try to connect: a call would wait for nothing.

        Raises:
            StoreUnavailable: It cannot be used, and there is no connection that may work all the same.
        """
        if self.usable or self._connections.has_idle:
            return
        self.stats.failures["connection"] += 1
        if self.outage.current:
            self.outage.add(self.outage.current.problem)
        raise StoreUnavailable


def _send(connection: Connection, execution: Execution) -> Awaitable[Rows]:
    """Sends ``execution`` in one round trip."""
    text, arguments = execution.statement.text, execution.arguments
    if len(arguments) == 1:
        return connection.fetch(text, *arguments[0])  # type: ignore[no-any-return]
    return connection.fetchmany(text, arguments)  # type: ignore[no-any-return]
