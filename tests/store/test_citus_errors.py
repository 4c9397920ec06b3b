"""Errors that a worker of Citus raises, as they reach the service through the coordinator; on a cluster of its own."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import asyncpg
import grpc.aio
import pytest
from structlog.testing import capture_logs

from server.store.connection.execution import Execute, Execution, Rows
from server.store.connection.failures import Problem as Found
from tests.support.build import append, get, user_message
from tests.support.citus import Cluster, Node
from tests.support.citus_faults import NEEDS_CITUS, by_worker, until
from tests.support.postgres import fetch
from tests.support.problems import problem_of
from tests.support.readiness import SERVING, wait_for
from tests.support.service import Service, intercepted, running_service

pytestmark = NEEDS_CITUS
OK = ("OK", "", False)
UNAVAILABLE = ("UNAVAILABLE", "STORE_UNAVAILABLE", True)
UNKNOWN = ("UNAVAILABLE", "OUTCOME_UNKNOWN", False)
TOO_SLOW = ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", False)
CONFLICT = ("ABORTED", "CONFLICT", True)
READ_ONLY = "default_transaction_read_only"
# Sessions at a worker may change what belongs to a shard only so.
BY_HAND = "SET citus.enable_ddl_propagation = off; SET citus.enable_manual_changes_to_shards = on;"


@dataclass(frozen=True)
class Place:
    """A conversation, and where it lies."""

    service: Service
    worker: Node
    conversation_id: str

    async def shard(self, table: str = "conversations") -> str:
        """The name of the table that holds it at the worker."""
        shard = f"get_shard_id_for_distribution_column('{table}', '{self.conversation_id}')"
        (row,) = await fetch(self.service.url, f"SELECT '{table}_' || {shard} AS name")
        return str(row["name"])

    async def append(self, *, request_id: str = "", text: str = "b") -> tuple[str, str, bool]:
        """How an append ends: code, reason, and whether the caller is told to repeat it."""
        call = self.service.stub.CreateItems(append(self.conversation_id, user_message(text), request_id=request_id))
        try:
            await call
        except grpc.aio.AioRpcError as error:
            problem = problem_of(error)
            return problem.code, problem.reason, "RetryInfo" in problem.details
        return OK

    async def succeeds(self) -> bool:
        """Whether an append does."""
        return await self.append() == OK


@pytest.fixture
async def place(cluster: Cluster, served: Service) -> Place:
    """A conversation on the first worker."""
    worker = cluster.workers[0]
    return Place(served, worker, (await by_worker(served, 12))[worker.port][0])


@asynccontextmanager
async def reasons_of(service: Service) -> AsyncIterator[list[str]]:
    """What each attempt of a statement fails with: reason, class and SQLSTATE."""
    found: list[str] = []

    async def record(execute: Execute, execution: Execution) -> Rows:
        try:
            return await execute(execution)
        except Exception as error:
            found.append(str(Found.of(error)))
            raise

    with intercepted(service.database, record):
        yield found


@asynccontextmanager
async def session_at(worker: Node, *statements: str) -> AsyncIterator[asyncpg.Connection]:
    """A session of somebody else at a worker, in a transaction that is rolled back."""
    connection = await asyncpg.connect(worker.url)
    try:
        for statement in (BY_HAND, "BEGIN", *statements):
            await connection.execute(statement)
        yield connection
    finally:
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            await connection.close()


@asynccontextmanager
async def locked(place: Place) -> AsyncIterator[asyncpg.Connection]:
    """Somebody holds the lock of the conversation's row at the worker."""
    lock = f"SELECT FROM {await place.shard()} WHERE id = '{place.conversation_id}' FOR UPDATE"
    async with session_at(place.worker, lock) as connection:
        yield connection


async def waiting_session(worker: Node) -> int:
    """The process at a worker that waits for a lock."""
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%write_conversation%'"
    (row, *_) = await until(lambda: fetch(worker.url, waiting))
    return int(row["pid"])


# -- locks and limits


async def test_a_lock_at_a_worker(place: Place) -> None:
    """`lock_timeout` is that of the role."""
    async with locked(place), reasons_of(place.service) as reasons:
        assert TOO_SLOW == await place.append()
    assert ["worker_timeout (LockNotAvailableError, 55P03)"] == reasons


async def test_a_statement_that_takes_too_long(cluster: Cluster, place: Place) -> None:
    """The coordinator's `statement_timeout` ends what waits at a worker, also where no other limit does."""
    async with running_service(cluster.url, statement_timeout_seconds=1) as impatient:
        mine = Place(impatient, place.worker, place.conversation_id)
        async with locked(place), reasons_of(impatient) as reasons:
            assert TOO_SLOW == await mine.append()
    assert ["timeout (QueryCanceledError, 57014)"] == reasons


async def test_a_statement_that_is_cancelled(place: Place) -> None:
    """By an operator, at the worker."""
    async with locked(place), reasons_of(place.service) as reasons:
        call = asyncio.create_task(place.append())
        await fetch(place.worker.url, f"SELECT pg_cancel_backend({await waiting_session(place.worker)})")
        assert TOO_SLOW == await call
    assert ["worker_timeout (QueryCanceledError, 57014)"] == reasons


async def test_a_deadlock(place: Place) -> None:
    """The worker ends one of the two; the service tries again, and the other one is out of the way then."""
    items, id_ = await place.shard("items"), place.conversation_id
    taken = f"""
        INSERT INTO {items} SELECT (jsonb_populate_record(one, '{{"sequence": 2, "item_id": "msg_other"}}')).*
        FROM {items} AS one WHERE conversation_id = '{id_}'"""
    patient = session_at(place.worker, "SET LOCAL deadlock_timeout = '20s'", taken)
    async with patient as other, reasons_of(place.service) as reasons:
        call = asyncio.create_task(place.append())
        await waiting_session(place.worker)
        await other.execute(f"SELECT FROM {await place.shard()} WHERE id = '{id_}' FOR UPDATE")
        await other.execute("ROLLBACK")
        assert OK == await call
    assert ["worker_conflict (DeadlockDetectedError, 40P01)"] == reasons


