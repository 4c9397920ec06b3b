"""Appends that share a statement: each caller gets what it would get alone."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from conversations.v1.conversations_service_pb2 import ORDER_ASCENDING
from conversations.v1.item_pb2 import Item

from server.policy.load import load as load_policy
from server.policy.rules import Policy
from server.store.connection.database import Database
from server.store.connection.execution import Execute, Execution, Rows
from tests.support.access import Caller, GuardedService, caller, guarded_service
from tests.support.batching import Call, outcome, outcomes_behind, queued_behind
from tests.support.build import append, copy_of, create, get, text_of, user_message
from tests.support.postgres import fresh_database, inserts_blocked, row_locked
from tests.support.problems import Problem
from tests.support.service import Service, intercepted, list_all_items, running_service
from tests.support.worlds import random_world

MANY = "bumped.number"  # in a statement of many appends, and in no other


async def new(stub: Any, *ids: str) -> str:
    """A conversation with items of these ids."""
    made = await stub.CreateConversation(create(*(user_message(id=each) for each in ids)))
    return str(made.id)


def appends(stub: Any, *requests: Any) -> list[Call]:
    """A call for each request."""
    return [lambda each=request: stub.CreateItems(each) for request in requests]  # type: ignore[misc]


def sequences(answers: list[Any]) -> list[list[int]]:
    """Where the items of each answer are."""
    return [[item.sequence for item in answer.items] for answer in answers]


# --- one statement


@pytest.mark.parametrize("ids", [False, True], ids=["without ids", "with ids"])
async def test_many_appends_are_one_statement(service: Service, ids: bool) -> None:  # noqa: FBT001
    """Eighty appends to twenty conversations are one statement, and each caller gets its own items."""
    targets = [await new(service.stub) for _ in range(20)]
    requests = [
        append(targets[n % 20], user_message(f"{n}/0"), user_message(f"{n}/1"), request_id=str(uuid4()) if ids else "")
        for n in range(80)
    ]
    answers, texts = await outcomes_behind(service, *appends(service.stub, *requests))
    assert 1 == len(texts)
    assert [[2 * (n // 20) + 1, 2 * (n // 20) + 2] for n in range(80)] == sequences(answers)
    assert [[f"{n}/0", f"{n}/1"] for n in range(80)] == [list(map(text_of, answer.items)) for answer in answers]
    assert 160 == len({item.id for answer in answers for item in answer.items})
    for number, target in enumerate(targets):
        expected = [item for answer in answers[number::20] for item in answer.items]
        assert expected == await list_all_items(service.stub, target, ORDER_ASCENDING)


@pytest.mark.parametrize(
    "count, items, size, expected",
    [(51, 20, 1, 2), (6, 1, 200_000, 2), (3, 1, 270_000, 3), (50, 20, 1, 1)],
    ids=["items", "bytes", "large ones go alone", "just enough"],
)
async def test_a_statement_has_limits(service: Service, count: int, items: int, size: int, expected: int) -> None:
    """What is too much for one statement goes with the next, and a large append by itself."""
    targets = [await new(service.stub) for _ in range(count)]
    requests = [append(each, *(user_message("x" * size) for _ in range(items))) for each in targets]
    answers, texts = await outcomes_behind(service, *appends(service.stub, *requests))
    assert expected == len(texts)
    assert [list(range(1, items + 1))] * count == sequences(answers)


async def test_versions_move_as_alone(service: Service) -> None:
    """The version of a conversation grows by the number of appends, and that of items with their sequence."""
    target = await new(service.stub, "msg_a")
    pool = service.database.pool
    before = await pool.fetchval("SELECT version FROM conversations WHERE id = $1", target)
    requests = [append(target, user_message(), user_message()) for _ in range(5)]
    _, texts = await outcomes_behind(service, *appends(service.stub, *requests))
    assert 1 == len(texts)
    assert before + 5 == await pool.fetchval("SELECT version FROM conversations WHERE id = $1", target)
    rows = await pool.fetch("SELECT version FROM items WHERE conversation_id = $1 ORDER BY sequence", target)
    versions = [row["version"] for row in rows]
    assert versions == sorted(versions)
    assert before < versions[1] <= versions[-1] == before + 5


# --- one conversation


async def test_appends_keep_the_order_of_the_calls(service: Service) -> None:
    """Appends to one conversation that share a statement lie in the order in which they were called."""
    target = await new(service.stub)
    requests = [append(target, *(user_message(f"{n}") for _ in range(n))) for n in range(1, 7)]
    answers, texts = await outcomes_behind(service, *appends(service.stub, *requests))
    assert 1 == len(texts)
    assert [1, 2, 4, 7, 11, 16] == [each[0] for each in sequences(answers)]
    found = await list_all_items(service.stub, target, ORDER_ASCENDING)
    assert [f"{n}" for n in range(1, 7) for _ in range(n)] == list(map(text_of, found))


# What each append expects, in a tuple if its item id is taken; and how each ends: its sequence, or the reason.
CHAINS: dict[str, tuple[list[Any], list[str]]] = {
    "all as expected": ([1, 2, 3, 4], ["2", "3", "4", "5"]),
    "begins wrong": ([5, 6, 7], ["SEQUENCE_MISMATCH"] * 3),
    "begins wrong, the rest by what is there": ([5, 1, 2], ["SEQUENCE_MISMATCH", "2", "3"]),
    "a wrong one between": ([1, 9, 2], ["2", "SEQUENCE_MISMATCH", "3"]),
    "a clash between": ([1, (2,), 3], ["2", "ITEM_EXISTS", "SEQUENCE_MISMATCH"]),
    "a clash first": ([(1,), 2], ["ITEM_EXISTS", "SEQUENCE_MISMATCH"]),
    "any and expected": ([None, 2, None, 4], ["2", "3", "4", "5"]),
    "twice the same": ([1, 1], ["2", "SEQUENCE_MISMATCH"]),
}


@pytest.mark.parametrize("company", [0, 1, 3])
@pytest.mark.parametrize("chain", list(CHAINS))
async def test_chains_of_expectations(service: Service, chain: str, company: int) -> None:
    """Appends that expect each other's place are judged as if they came one after the other."""
    wanted, expected = CHAINS[chain]
    target = await new(service.stub, "msg_a")
    others = [append(await new(service.stub), user_message()) for _ in range(company)]
    requests = []
    for each in wanted:
        place, item_id = (each[0], "msg_a") if isinstance(each, tuple) else (each, "")
        requests.append(append(target, user_message(id=item_id), expected_last_sequence=place))
    answers, texts = await outcomes_behind(service, *appends(service.stub, *requests, *others))
    ended = [each.reason if isinstance(each, Problem) else str(each.items[0].sequence) for each in answers]
    assert [*expected, *["1"] * company] == ended
    assert chain != "all as expected" or 1 == len(texts)


