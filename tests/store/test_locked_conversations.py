"""A conversation whose row somebody keeps locked, or whose writes are slow, delays nobody else's."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from conversations.v1.conversations_service_pb2 import ORDER_ASCENDING, AppendItemsRequest

from server.errors import DeadlineExceeded
from server.store.batch import EMPTY_BATCH
from server.store.connection.execution import Execute, Execution, Rows
from server.store.conversation_locks import ConversationLocks
from server.store.ids import conversation_id_for
from server.store.turns import MAX_SLOW, SLOW_SECONDS
from tests.support.batching import held_statement, outcome, queued_behind
from tests.support.build import append, copy_of, create, delete, delete_item, get, rewind, text_of, update, user_message
from tests.support.postgres import fresh_database, row_locked
from tests.support.service import Service, intercepted, list_all_items, running_service

MANY = "bumped.number"  # in a shared statement, and in no other
LARGE = "x" * 300_000  # does not share a statement
LOCKED_SECONDS = 1.3  # less than the lock timeout, so that a call that waits for a lock shows
UNDISTURBED = 1.0  # seconds that another call takes at most


async def new(stub: Any, *ids: str) -> str:
    """A conversation with items of these ids."""
    made = await stub.CreateConversation(create(*(user_message(id=each) for each in ids)))
    return str(made.id)


async def last_sequence(stub: Any, conversation_id: str) -> int:
    """The last_sequence of a conversation."""
    return int((await stub.GetConversation(get(conversation_id))).last_sequence)


async def stored(stub: Any, conversation_id: str) -> list[str]:
    """The texts of a conversation's items, oldest first; their sequences have no gap."""
    items = await list_all_items(stub, conversation_id, ORDER_ASCENDING)
    assert list(range(1, len(items) + 1)) == [item.sequence for item in items]
    return list(map(text_of, items))


@asynccontextmanager
async def in_turn(*calls: Callable[[], Awaitable[Any]]) -> AsyncIterator[list[float]]:
    """Runs each of the calls again and again meanwhile; yields how long they took, in seconds."""
    seconds: list[float] = []
    ending = asyncio.Event()

    async def repeat(call: Callable[[], Awaitable[Any]]) -> None:
        while not ending.is_set():
            began = time.perf_counter()
            await call()
            seconds.append(time.perf_counter() - began)

    tasks = [asyncio.create_task(repeat(call)) for call in calls]
    try:
        yield seconds
    finally:
        ending.set()
        await asyncio.gather(*tasks)


def others(stub: Any, targets: list[str]) -> list[Callable[[], Awaitable[Any]]]:
    """Appends to each of the targets, and a read of each."""
    calls: list[Callable[[], Awaitable[Any]]] = []
    for target in targets:
        calls.append(lambda target=target: stub.CreateItems(append(target, user_message())))  # type: ignore[misc]
        calls.append(lambda target=target: stub.GetConversation(get(target)))  # type: ignore[misc]
    return calls


def updates(stub: Any, targets: list[str]) -> list[Callable[[], Awaitable[Any]]]:
    """Updates of each of the targets."""
    return [lambda target=target: stub.UpdateConversation(update(target, metadata={"a": "1"})) for target in targets]  # type: ignore[misc]


