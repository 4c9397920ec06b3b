"""What a caller is told of a failure of the database, and what the operator is told of it."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import zip_longest
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from asyncpg import exceptions
from structlog.testing import capture_logs

from server.store.connection import failures
from server.store.connection.failures import BY_EXCEPTION, BY_SQLSTATE, ConnectFailed, Failure, find_taken_key
from server.store.connection.outage import OutageLog
from tests.support.build import create, delete
from tests.support.postgres import execute, fresh_database
from tests.support.problems import Problem, problem
from tests.support.service import Service, running_service

# Raises, before a conversation is stored, the SQLSTATE that is in its metadata.
TRIGGER = """
    CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'secret words' USING ERRCODE = NEW.metadata ->> 'sqlstate'; END $$;
    CREATE TRIGGER fail BEFORE INSERT ON conversations FOR EACH ROW
    WHEN (NEW.metadata ? 'sqlstate') EXECUTE FUNCTION fail();
"""
# By class and by single states: what PostgreSQL says of itself, not of the statement it was sent.
UNAVAILABLE = ("08", "25006", "25P03", "25P04", "26", "28", "3D", "42501", "53", "55", "57", "58", "XX000")
OTHERS = {
    "23505": "ABORTED",  # the store takes it for another call with this request id
    "40": "ABORTED",
    "40003": "UNAVAILABLE",
    "55P03": "DEADLINE_EXCEEDED",
    "57014": "DEADLINE_EXCEEDED",
}
KNOWN: list[Any] = [error for error in vars(exceptions).values() if isinstance(error, type)]
STATES = sorted(
    {error.sqlstate for error in KNOWN if issubclass(error, asyncpg.PostgresError) and error.sqlstate}
    - {"00000", "P0000", "P0004"}  # success; PL/pgSQL's own, two of which it does not let pass
)


def expected(sqlstate: str) -> str:
    """The code for a caller who may safely repeat the call."""
    for key in (sqlstate, sqlstate[:2]):
        if key in OTHERS:
            return OTHERS[key]
        if key in UNAVAILABLE:
            return "UNAVAILABLE"
    return "INTERNAL"


# As a sharded database answers: without a name, with the number of a shard, and without the SQLSTATE if it was a COPY.
SHARD = """
    CREATE FUNCTION shard() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF EXISTS (SELECT FROM conversations WHERE id = NEW.id) THEN
            RAISE EXCEPTION 'duplicate key value violates unique constraint "conversations_pkey_102017"'
                USING ERRCODE = COALESCE(NEW.metadata ->> 'as', '23505');
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER shard BEFORE INSERT ON conversations FOR EACH ROW EXECUTE FUNCTION shard();
"""


@asynccontextmanager
async def failing_service(postgres: str, template: str) -> AsyncIterator[Service]:
    """A service whose database can be made to fail when a conversation is created."""
    async with fresh_database(postgres, template) as url:
        await execute(url, TRIGGER)
        async with running_service(url) as served:
            yield served


async def create_failing(service: Service, sqlstate: str, request_id: str = "") -> Problem:
    """The problem of a CreateConversation that PostgreSQL refuses with ``sqlstate``."""
    return await problem(
        service.stub.CreateConversation(create(request_id=request_id, metadata={"sqlstate": sqlstate}))
    )


async def test_every_sqlstate_has_its_code(postgres: str, template: str) -> None:
    """What is wrong with the server is UNAVAILABLE with RetryInfo, a defect is INTERNAL, and no text leaks."""
    async with failing_service(postgres, template) as service:
        found: dict[str, Problem] = {}
        for states in zip_longest(*[iter(STATES)] * 8):  # no more than there are connections
            calls = {state: create_failing(service, state, str(uuid4())) for state in states if state}
            found |= zip(calls, await asyncio.gather(*calls.values()), strict=True)
        assert (await service.stub.CreateConversation(create())).id
    assert {state: expected(state) for state in STATES} == {state: found[state].code for state in STATES}
    for state, told in found.items():
        assert "secret" not in told.message
        assert ("RetryInfo" in told.details) == (told.code in ("UNAVAILABLE", "ABORTED")), state
    assert len(STATES) > 200


@pytest.mark.parametrize(
    ("sqlstate", "reason"),
    [("25006", "STORE_UNAVAILABLE"), ("53100", "STORE_UNAVAILABLE"), ("57P01", "OUTCOME_UNKNOWN")],
)
async def test_a_write_that_was_undone_may_be_repeated(
    postgres: str, template: str, sqlstate: str, reason: str
) -> None:
    """Without a request id, only a write that the server has certainly undone may be tried again."""
    async with failing_service(postgres, template) as service:
        told = await create_failing(service, sqlstate)
    assert ("UNAVAILABLE", reason) == (told.code, told.reason)


@pytest.mark.parametrize("state", ["23505", "XX000"])
async def test_a_key_that_a_shard_has(postgres: str, template: str, state: str) -> None:
    """A repeated create is recognised however the database says that its key is taken."""
    async with fresh_database(postgres, template) as url:
        await execute(url, SHARD)
        async with running_service(url) as service:
            request = create(request_id=str(uuid4()), metadata={"as": state})
            made = await service.stub.CreateConversation(request)
            assert made == await service.stub.CreateConversation(request)
            await service.stub.DeleteConversation(delete(made.id))
            told = await problem(service.stub.CreateConversation(request))
    assert ("NOT_FOUND", "CONVERSATION_NOT_FOUND") == (told.code, told.reason)


@pytest.mark.parametrize(
    ("error", "constraint"),
    [
        (asyncpg.UniqueViolationError("x"), ""),
        (asyncpg.UniqueViolationError('duplicate key value violates unique constraint "items_by_id_7"'), "items_by_id"),
        (asyncpg.InternalServerError('duplicate key value violates unique constraint "items_by_id"'), "items_by_id"),
        (asyncpg.InternalServerError('another "items_by_id"'), None),
        (asyncpg.ForeignKeyViolationError('duplicate key value violates unique constraint "items_by_id"'), None),
        (OSError('duplicate key value violates unique constraint "items_by_id"'), None),
    ],
)
def test_what_says_that_a_key_is_taken(error: Exception, constraint: str | None) -> None:
    """Only a unique violation does, also one of a shard without SQLSTATE and name."""
    taken = find_taken_key(error)
    assert constraint == (taken.constraint if taken else None)


def test_every_rule_is_told_by_a_word() -> None:
    """A reason is a fixed word, which is all that a log line or a status may say."""
    rules = [*BY_SQLSTATE.values(), *(rule for _, rule in BY_EXCEPTION)]
    assert all(rule.reason.replace("_", "").isalnum() and rule.reason.islower() for rule in rules if rule)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionRefusedError(111, "secret"), "connection_refused (ConnectionRefusedError, ECONNREFUSED)"),
        (FileNotFoundError(2, "secret"), "connection_refused (FileNotFoundError, ENOENT)"),
        (OSError(113, "secret"), "unreachable (OSError, EHOSTUNREACH)"),
        (TimeoutError("secret"), "no_answer (TimeoutError)"),
        (ConnectionError("secret"), "not_postgresql (ConnectionError)"),
        (ssl.SSLError(1, "secret"), "tls (SSLError)"),
        (exceptions.InvalidPasswordError("secret"), "login_refused (InvalidPasswordError, 28P01)"),
        (exceptions.DiskFullError("secret"), "disk_full (DiskFullError, 53100)"),
        (exceptions.TargetServerAttributeNotMatched("secret"), "read_only (TargetServerAttributeNotMatched)"),
        (ZeroDivisionError("secret"), "unexpected (ZeroDivisionError)"),
    ],
)
def test_a_problem_has_no_text_of_an_exception(error: Exception, told: str) -> None:
    """An operator is told the reason, the class and the code; the text, which may hold a name or a host, is not."""
    assert told == str(failures.Problem.of(error))


def test_a_statement_that_was_not_sent_is_undone() -> None:
    """Whatever kept a connection from being made, the statement has changed nothing."""
    lost = ConnectionResetError()
    not_sent = ConnectFailed()
    not_sent.__cause__ = lost
    assert (lost, True) == (Failure.of(not_sent).cause, Failure.of(not_sent).undone)
    assert not Failure.of(lost).undone


AT_WORKER = "PL/pgSQL function f(text) line 3 at RAISE\nwhile executing command on worker-1.internal:5432"


@pytest.mark.parametrize(
    ("state", "severity", "context", "reason"),
    [
        ("53100", "ERROR", AT_WORKER, "worker_disk_full"),
        ("25006", "ERROR", AT_WORKER, "worker_read_only"),
        ("53100", "ERROR", f"{AT_WORKER} and more", "disk_full"),
        ("53100", "ERROR", "", "disk_full"),
        ("08006", "ERROR", "", "worker_lost"),
        ("08006", "FATAL", "", "connection_lost"),
        ("08P01", "ERROR", "", "connection_lost"),
    ],
)
def test_the_error_of_a_worker(state: str, severity: str, context: str, reason: str) -> None:
    """It concerns neither the session that tells of it nor readiness. What is fatal is the session's own."""
    error = asyncpg.PostgresError.new({"C": state, "M": "secret", "V": severity, "W": context})
    rule = failures.find_rule(error)
    assert rule is not None
    assert reason == rule.reason
    assert reason.startswith("worker_") != (rule.renew or rule.probe)