# --- one bad append among good ones

RULES = [
    {"permit": {"actions": ["create", "read", "update", "delete"]}, "when": "user is owner"},
    {"permit": {"actions": ["read"]}, "when": "user in owners teams"},
]
ANN = caller("ann", teams="red")
BIG = "x" * (1024 * 1024)


@pytest.fixture(scope="module")
async def guarded(postgres: str, template: str) -> AsyncIterator[GuardedService]:
    """A service behind a proxy."""
    async with guarded_service(postgres, template) as served:
        yield served


class World:
    """Conversations of all kinds, by what becomes of an append to them by Ann."""

    def __init__(self, guarded: GuardedService) -> None:
        self.guarded = guarded
        self.stub = guarded.by(ANN)
        self.ids: dict[str, str] = {}

    async def add(self, name: str) -> str:
        """The id of the conversation for that case."""
        kinds: dict[str, dict[str, Any]] = {
            "deleted": {"deleted": True},
            "of another tenant": {"tenant": "umbrella"},
            "hidden": {"owner": "bob"},
            "only read": {"owner": "bob", "attributes": {"teams": ["red"]}},
        }
        self.ids[name] = await self.guarded.row(**{"owner": "ann", **kinds.get(name, {})})
        return self.ids[name]

    async def request(self, name: str, request_id: str) -> Any:
        """The append of that case."""
        target = "conv_missing" if name == "missing" else await self.add(name)
        items = {
            "clash": [user_message(), user_message(id="msg_open")],
            "clash with itself": [user_message(id="msg_x"), user_message(id="msg_x")],
            "bad item": [user_message(), user_message(id="fc_1")],
            "a reference": [user_message(), copy_of(target, "msg_never")],
            "too large": [user_message(BIG)],
        }.get(name, [user_message(name), user_message()])
        request = append(target, *items, request_id=request_id)
        if name == "unexpected":
            request.expected_last_sequence = 1
        if name in ("repeated", "reused"):
            await self.stub.CreateItems(request)
        if name == "reused":
            request.items[0].CopyFrom(user_message("other"))
        return request

    async def rows(self) -> list[Any]:
        """All rows of the conversations, by case."""
        query = """SELECT id, last_sequence, version, update_time,
                       (SELECT array_agg(item_id ORDER BY sequence) FROM items WHERE conversation_id = id),
                       (SELECT count(*) FROM requests WHERE conversation_id = id)
                   FROM conversations WHERE id = ANY($1) ORDER BY id"""
        found = {row["id"]: tuple(row) for row in await self.guarded.connection.fetch(query, [*self.ids.values()])}
        return [found[each] for each in self.ids.values()]


