"""Creates that share a statement: each caller gets what it would get alone."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from conversations.v1.conversation_pb2 import Conversation
from conversations.v1.conversations_service_pb2 import ORDER_ASCENDING

from server.store.connection.database import Database
from server.store.connection.execution import Execute, Execution, Rows
from server.store.ids import conversation_id_for
from tests.support.access import GuardedService, caller, guarded_service
from tests.support.batching import Call, HeldStatement, held_statement, outcome, queued_behind
from tests.support.build import append, copy_of, create, delete, get, text_of, user_message
from tests.support.postgres import execute, fresh_database, inserts_blocked
from tests.support.problems import Problem
from tests.support.service import Service, intercepted, list_all_items, running_service

MANY = "RETURNING conversations.id)"  # in a statement for many creates, and in no other
UNDISTURBED = 1.0  # seconds that a call takes at most, less than a lock timeout


def creates(stub: Any, *requests: Any) -> list[Call]:
    """A call for each request."""
    return [lambda each=request: stub.CreateConversation(each) for request in requests]  # type: ignore[misc]


@asynccontextmanager
async def queued_creates(
    database: Database, stub: Any, *requests: Any
) -> AsyncIterator[tuple[HeldStatement, list[Any]]]:
    """Creates that queue behind another one; yields their tasks."""
    first = lambda: stub.CreateConversation(create())  # noqa: E731
    async with queued_behind(database, first, *creates(stub, *requests)) as (line, tasks):
        yield line, tasks[1:]


async def outcomes_at_once(database: Database, *calls: Call) -> list[Any]:
    """The outcomes of all calls but the first, which come while the statement of the first is held back.

    Some of them may wait for each other, and not in the queue.
    """
    async with held_statement(database) as line:
        tasks = [asyncio.create_task(outcome(calls[0]()))]
        await line.started.wait()
        for call in calls[1:]:
            tasks.append(asyncio.create_task(outcome(call())))
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        line.release.set()
        return (await asyncio.gather(*tasks))[1:]


async def outcomes_together(service: Service, *requests: Any) -> tuple[list[Any], list[str]]:
    """The outcomes of creates that queue behind another one, and the statements that ran for them."""
    async with queued_creates(service.database, service.stub, *requests) as (line, tasks):
        pass
    return [task.result() for task in tasks], line.texts[1:]


def codes(answers: Iterable[Any]) -> list[str]:
    """OK, or the reason of each problem."""
    return [each.reason or each.code if isinstance(each, Problem) else "OK" for each in answers]


# --- one statement


@pytest.mark.parametrize("ids", [False, True], ids=["without ids", "with ids"])
async def test_many_creates_are_one_statement(service: Service, ids: bool) -> None:  # noqa: FBT001
    """Forty creates are one statement, and each caller gets its own conversation and items."""
    requests = [
        create(
            *(user_message(f"{n}/{place}") for place in range(n % 3)),
            metadata={"n": f"{n}", "text": 'a "b" \\ {ü}'} if n % 2 else {},
            request_id=str(uuid4()) if ids else "",
        )
        for n in range(40)
    ]
    answers, texts = await outcomes_together(service, *requests)
    assert 1 == len(texts)
    assert 40 == len({answer.id for answer in answers})
    for number, (request, answer) in enumerate(zip(requests, answers, strict=True)):
        assert answer == await service.stub.GetConversation(get(answer.id))
        assert request.conversation.metadata == answer.metadata
        items = await list_all_items(service.stub, answer.id, ORDER_ASCENDING)
        assert [f"{number}/{place}" for place in range(number % 3)] == list(map(text_of, items))
        assert len(items) == answer.last_sequence


@pytest.mark.parametrize(
    ("count", "items", "size", "expected"),
    [(47, 20, 1, 1), (48, 20, 1, 2), (4, 1, 250_000, 1), (5, 1, 250_000, 2), (3, 1, 270_000, 3)],
    ids=["rows", "one row too many", "bytes", "too many bytes", "large ones go alone"],
)
async def test_a_statement_has_limits(service: Service, count: int, items: int, size: int, expected: int) -> None:
    """What is too much for one statement goes with the next, and a large create by itself."""
    requests = [create(*(user_message("x" * size) for _ in range(items))) for _ in range(count)]
    answers, texts = await outcomes_together(service, *requests)
    assert expected == len(texts)
    assert [items] * count == [answer.last_sequence for answer in answers]


# --- the same as alone

RULES = [
    {"permit": {"actions": ["create", "read", "update", "delete"]}, "when": "user is owner"},
    {"permit": {"actions": ["read"]}, "when": "user in owners teams"},
]
ANN, BOB, EVE = caller("ann", teams="red blue"), caller("bob", teams="red"), caller("ann", tenant="other")


class Case:
    """A service, and requests of several callers that mean the same on every one."""

    def __init__(self, guarded: GuardedService) -> None:
        self.guarded = guarded
        self.source = ""
        self.used = ""

    async def prepare(self) -> None:
        """Makes what the requests refer to: an item, a request id that is used, and one whose conversation is gone."""
        self.guarded.obey(RULES)
        ann = self.guarded.by(ANN)
        self.source = (await ann.CreateConversation(create(user_message("source", id="msg_s")))).id
        self.used = (await ann.CreateConversation(self._replayed)).id
        gone = await ann.CreateConversation(self._gone)
        await ann.DeleteConversation(delete(gone.id))

    _ID = ("5f0b3a40-6a0e-4a5b-9a52-10d1a8d4f0a1", "5f0b3a40-6a0e-4a5b-9a52-10d1a8d4f0a2")
    _replayed = create(user_message("first"), metadata={"a": "1"}, request_id=_ID[0])
    _gone = create(metadata={"a": "2"}, request_id=_ID[1])

    def requests(self, *, ids: bool) -> list[tuple[Any, Any]]:
        """Callers and their requests."""

        def rid() -> str:
            return str(uuid4()) if ids else ""

        shared = {"teams": {"values": ["red"]}}
        foreign = {"teams": {"values": ["green"]}}
        found: list[tuple[Any, Any]] = [
            (ANN, create(request_id=rid())),
            (BOB, create(user_message("b"), user_message("c", id="msg_c"), metadata={"k": "v"}, request_id=rid())),
            (EVE, create(metadata={"k": "other tenant"}, request_id=rid())),
            (ANN, create(attributes=shared, request_id=rid())),
            (ANN, create(attributes=foreign, request_id=rid())),
            (ANN, create(*[user_message(id="msg_twice")] * 2, request_id=rid())),
            (ANN, create(copy_of(self.source, "msg_s"), user_message("own"), request_id=rid())),
            (BOB, create(copy_of(self.source, "msg_s"), request_id=rid())),
            (EVE, create(copy_of(self.source, "msg_s"), request_id=rid())),
            (BOB, create(user_message(id="wrong_prefix"), request_id=rid())),
            (BOB, create(user_message("x" * 300_000), request_id=rid())),
        ]
        if ids:
            twice = create(user_message("twice"), request_id=rid())
            other = create(user_message("once"), request_id=twice.request_id)
            found += [(ANN, self._replayed), (ANN, self._gone), (BOB, self._replayed), (BOB, twice), (BOB, twice)]
            found += [(BOB, other), (ANN, other), (ANN, create(metadata={"a": "3"}, request_id=self._ID[0]))]
        return found

    async def rows(self) -> list[list[Any]]:
        """Everything that is stored, without ids and times that the server makes, in any order."""
        connection = await asyncpg.connect(self.guarded.url)
        try:
            return [sorted(map(repr, map(tuple, await connection.fetch(query)))) for query in self._STORED]
        finally:
            await connection.close()

    _STORED = (
        """SELECT tenant, owner, attributes, metadata, last_sequence, version, revision,
           create_time = update_time, delete_time IS NULL FROM conversations""",
        "SELECT attribute, tenant, count(*) FROM conversation_attributes GROUP BY 1, 2",
        """SELECT sequence, version, type, role, status, length(body) > 1000, delete_time,
           create_time <= now() FROM items""",
        "SELECT principal, method, first_sequence, item_count, count(*) FROM requests GROUP BY 1, 2, 3, 4",
    )


def told(answer: Any) -> Any:
    """An answer without ids and times."""
    if isinstance(answer, Problem):
        return answer.code, answer.reason
    kept = Conversation()
    kept.CopyFrom(answer)
    for name in ("id", "create_time", "update_time", "active_time"):
        kept.ClearField(name)
    return kept


@pytest.mark.parametrize("ids", [False, True], ids=["without ids", "with ids"])
async def test_creates_are_answered_as_alone(postgres: str, template: str, ids: bool) -> None:  # noqa: FBT001
    """The same creates, one after the other and all at once, have the same answers and store the same rows."""
    found = []
    for together in (False, True):
        async with guarded_service(postgres, template) as guarded:
            case = Case(guarded)
            await case.prepare()
            calls: list[Call] = [
                lambda who=who, request=request: guarded.by(who).CreateConversation(request)  # type: ignore[misc]
                for who, request in case.requests(ids=ids)
            ]
            if together:
                first = lambda: guarded.by(BOB).CreateConversation(create())  # noqa: E731
                answers = await outcomes_at_once(guarded.database, first, *calls)
            else:
                await guarded.by(BOB).CreateConversation(create())
                answers = [await outcome(call()) for call in calls]
            found.append((list(map(told, answers)), await case.rows()))
    alone, shared = found
    assert alone[0] == shared[0]
    assert alone[1] == shared[1]
    assert 7 <= codes(answers).count("OK") < len(answers)


# --- the same request id


async def test_one_request_id_twice(service: Service) -> None:
    """The same create twice among others is one conversation; another request under its id is refused."""
    rid = str(uuid4())
    same = create(user_message("same"), request_id=rid)
    requests = [create(request_id=str(uuid4())), same, same, create(request_id=rid), create(request_id=str(uuid4()))]
    answers = await outcomes_at_once(service.database, *creates(service.stub, create(), *requests))
    assert ["OK", "OK", "OK", "REQUEST_ID_REUSED", "OK"] == codes(answers)
    assert answers[1] == answers[2]
    assert 1 == answers[1].last_sequence


async def test_a_replay_delays_nobody(service: Service) -> None:
    """A create that was made before does not undo those that share its statement."""
    before = create(user_message("before"), request_id=str(uuid4()))
    made = await service.stub.CreateConversation(before)
    requests = [create(request_id=str(uuid4())), before, create(request_id=str(uuid4()))]
    answers, texts = await outcomes_together(service, *requests)
    assert ["OK"] * 3 == codes(answers)
    assert made == answers[1]
    assert [True] == [MANY in text for text in texts if "INSERT" in text]


async def test_one_request_id_in_two_servers(postgres: str, template: str) -> None:
    """Creates that two servers share statements for, with the same request ids at the same time, are made once."""
    async with fresh_database(postgres, template) as url, running_service(url) as one, running_service(url) as two:
        for turn in range(4):
            requests = [create(user_message(f"{n}"), request_id=str(uuid4())) for n in range(20)]
            async with AsyncExitStack() as stack:
                waits = [
                    await stack.enter_async_context(queued_creates(server.database, server.stub, *order))
                    for server, order in ((one, requests), (two, requests if turn % 2 else requests[::-1]))
                ]
                for line, _ in waits:
                    line.release.set()
            answers = [[task.result() for task in tasks] for _, tasks in waits]
            answers[1] = answers[1] if turn % 2 else answers[1][::-1]
            assert ["OK"] * 20 == codes(answers[0])
            assert answers[0] == answers[1]
        connection = await asyncpg.connect(url)  # the pool may have lent all of its connections to the service
        assert 80 + 8 == await connection.fetchval("SELECT count(*) FROM conversations")
        await connection.close()


async def test_request_ids_that_others_use_now(service: Service) -> None:
    """Creates whose request ids are under way in another transaction wait by themselves, however many they are."""
    stub, held = service.stub, [str(uuid4()) for _ in range(14)]
    model = await stub.CreateConversation(create())
    connection = await asyncpg.connect(service.url)
    seconds: list[float] = []
    loop = asyncio.get_running_loop()

    async def timed(request: Any) -> None:
        began = loop.time()
        assert (await stub.CreateConversation(request)).id
        seconds.append(loop.time() - began)

    try:
        await connection.execute("BEGIN")
        await connection.execute(
            """INSERT INTO conversations SELECT held.id, tenant, owner, attributes, metadata, last_sequence, version,
               revision, create_time, update_time FROM conversations, unnest($1::text[]) AS held (id)
               WHERE conversations.id = $2""",
            [conversation_id_for("", "local", each) for each in held],
            model.id,
        )
        waiting = []
        for rid in held:  # each meets strangers with and without ids
            waiting.append(asyncio.create_task(outcome(stub.CreateConversation(create(request_id=rid)))))
            await asyncio.gather(timed(create(request_id=str(uuid4()))), timed(create()))
            await asyncio.gather(*(timed(create(request_id=str(uuid4()))) for _ in range(4)))
    finally:
        await connection.close()
    assert max(seconds) < UNDISTURBED
    answers = await asyncio.gather(*waiting)
    assert set(codes(answers)) <= {"OK", "DEADLINE_EXCEEDED", "STORE_UNAVAILABLE"}
    again = [await stub.CreateConversation(create(request_id=rid)) for rid in held]
    assert [each for each in answers if not isinstance(each, Problem)] == [
        new for new, old in zip(again, answers, strict=True) if not isinstance(old, Problem)
    ]


async def test_the_lock_timeout_is_that_of_the_session_afterwards(own_service: Service) -> None:
    """A shared statement that waits for nobody leaves no setting behind."""
    await outcomes_together(own_service, *(create(request_id=str(uuid4())) for _ in range(4)))
    pool = own_service.database.pool
    assert {"2s"} == {await pool.fetchval("SELECT current_setting('lock_timeout')") for _ in range(3)}


# --- one bad create among good ones

FAIL = """
    CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'secret words' USING ERRCODE = NEW.metadata ->> 'sqlstate'; END $$;
    CREATE TRIGGER fail BEFORE INSERT ON conversations FOR EACH ROW
    WHEN (NEW.metadata ? 'sqlstate') EXECUTE FUNCTION fail();