# -- a worker that takes no writes


async def test_a_read_only_worker(place: Place) -> None:
    """Reads go on; a write is undone, whoever sent it may repeat it, and no session at the coordinator is replaced."""
    before = await sessions(place.service)
    async with read_only(place.worker), reasons_of(place.service) as reasons:
        assert UNAVAILABLE == await place.append()
        await place.service.stub.GetConversation(get(place.conversation_id))
    assert {"worker_read_only (ReadOnlySQLTransactionError, 25006)"} == set(reasons)
    assert before <= await sessions(place.service)
    assert OK == await place.append()


async def sessions(service: Service) -> set[int]:
    """The sessions of the service at the coordinator."""
    rows = await fetch(service.url, "SELECT pid FROM pg_stat_activity WHERE application_name = 'conversations'")
    return {row["pid"] for row in rows}


@asynccontextmanager
async def read_only(worker: Node) -> AsyncIterator[None]:
    """A worker that takes no writes meanwhile."""
    connection = await asyncpg.connect(worker.url, server_settings={READ_ONLY: "off"})

    async def change(how: str, now: str) -> None:
        await connection.execute(f"ALTER SYSTEM {how}")
        await connection.execute("SELECT pg_reload_conf()")
        await until(lambda: fetch(worker.url, f"SELECT WHERE current_setting('{READ_ONLY}') = '{now}'"))
        await asyncio.sleep(0.3)  # for the sessions that Citus keeps

    try:
        await change(f"SET {READ_ONLY} = on", "on")
        yield
    finally:
        await change(f"RESET {READ_ONLY}", "off")
        await connection.close()


# -- what a full disk, and other states, are told by


STATES = {
    "53100": UNAVAILABLE,
    "53200": UNAVAILABLE,
    "53300": UNAVAILABLE,
    "55000": UNAVAILABLE,
    "57P01": UNKNOWN,
    "57P02": UNKNOWN,
    "57P03": UNAVAILABLE,
    "58030": UNAVAILABLE,
    "08006": UNKNOWN,
    "25006": UNAVAILABLE,
    "40001": CONFLICT,
    "40P01": CONFLICT,
    "42501": UNAVAILABLE,
    "XX000": UNAVAILABLE,
}


async def test_states_of_a_worker(place: Place) -> None:
    """Each has its code, readiness stays, and neither a session nor a word of the worker's text gets about."""
    shard = await place.shard()
    before = await sessions(place.service)
    found = {}
    with capture_logs() as lines:
        for state in STATES:
            await fetch_by_hand(place.worker, fail_with(state, shard))
            found[state] = await place.append()
        await wait_for(place.service, SERVING)
    await fetch_by_hand(place.worker, f"DROP TRIGGER fail ON {shard}")
    assert STATES == found
    assert OK == await place.append()
    assert before <= await sessions(place.service)
    assert "secret" not in str(lines)
    assert not [line for line in lines if line["event"].startswith("not ready")]


def fail_with(state: str, shard: str) -> str:
    """SQL that makes a worker fail when a conversation of this shard is written."""
    return f"""
        CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'secret words' USING ERRCODE = '{state}'; END $$;
        CREATE OR REPLACE TRIGGER fail BEFORE UPDATE ON {shard} FOR EACH ROW EXECUTE FUNCTION fail()"""


async def fetch_by_hand(worker: Node, statement: str) -> None:
    """Changes a worker behind the coordinator's back."""
    connection = await asyncpg.connect(worker.url)
    await connection.execute(BY_HAND)
    await connection.execute(statement)
    await connection.close()


# -- connections between the nodes


async def terminate(worker: Node, pid: int) -> None:
    """Ends a session as an operator does."""
    await fetch(worker.url, f"SELECT pg_terminate_backend({pid})")


async def kill(_worker: Node, pid: int) -> None:
    """Ends a process in a way that makes the worker recover from a crash."""
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("end", [terminate, kill])
async def test_a_connection_that_is_lost_in_a_command(place: Place, end: Callable[[Node, int], Awaitable[Any]]) -> None:
    """Nobody knows whether the worker has committed: only a write under a request id is tried again."""
    for request_id, ends in (("", {UNKNOWN}), (str(uuid4()), {OK, UNAVAILABLE})):
        async with locked(place) as other, reasons_of(place.service) as reasons:
            call = asyncio.create_task(place.append(request_id=request_id))
            await end(place.worker, await waiting_session(place.worker))
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await other.execute("ROLLBACK")
            assert await call in ends
        assert {each.partition(" ")[0] for each in reasons} <= {"worker_lost", "worker_shutting_down"}
        await until(place.succeeds)


async def test_a_worker_without_connections(cluster: Cluster, place: Place) -> None:
    """It is told as one that cannot be reached, to writes and reads; the sessions that there are go on."""
    async with running_service(cluster.url) as fresh, reasons_of(fresh) as reasons:
        held = []
        with suppress(asyncpg.TooManyConnectionsError):
            while True:
                held.append(await asyncpg.connect(place.worker.url))
        try:
            mine = Place(fresh, place.worker, place.conversation_id)
            assert UNAVAILABLE == await mine.append(request_id=str(uuid4()))
        finally:
            await asyncio.gather(*(connection.close() for connection in held))
        assert {"worker_lost (ConnectionFailureError, 08006)"} == set(reasons)
        assert OK == await mine.append()