GOOD = [f"good {n}" for n in range(4)]
REFUSED = {
    "missing": "NOT_FOUND CONVERSATION_NOT_FOUND",
    "deleted": "NOT_FOUND CONVERSATION_NOT_FOUND",
    "of another tenant": "NOT_FOUND CONVERSATION_NOT_FOUND",
    "hidden": "NOT_FOUND CONVERSATION_NOT_FOUND",
    "only read": "PERMISSION_DENIED ACTION_DENIED",
    "unexpected": "ABORTED SEQUENCE_MISMATCH",
}
CLASHES = {"clash": "ALREADY_EXISTS ITEM_EXISTS", "clash with itself": "ALREADY_EXISTS ITEM_EXISTS"}
INVALID = {
    "bad item": "INVALID_ARGUMENT FIELD_INVALID",
    "a reference": "NOT_FOUND ITEM_NOT_FOUND",
}
REUSED = {"reused": "FAILED_PRECONDITION REQUEST_ID_REUSED"}


@pytest.mark.parametrize("ids", [False, True], ids=["without ids", "with ids"])
@pytest.mark.parametrize(
    "bad",
    [{}, *({name: code} for name, code in (REFUSED | CLASHES).items()), REFUSED, CLASHES | INVALID],
    ids=lambda bad: " and ".join(bad) if len(bad) < 3 else "all",
)
async def test_a_bad_append_fails_alone(guarded: GuardedService, bad: dict[str, str], ids: bool) -> None:  # noqa: FBT001
    """Each gets the error it gets by itself, the good ones succeed, and nothing is half written."""
    await _fails_alone(guarded, bad, ids=ids)


async def test_a_taken_request_id_fails_alone(guarded: GuardedService) -> None:
    """A repeated request gets its first answer, another one under its id an error; the rest does not notice."""
    await _fails_alone(guarded, REUSED, ids=True)
    await _fails_alone(guarded, REUSED | REFUSED | CLASHES | INVALID, ids=True)