@asynccontextmanager
async def transaction(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A transaction of another session, which is rolled back."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("BEGIN")
        yield connection
    finally:
        await connection.close()


# Every write that takes the lock of a conversation's row.
WRITES: dict[str, Callable[[Any, str, str], Awaitable[Any]]] = {
    "small append": lambda stub, target, _: stub.CreateItems(append(target, user_message())),
    "large append": lambda stub, target, _: stub.CreateItems(append(target, user_message(LARGE))),
    "append of a reference": lambda stub, target, source: stub.CreateItems(append(target, copy_of(source, "msg_1"))),
    "update": lambda stub, target, _: stub.UpdateConversation(update(target, metadata={"a": "1"})),
    "delete": lambda stub, target, _: stub.DeleteConversation(delete(target)),
    "delete item": lambda stub, target, _: stub.DeleteItem(delete_item(target, "msg_1")),
    "rewind": lambda stub, target, _: stub.RewindConversation(rewind(target, 0)),
}


@pytest.mark.parametrize("write", list(WRITES))
async def test_one_locked_conversation(service: Service, write: str) -> None:
    """While one conversation is locked and twenty writes to it wait, others are read and written as before."""
    stub = service.stub
    locked, source, *targets = [await new(stub, "msg_1") for _ in range(6)]
    undisturbed = (*others(stub, targets), *updates(stub, targets))
    async with in_turn(*undisturbed) as seconds, row_locked(service.url, locked):
        waiting = [asyncio.create_task(outcome(WRITES[write](stub, locked, source))) for _ in range(20)]
        await asyncio.sleep(LOCKED_SECONDS)
    assert max(seconds) < UNDISTURBED
    await asyncio.gather(*waiting)


async def test_many_locked_conversations(service: Service) -> None:
    """However many conversations are locked, some connections remain for everything else."""
    stub = service.stub
    source, *conversations = [await new(stub, "msg_1") for _ in range(17)]
    locked, targets = conversations[:12], conversations[12:]  # a call to each in each way is fewer than 100 streams
    async with in_turn(*others(stub, targets)) as seconds, transaction(service.url) as connection:
        for target in locked:
            await connection.execute("SELECT 1 FROM conversations WHERE id = $1 FOR UPDATE", target)
        waiting = [
            asyncio.create_task(outcome(write(stub, target, source))) for target in locked for write in WRITES.values()
        ]
        await asyncio.sleep(LOCKED_SECONDS)
    assert max(seconds) < UNDISTURBED
    await asyncio.gather(*waiting)


async def test_a_create_that_another_session_makes(service: Service) -> None:
    """Creates that wait for the same request id in another session leave connections to everybody else."""
    stub, request_id = service.stub, str(uuid4())
    targets = [await new(stub) for _ in range(4)]
    target = conversation_id_for("", "local", request_id)
    async with in_turn(*others(stub, targets)) as seconds, transaction(service.url) as connection:
        await connection.execute(
            """INSERT INTO conversations SELECT $1, tenant, owner, attributes, metadata, last_sequence, version,
               revision, create_time, update_time FROM conversations WHERE id = $2""",
            target,
            targets[0],
        )
        request = create(request_id=request_id)
        waiting = [asyncio.create_task(outcome(stub.CreateConversation(request))) for _ in range(20)]
        await asyncio.sleep(LOCKED_SECONDS)
    assert max(seconds) < UNDISTURBED
    await asyncio.gather(*waiting)


async def test_appends_to_the_locked_conversation_wait(service: Service) -> None:
    """They run when the lock is free again: none is lost, none is stored twice, and a stream keeps its order."""
    stub = service.stub
    locked, other = await new(stub), await new(stub)
    call = stub.AppendItems()
    async with row_locked(service.url, locked):
        for number in range(100):
            target = "" if number else locked
            await call.write(AppendItemsRequest(conversation_id=target, items=[user_message(f"{number}")]))
        single = [asyncio.ensure_future(stub.CreateItems(append(locked, user_message("single")))) for _ in range(20)]
        await stub.CreateItems(append(other, user_message()))
        await asyncio.sleep(0.5)
    sequences = [(await call.read()).appended.first_sequence for _ in range(100)]
    await call.done_writing()
    assert sorted(sequences) == sequences
    places = sequences + [each.items[0].sequence for each in await asyncio.gather(*single)]
    texts = await stored(stub, locked)
    assert sorted(places) == list(range(1, 121))
    assert [f"{number}" for number in range(100)] == [text for text in texts if text != "single"]


async def test_they_end_with_the_lock_timeout(service: Service) -> None:
    """All appends that wait for a locked row end at its timeout, not one after the other, and store nothing."""
    stub = service.stub
    locked = await new(stub)
    began = time.perf_counter()
    async with row_locked(service.url, locked):
        waiting = [asyncio.create_task(outcome(stub.CreateItems(append(locked, user_message())))) for _ in range(30)]
        ended = [await task for task in waiting]
    assert {"DEADLINE_EXCEEDED"} == {each.reason for each in ended}
    assert time.perf_counter() - began < 4.5  # the first alone, then the others together
    assert [] == await stored(stub, locked)
    await stub.CreateItems(append(locked, user_message("next")))
    assert ["next"] == await stored(stub, locked)


async def test_what_waited_is_few_statements(service: Service) -> None:
    """Appends of one caller that waited for a lock run together when it is free."""
    stub = service.stub
    locked, other = await new(stub), await new(stub)
    texts: list[str] = []

    async def record(execute: Execute, execution: Execution) -> Rows:
        texts.append(execution.statement.text)
        return await execute(execution)

    with intercepted(service.database, record):
        async with row_locked(service.url, locked):
            waiting = [asyncio.ensure_future(stub.CreateItems(append(locked, user_message()))) for _ in range(60)]
            await asyncio.sleep(0.3)
            await stub.CreateItems(append(other, user_message()))
        await asyncio.gather(*waiting)
    assert len(texts) <= 6, texts
    assert 60 == await last_sequence(stub, locked)


async def test_a_lane_keeps_the_order(service: Service) -> None:
    """Appends that a shared statement could not store run before those that came while it ran."""
    stub = service.stub
    before, locked = await new(stub), await new(stub)
    first = lambda: stub.CreateItems(append(before, user_message()))  # noqa: E731
    calls = [lambda n=n: stub.CreateItems(append(locked, user_message(f"{n}"))) for n in range(8)]
    async with (
        queued_behind(service.database, first, *calls[:4]) as (line, tasks),
        row_locked(service.url, locked),
        held_statement(service.database, MANY) as shared,
    ):
        line.release.set()
        await shared.started.wait()
        for number, call in enumerate(calls[4:], 1):
            tasks.append(asyncio.create_task(outcome(call())))
            await shared.until(lambda want=number: want == len(shared.writes))  # type: ignore[misc]
        shared.release.set()
        await shared.until(lambda: len(shared.texts) == 2)  # the shared statement, and that of the lane
    assert [f"{number}" for number in range(8)] == await stored(stub, locked)


async def test_a_caller_that_leaves_a_lane(service: Service) -> None:
    """An append whose caller leaves while the row is locked is not stored, and its items take no more memory."""
    stub = service.stub
    locked = await new(stub)
    first = lambda: stub.CreateItems(append(locked, user_message("first")))  # noqa: E731
    calls = [lambda n=n: stub.CreateItems(append(locked, user_message(f"{n}"))) for n in range(6)]
    async with queued_behind(service.database, first, *calls) as (line, tasks), row_locked(service.url, locked):
        line.release.set()
        await asyncio.sleep(0.3)
        for number in (0, 3, 5):
            tasks[1 + number].cancel()
            await line.until(lambda number=number: line.writes[number].batch is EMPTY_BATCH)  # type: ignore[misc]
    assert sorted(await stored(stub, locked)) == ["1", "2", "4", "first"]


async def test_a_slow_statement(service: Service) -> None:
    """The next shared statements run beside one that is slow; appends to its conversations wait for it, in order."""
    stub = service.stub
    before, slow, *targets = [await new(stub) for _ in range(10)]
    calls = [lambda n=n: stub.CreateItems(append(slow, user_message(f"{n}"))) for n in range(24)]
    first = lambda: stub.CreateItems(append(before, user_message()))  # noqa: E731
    async with (
        queued_behind(service.database, first, *calls[:12]) as (line, tasks),
        held_statement(service.database, MANY, slow_seconds=SLOW_SECONDS) as slow_line,
    ):
        line.release.set()
        await slow_line.started.wait()
        for number, call in enumerate(calls[12:], 1):
            tasks.append(asyncio.create_task(outcome(call())))
            await slow_line.until(lambda want=number: want == len(slow_line.writes))  # type: ignore[misc]
        for _ in range(3):
            await asyncio.gather(*(stub.CreateItems(append(each, user_message())) for each in targets))
        assert [tasks[0]] == [task for task in tasks if task.done()]
    assert [f"{number}" for number in range(24)] == await stored(stub, slow)
    assert [3] * 8 == [await last_sequence(stub, each) for each in targets]


async def test_few_slow_statements(service: Service) -> None:
    """No more than a few statements are slow at a time; the others wait, and are stored."""
    stub = service.stub
    targets = [await new(stub) for _ in range(20)]
    running = most = 0

    async def delay(execute: Execute, execution: Execution) -> Rows:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.1)
        try:
            return await execute(execution)
        finally:
            running -= 1

    with intercepted(service.database, delay):
        writes = []
        for target in targets:
            writes.append(asyncio.ensure_future(stub.CreateItems(append(target, user_message()))))
            await asyncio.sleep(0.03)
        await asyncio.gather(*writes)
    assert 1 < most <= MAX_SLOW + 1
    assert [1] * 20 == [await last_sequence(stub, each) for each in targets]