# -- the lines of an outage


class Clock:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


def test_an_outage_is_told_in_three_lines_and_one_a_minute() -> None:
    """However many statements fail, there is a line at the begin, one a minute, and one at the end, with counts."""
    clock = Clock()
    outage = OutageLog(clock)
    with capture_logs() as lines:
        outage.report(ready=True)
        for second in range(130):
            for _ in range(20):
                outage.add(failures.Problem("connection_refused", "ConnectionRefusedError", "ECONNREFUSED"))
            outage.report(ready=False)
            clock.now = 100 + second
        outage.add(failures.Problem("starting_up", "CannotConnectNowError", "57P03"))
        for _ in range(10):
            clock.now += 1
            outage.report(ready=True)
    begin, *minutes, end = lines
    assert ("not ready: the database cannot be used", "warning") == (begin["event"], begin["log_level"])
    assert ("connection_refused", "ECONNREFUSED") == (begin["reason"], begin["code"])
    assert [
        ("still not ready: the database cannot be used", 60),
        ("still not ready: the database cannot be used", 120),
    ] == [(line["event"], round(line["seconds"], -1)) for line in minutes]
    assert ("ready again", 2601) == (end["event"], end["failures"])
    assert "connection_refused=2600 starting_up=1" == end["reasons"]
    assert outage.current is None


def test_failures_without_an_outage_are_told_too() -> None:
    """Statements that fail while the database can be used are told once, and again when it can no more."""
    clock = Clock()
    outage = OutageLog(clock)
    with capture_logs() as lines:
        for ready in (True, True, False, True, False, True):
            outage.add(failures.Problem("connection_lost"))
            outage.report(ready=ready)
            clock.now += 1
        clock.now += 10
        outage.report(ready=True)
    assert ["statements fail", "not ready: the database cannot be used", "ready again"] == [
        line["event"] for line in lines
    ]