async def _fails_alone(guarded: GuardedService, bad: dict[str, str], *, ids: bool) -> None:
    guarded.obey(RULES)
    world = World(guarded)
    names = [*GOOD[:2], *bad, "repeated", *GOOD[2:]] if ids else [*GOOD[:2], *bad, *GOOD[2:]]
    requests = {name: await world.request(name, str(uuid4()) if ids else "") for name in names}
    done = {name: await outcome(world.stub.CreateItems(requests[name])) for name in names if name not in GOOD}
    assert bad == {name: f"{done[name].code} {done[name].reason}" for name in bad}
    before = dict(zip(world.ids, await world.rows(), strict=True))
    first = append(await guarded.row("ann"), user_message())
    calls = appends(world.stub, *requests.values())
    async with queued_behind(guarded.database, lambda: world.stub.CreateItems(first), *calls) as (_, tasks):
        pass
    answers = dict(zip(names, (task.result() for task in tasks[1:]), strict=True))
    assert done == {name: answers[name] for name in done}
    assert [[3, 4]] * len(GOOD) == sequences([answers[name] for name in GOOD])
    after = dict(zip(world.ids, await world.rows(), strict=True))
    for name in world.ids:
        assert (name in GOOD) == (before[name] != after[name]), name
    for name in GOOD:
        made = [item.id for item in answers[name].items]
        assert (4, 2, ["msg_open", "msg_secret", *made], int(ids)) == (after[name][1], after[name][2], *after[name][4:])


async def test_a_large_append_does_not_wait(service: Service) -> None:
    """One that is too large to share goes by itself, while others wait."""
    small, large = await new(service.stub), await new(service.stub)
    calls = appends(service.stub, append(small, user_message()), append(large, user_message(BIG)))
    made = await new(service.stub)
    first = lambda: service.stub.CreateItems(append(made, user_message()))  # noqa: E731
    async with queued_behind(service.database, first, *calls) as (line, tasks):
        assert [False, False, True] == [task.done() for task in tasks]
        assert [small] == [each.conversation_id for each in line.writes]
    assert [[1]] * 3 == sequences([task.result() for task in tasks])


# --- many callers

OPEN = [{"permit": {"actions": ["create", "read"]}}]
VALUES = ["a", "a,b", "a b", '"a"', "a'", "{a}", "{", "}", "\\", '\\"', "NULL", "null", "ä", "😀", "a\nb", "a=b", "%"]


def _code(answer: Any) -> str:
    return answer.code if isinstance(answer, Problem) else "OK"


async def codes_together(
    guarded: GuardedService, policy: Policy, asked: Sequence[tuple[Caller, str]]
) -> tuple[list[str], int]:
    """How appends by callers to conversations end when they gather, and how many statements of many there were."""
    guarded.obey(OPEN)
    first = append(await guarded.row("ann"), user_message())

    async def in_force() -> None:
        guarded.policy.accesses.replace(policy)

    calls = appending(guarded, asked)
    async with queued_behind(guarded.database, lambda: guarded.by(ANN).CreateItems(first), in_force, *calls) as (
        line,
        tasks,
    ):
        pass
    return [_code(task.result()) for task in tasks[2:]], sum(MANY in text for text in line.texts)


def appending(guarded: GuardedService, asked: Sequence[tuple[Caller, str]]) -> list[Call]:
    """A call for each caller and conversation."""
    return [
        lambda who=who, row=row: guarded.by(who).CreateItems(append(row, user_message()))  # type: ignore[misc]
        for who, row in asked
    ]