"""


@pytest.mark.parametrize("ids", [False, True], ids=["without ids", "with ids"])
@pytest.mark.parametrize("state", ["54000", "22P05", "53400", "57014", "40001"])
async def test_one_that_the_database_refuses(postgres: str, template: str, state: str, ids: bool) -> None:  # noqa: FBT001
    """What one create makes the database refuse fails that create only, and once the others are stored once."""
    async with fresh_database(postgres, template) as url:
        await execute(url, FAIL)
        async with running_service(url) as service:
            requests = [
                create(metadata={"sqlstate": state} if n == 3 else {}, request_id=str(uuid4()) if ids else "")
                for n in range(6)
            ]
            answers, _ = await outcomes_together(service, *requests)
            assert ["OK"] * 5 == codes([*answers[:3], *answers[4:]])
            assert isinstance(answers[3], Problem)
            assert "secret" not in str(answers[3])
            assert 1 + 5 == await service.database.pool.fetchval("SELECT count(*) FROM conversations")


# --- callers that leave


async def test_a_caller_that_leaves_the_queue(service: Service) -> None:
    """A create whose caller leaves before its statement is not stored; the others are."""
    requests = [create(user_message(f"{n}"), request_id=str(uuid4())) for n in range(3)]
    async with queued_creates(service.database, service.stub, *requests) as (line, tasks):
        tasks[1].cancel()
        await line.until(lambda: not line.writes[1].batch)
    assert ["OK", "OK"] == codes([tasks[0].result(), tasks[2].result()])
    target = conversation_id_for("", "local", requests[1].request_id)
    assert 0 == await service.database.pool.fetchval("SELECT count(*) FROM conversations WHERE id = $1", target)


async def test_a_caller_that_leaves_its_statement(service: Service) -> None:
    """A create whose caller leaves while its statement runs is stored with the others."""
    requests = [create(user_message(f"{n}"), request_id=str(uuid4())) for n in range(3)]
    async with (
        queued_creates(service.database, service.stub, *requests) as (line, tasks),
        inserts_blocked(service.url, "items"),
    ):
        line.release.set()
        await line.until(lambda: all(write.sent for write in line.writes))
        tasks[1].cancel()
        await line.until(line.writes[1].answer.done)
    assert ["OK", "OK"] == codes([tasks[0].result(), tasks[2].result()])
    again = await service.stub.CreateConversation(requests[1])
    assert ["1"] == list(map(text_of, await list_all_items(service.stub, again.id, ORDER_ASCENDING)))


@pytest.mark.parametrize("own", [True, False], ids=["of the caller", "of the server"])
async def test_a_deadline_in_the_queue(service: Service, own: bool) -> None:  # noqa: FBT001
    """A deadline that passes in the queue ends its call only, and nothing of it is stored."""
    late, kept = create(request_id=str(uuid4())), create(request_id=str(uuid4()))
    settings: dict[str, Any] = {} if own else {"default_deadline_seconds": 0.3}
    async with running_service(service.url, **settings) as served:
        stub = served.stub
        calls: list[Call] = [
            lambda: stub.CreateConversation(late, timeout=0.3 if own else None),
            lambda: stub.CreateConversation(kept, timeout=20),
        ]
        first = lambda: stub.CreateConversation(create(), timeout=20)  # noqa: E731
        async with queued_behind(served.database, first, *calls) as (line, tasks):
            await line.until(lambda: tasks[1].done() and line.writes[0].answer.done())
    assert "DEADLINE_EXCEEDED" == tasks[1].result().code
    assert "OK" == codes([tasks[2].result()])[0]
    target = conversation_id_for("", "local", late.request_id)
    assert 0 == await service.database.pool.fetchval("SELECT count(*) FROM conversations WHERE id = $1", target)


# --- a database that goes away


@pytest.mark.parametrize("ids", [False, True], ids=["without ids", "with ids"])
@pytest.mark.parametrize("committed", [False, True], ids=["before", "after"])
async def test_a_connection_lost_under_a_statement(own_service: Service, ids: bool, committed: bool) -> None:  # noqa: FBT001
    """Whether the statement was committed or not: with a request id it succeeds, without it is not tried again."""
    service = own_service
    requests = [create(user_message(f"{n}"), request_id=str(uuid4()) if ids else "") for n in range(6)]
    lost = False

    async def lose(execute: Execute, execution: Execution) -> Rows:
        nonlocal lost
        once = MANY in execution.statement.text and not lost
        rows = await execute(execution) if committed or not once else []
        if once:
            lost = True
            raise asyncpg.ConnectionDoesNotExistError
        return rows

    with intercepted(service.database, lose):
        answers, _ = await outcomes_together(service, *requests)
    assert lost
    assert ["OK" if ids else "OUTCOME_UNKNOWN"] * 6 == codes(answers)
    stored = await service.database.pool.fetch("SELECT item_id FROM items")
    assert (6 if ids or committed else 0) == len(stored)
    if ids:
        assert answers == [await service.stub.CreateConversation(request) for request in requests]


async def test_creates_do_not_wait_for_appends(service: Service) -> None:
    """The two kinds queue apart: a create runs while a statement for appends is held back."""
    made = await service.stub.CreateConversation(create())
    first = lambda: service.stub.CreateItems(append(made.id, user_message()))  # noqa: E731
    async with queued_behind(service.database, first) as (_, tasks):
        assert (await asyncio.wait_for(service.stub.CreateConversation(create()), UNDISTURBED * 5)).id
        assert not tasks[0].done()