async def test_two_servers_and_one_conversation(postgres: str, template: str) -> None:
    """Servers that append to the same conversation all the time store every append once, without a gap."""
    async with fresh_database(postgres, template) as url, running_service(url) as one, running_service(url) as two:
        shared, *own = [await new(one.stub) for _ in range(9)]

        async def write(service: Service, number: int) -> None:
            for turn in range(20):
                await service.stub.CreateItems(append(shared, user_message(f"{number}/{turn}")))
                await service.stub.CreateItems(append(own[number], user_message()))

        await asyncio.gather(*(write((one, two)[number % 2], number) for number in range(8)))
        texts = await stored(one.stub, shared)
        assert 160 == len(set(texts)) == len(texts)
        for number in range(8):
            assert [f"{number}/{turn}" for turn in range(20)] == [t for t in texts if t.startswith(f"{number}/")]
        assert [20] * 8 == [await last_sequence(two.stub, each) for each in own]


# --- locks of conversations


async def test_holders_acquire_locks() -> None:
    """A lock is held by one at a time, in the order in which they asked; others are free."""
    locks, order = ConversationLocks(1), []

    async def hold(name: str) -> None:
        async with locks.hold("a"):
            order.append(name)
            await asyncio.sleep(0.01)
            order.append(name)

    await asyncio.gather(*map(hold, "123"))
    assert list("112233") == order
    async with locks.hold("a"), locks.hold("b"):
        assert not locks.try_acquire("a")
    assert locks.try_acquire("a")


async def test_a_wait_ends() -> None:
    """Whoever waits too long gets an error, and whoever is cancelled none; both leave the lock to the next."""
    locks = ConversationLocks(0.05)

    async def hold() -> str:
        async with locks.hold("a"):
            return "held"

    async with locks.hold("a"):
        with pytest.raises(DeadlineExceeded):
            await asyncio.wait_for(hold(), 5)
        cancelled = asyncio.create_task(hold())
        await asyncio.sleep(0.01)
        cancelled.cancel()
        kept = asyncio.create_task(hold())
        await asyncio.sleep(0.01)
    assert "held" == await kept
    assert cancelled.cancelled()
    assert locks.try_acquire("a")


async def test_a_lock_given_to_a_caller_that_leaves() -> None:
    """A lock that is given to a waiter in the moment in which it is cancelled goes on to the next."""
    locks = ConversationLocks(1)

    async def hold() -> str:
        async with locks.hold("a"):
            return "held"

    assert locks.try_acquire("a")
    leaving, next_ = asyncio.create_task(hold()), asyncio.create_task(hold())
    await asyncio.sleep(0)
    locks.release("a")
    leaving.cancel()
    assert "held" == await next_
    assert locks.try_acquire("a")