async def test_nobody_gets_in_by_the_permission_of_another(guarded: GuardedService) -> None:
    """In random worlds appends of many callers end together as they end one by one."""
    rng, seen, statements = Random(21), Counter[str](), 0
    for _ in range(36):  # how many share a statement depends on how busy the machine is
        world = random_world(rng)
        people = [each for each in world.principals if each.id.isascii() and each.id]
        names = {"roles", "teams", "projects", "namespaces"}
        callers = [
            Caller(each.id, "acme", {name: some for name, some in each.attributes.items() if name in names and some})
            for each in people
        ]
        rows = [
            await guarded.row(each.owner, {name: [*some] for name, some in each.attributes.items()})
            for each in rng.sample(world.rows, 4)
        ]
        asked = [(who, row) for row in rows for who in callers]
        rng.shuffle(asked)
        guarded.policy.accesses.replace(world.policy)
        alone = [_code(await outcome(call())) for call in appending(guarded, asked)]
        if "OK" not in alone:
            continue
        codes, shared = await codes_together(guarded, world.policy, asked)
        assert alone == codes
        statements += shared
        seen.update(codes)
        for row in rows:
            oks = sum(target == row and code == "OK" for (_, target), code in zip(asked, codes, strict=True))
            assert 2 + 2 * oks == await guarded.value("SELECT count(*) FROM items WHERE conversation_id = $1", row)
    assert statements > 8 or guarded.database.layout.is_distributed
    assert min(seen["OK"], seen["NOT_FOUND"]) > 10, seen


async def test_values_are_sent_as_they_are(guarded: GuardedService) -> None:
    """Signs that mean something to an array let nobody in elsewhere, and keep nobody out of their own."""
    policy = load_policy(json.dumps([{"permit": {"actions": ["read", "create"]}, "when": "user in owners teams"}]))
    values = [[value] for value in VALUES] + [VALUES[3:], VALUES[:3]]
    rows = {value: await guarded.row("", {"teams": [value]}) for value in VALUES}
    for some in (values[:5], values[5:10], values[10:15], values[15:]):
        callers = [Caller("ann", "acme", {"teams": frozenset(each)}) for each in some]
        both = [(who, value) for who in callers for value in VALUES]
        Random(22).shuffle(both)  # so that callers share statements
        codes, shared = await codes_together(guarded, policy, [(who, rows[value]) for who, value in both])
        assert ["OK" if value in who.attributes["teams"] else "NOT_FOUND" for who, value in both] == codes
        assert shared or guarded.database.layout.is_distributed


@pytest.mark.parametrize("name", ["it's", 'a"b', "{x}", "\\", "NULL", "%", "a{b"])
async def test_owners_are_compared_as_they_are(guarded: GuardedService, name: str) -> None:
    """An owner appends to its own conversations only, whatever signs its id has."""
    policy = load_policy(json.dumps([{"permit": {"actions": ["read", "create"]}, "when": "user is owner"}]))
    people = [name, "ann", name + "x"]
    rows = [await guarded.row(each) for each in people]
    others = [await guarded.row(each, tenant="umbrella") for each in people]
    asked = [(Caller(each), row) for each in people for row in (*rows, *others)]
    codes, shared = await codes_together(guarded, policy, asked)
    assert ["OK" if row == own else "NOT_FOUND" for own in rows for row in (*rows, *others)] == codes
    assert shared or guarded.database.layout.is_distributed


# --- callers that leave, rows that are locked


async def test_a_caller_that_leaves_the_line(service: Service) -> None:
    """What is cancelled in line is not appended, and the others do not notice."""
    stub, targets, made = service.stub, [await new(service.stub) for _ in range(3)], await new(service.stub)
    requests = [append(each, user_message(str(n))) for n in range(3) for each in targets]
    first = lambda: stub.CreateItems(append(made, user_message()))  # noqa: E731
    async with queued_behind(service.database, first, *appends(stub, *requests)) as (line, tasks):
        for gone in (1, 3, 8):
            tasks[1 + gone].cancel()  # and with it its call
            await line.until(line.writes[gone].answer.done)
    left = [n for n in range(9) if n not in (1, 3, 8)]
    assert {"OK"} == {_code(tasks[1 + n].result()) for n in left}
    for place, target in enumerate(targets):
        found = await list_all_items(stub, target, ORDER_ASCENDING)
        assert [str(n // 3) for n in left if n % 3 == place] == list(map(text_of, found))
        assert list(range(1, len(found) + 1)) == [item.sequence for item in found]


async def test_a_caller_that_leaves_its_statement(service: Service) -> None:
    """What is cancelled while its statement is under way is appended whole, and so is the rest of the statement."""
    stub, targets, made = service.stub, [await new(service.stub) for _ in range(2)], await new(service.stub)
    requests = [append(each, user_message(), user_message()) for each in targets]
    first = lambda: stub.CreateItems(append(made, user_message()))  # noqa: E731
    async with (
        queued_behind(service.database, first, *appends(stub, *requests)) as (line, tasks),
        row_locked(service.url, targets[1]),
    ):
        line.release.set()
        await waiting(service)
        tasks[1].cancel()
        await line.until(line.writes[0].answer.done)
    assert [[1, 2]] == sequences([tasks[2].result()])
    assert [2, 2] == [(await stub.GetConversation(get(each))).last_sequence for each in targets]


async def waiting(service: Service) -> list[int]:
    """The processes of the database that wait for a row, once there are some."""
    query = """SELECT pid FROM pg_stat_activity
               WHERE wait_event_type = 'Lock' AND datname = current_database() AND pid <> pg_backend_pid()"""
    async with asyncio.timeout(20):
        while not (found := await service.database.pool.fetch(query)):  # noqa: ASYNC110 - another process is waited for
            await asyncio.sleep(0.01)
    return [row["pid"] for row in found]


@pytest.mark.parametrize("own", [True, False], ids=["of the caller", "of the server"])
async def test_a_deadline_in_line(service: Service, own: bool) -> None:  # noqa: FBT001
    """A deadline that passes in line ends its call only, and nothing of it is appended."""
    settings: dict[str, Any] = {} if own else {"default_deadline_seconds": 0.3}
    late, kept, made = [await new(service.stub) for _ in range(3)]
    async with running_service(service.url, **settings) as served:
        calls: list[Call] = [
            lambda: served.stub.CreateItems(append(late, user_message()), timeout=0.3 if own else None),
            lambda: served.stub.CreateItems(append(kept, user_message()), timeout=20),
        ]
        first = lambda: served.stub.CreateItems(append(made, user_message()), timeout=20)  # noqa: E731
        async with queued_behind(served.database, first, *calls) as (line, tasks):
            await line.until(lambda: tasks[1].done() and line.writes[0].answer.done())
        assert "DEADLINE_EXCEEDED" == tasks[1].result().code
        assert own or "DEADLINE_EXCEEDED" == tasks[1].result().reason
        assert [[1]] == sequences([tasks[2].result()])
        assert 0 == (await served.stub.GetConversation(get(late))).last_sequence


async def test_a_locked_conversation_fails_alone(service: Service) -> None:
    """Only the appends to a conversation that somebody holds too long run out of time."""
    stub = service.stub
    held_one, *free = [await new(stub) for _ in range(4)]
    requests = [append(each, user_message()) for each in (free[0], held_one, *free)]
    made = await new(stub)
    first = lambda: stub.CreateItems(append(made, user_message()))  # noqa: E731
    async with (
        row_locked(service.url, held_one),
        queued_behind(service.database, first, *appends(stub, *requests)) as (_, tasks),
    ):
        pass
    answers = [task.result() for task in tasks[1:]]
    assert "DEADLINE_EXCEEDED" == answers[1].reason
    assert [[1], [2], [1], [1]] == sequences([answers[0], *answers[2:]])
    assert [[1]] == sequences([await stub.CreateItems(append(held_one, user_message()))])


# --- a database that goes away


@pytest.mark.parametrize("ids", [False, True], ids=["without ids", "with ids"])
@pytest.mark.parametrize("committed", [False, True], ids=["before", "after"])
async def test_a_connection_lost_under_a_statement(own_service: Service, ids: bool, committed: bool) -> None:  # noqa: FBT001
    """Whether the statement was committed or not: with a request id it succeeds, without it is not tried again."""
    service, stub = own_service, own_service.stub
    targets = [await new(stub) for _ in range(4)]
    made = await new(stub)
    requests = [
        append(targets[n % 4], user_message(f"{n}"), user_message(f"{n}"), request_id=str(uuid4()) if ids else "")
        for n in range(8)
    ]
    first = lambda: stub.CreateItems(append(made, user_message()))  # noqa: E731
    async with AsyncExitStack() as stack:
        if committed:
            await stack.enter_async_context(lost_once(service.database))
        line, tasks = await stack.enter_async_context(queued_behind(service.database, first, *appends(stub, *requests)))
        if not committed:
            async with blocked_once(service):
                line.release.set()
                for process in await waiting(service):
                    await service.database.pool.fetchval("SELECT pg_terminate_backend($1)", process)
                await line.until(lambda: len(line.texts) > 2 if ids else all(task.done() for task in tasks))
    ended = [_code(task.result()) for task in tasks[1:]]
    assert ["OK" if ids else "UNAVAILABLE"] * 8 == ended
    for place, target in enumerate(targets):
        texts = [str(n) for n in range(place, 8, 4) for _ in range(2)] if ids or committed else []
        assert texts == list(map(text_of, await list_all_items(stub, target, ORDER_ASCENDING)))
    if ids:
        again = [await stub.CreateItems(request) for request in requests]
        assert again == [task.result() for task in tasks[1:]]


@asynccontextmanager
async def blocked_once(service: Service) -> AsyncIterator[None]:
    """From the first statement of many on, nothing is inserted meanwhile."""
    async with AsyncExitStack() as stack:
        blocked = False

        async def block(execute: Execute, execution: Execution) -> Rows:
            nonlocal blocked
            if MANY in execution.statement.text and not blocked:
                blocked = True
                await stack.enter_async_context(inserts_blocked(service.url, "items"))
            return await execute(execution)

        with intercepted(service.database, block):
            yield


@asynccontextmanager
async def lost_once(database: Database) -> AsyncIterator[None]:
    """The first statement of many is committed, but its answer gets lost."""
    lost = asyncio.Event()

    async def lose(execute: Execute, execution: Execution) -> Rows:
        rows = await execute(execution)
        if MANY in execution.statement.text and not lost.is_set():
            lost.set()
            raise asyncpg.ConnectionDoesNotExistError
        return rows

    with intercepted(database, lose):
        yield
    assert lost.is_set()


# --- a crowd


@dataclass
class Attempt:
    """What somebody tried to append, and where it is if they were told."""

    writer: int
    target: str
    texts: list[str]
    code: str = ""  # '' when the caller did not wait
    sequences: list[int] = field(default_factory=list)


class Crowd:
    """Writers that append to a few conversations in all ways, over servers that share a database."""

    def __init__(self, stubs: Sequence[Any], targets: Sequence[str]) -> None:
        self.stubs = stubs
        self.targets = targets
        self.attempts: list[Attempt] = []

    async def write(self, writer: int, count: int) -> None:
        """One append after the other."""
        rng = Random(writer)
        for number in range(count):
            ways = (self._plainly, self._plainly, self._twice, self._expecting, self._clashing, self._leaving)
            texts = [f"{writer}/{number}/{place}" for place in range(rng.randint(1, 3))]
            attempt = Attempt(writer, rng.choice(self.targets), texts)
            self.attempts.append(attempt)
            await rng.choice(ways)(rng, attempt)

    async def _plainly(self, rng: Random, attempt: Attempt, **fields: Any) -> Any:
        answer = await outcome(rng.choice(self.stubs).CreateItems(self._request(attempt, **fields)))
        attempt.code = answer.reason if isinstance(answer, Problem) else "OK"
        attempt.sequences = [] if isinstance(answer, Problem) else [item.sequence for item in answer.items]
        return answer

    async def _twice(self, rng: Random, attempt: Attempt) -> None:
        request_id = str(uuid4())
        first = await self._plainly(rng, attempt, request_id=request_id)
        assert first == await self._plainly(rng, attempt, request_id=request_id)

    async def _expecting(self, rng: Random, attempt: Attempt) -> None:
        known = (await rng.choice(self.stubs).GetConversation(get(attempt.target))).last_sequence
        await self._plainly(rng, attempt, expected_last_sequence=known)
        assert attempt.sequences[:1] in ([], [known + 1])

    async def _clashing(self, rng: Random, attempt: Attempt) -> None:
        await self._plainly(rng, attempt, item_id=f"msg_{rng.randrange(3)}")

    async def _leaving(self, rng: Random, attempt: Attempt) -> None:
        call = rng.choice(self.stubs).CreateItems(self._request(attempt))
        await asyncio.sleep(rng.random() / 50)
        call.cancel()

    def _request(self, attempt: Attempt, item_id: str = "", **fields: Any) -> Any:
        items = [user_message(text) for text in attempt.texts]
        items[-1].item.id = item_id
        return append(attempt.target, *items, **fields)


async def test_a_crowd_on_two_servers(postgres: str, template: str) -> None:
    """Whatever thirty-two writers do on two servers: no gap, nothing lost or twice, each writer's order kept."""
    async with fresh_database(postgres, template) as url, running_service(url) as one, running_service(url) as other:
        targets = [await new(one.stub) for _ in range(4)]
        crowd = Crowd([one.stub, other.stub], targets)
        await asyncio.gather(*(crowd.write(writer, 12) for writer in range(32)))
        seen = Counter(attempt.code for attempt in crowd.attempts)
        assert set(seen) == {"OK", "", "SEQUENCE_MISMATCH", "ITEM_EXISTS"}
        for target in targets:
            # A write of our own behind all that were left: they are over by then, or were never begun.
            for server in (one, other):
                await server.stub.CreateItems(append(target, user_message("last")))
            items = await list_all_items(one.stub, target, ORDER_ASCENDING)
            assert list(range(1, len(items) + 1)) == [item.sequence for item in items]
            _check(items, [each for each in crowd.attempts if each.target == target])
            assert len(items) == (await one.stub.GetConversation(get(target))).last_sequence


def _check(items: list[Item], attempts: list[Attempt]) -> None:
    """The items of one conversation are what its writers were told."""
    texts = list(map(text_of, items))
    place = {text: number for number, text in enumerate(texts, 1)}
    assert len(place) == len(texts) - 1  # but for `last`
    for attempt in attempts:
        found = [place[text] for text in attempt.texts if text in place]
        whole = not found or found == list(range(found[0], found[0] + len(attempt.texts)))
        assert whole, attempt
        assert not attempt.code or found == attempt.sequences, attempt
    for writer in {attempt.writer for attempt in attempts}:
        told_of = [n for each in attempts if each.writer == writer for n in each.sequences]
        assert told_of == sorted(told_of)


async def test_two_servers_do_not_wait_for_each_other(postgres: str, template: str) -> None:
    """Statements of many to the same conversations at the same time end without an error."""
    async with fresh_database(postgres, template) as url, running_service(url) as one, running_service(url) as other:
        targets = [await new(one.stub) for _ in range(20)]
        for start in range(5):
            orders = [targets[start:] + targets[:start], targets[::-1]]
            async with AsyncExitStack() as stack:
                waits = []
                for server, order in zip((one, other), orders, strict=True):
                    made, stub = await new(server.stub), server.stub
                    first = lambda stub=stub, made=made: stub.CreateItems(append(made, user_message()))  # noqa: E731
                    calls = appends(stub, *(append(each, user_message(), user_message()) for each in order))
                    waits.append(
                        (await stack.enter_async_context(queued_behind(server.database, first, *calls)), order)
                    )
                for (line, _), _ in waits:
                    line.release.set()
            for (_, tasks), _ in waits:
                assert {"OK"} == {_code(task.result()) for task in tasks}
        assert {20} == {(await one.stub.GetConversation(get(each))).last_sequence for each in targets}
