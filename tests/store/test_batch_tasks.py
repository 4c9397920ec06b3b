"""The tasks that run statements for several calls: whatever ends one, the calls that wait for it are answered."""

import asyncio
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from server.store import append_batching
from server.store.connection import read_batching
from server.store.connection.execution import Execute, Execution, Rows
from tests.support.batching import outcome, queued_behind
from tests.support.build import append, create, get, user_message
from tests.support.postgres import row_locked
from tests.support.service import Service, intercepted

SOON = 5.0  # seconds; a call that is forgotten waits for its deadline, 30


def kill(name: str) -> int:
    """Ends the tasks whose function has this name; returns how many."""
    tasks = [task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__qualname__", "").endswith(name)]
    return sum(task.cancel() for task in tasks)


async def killed(service: Service, calls: list[Any], name: str) -> list[Any]:
    """The outcomes of ``calls`` when the task that runs their shared statement is ended under it."""
    started = asyncio.Event()

    async def hold(execute: Execute, execution: Execution) -> Rows:
        started.set()
        await asyncio.sleep(60)
        return await execute(execution)

    with intercepted(service.database, hold):
        waiting = [asyncio.create_task(outcome(call)) for call in calls]
        await asyncio.wait_for(started.wait(), SOON)
        await asyncio.sleep(0.1)
        assert kill(name)
        done, _ = await asyncio.wait(waiting, timeout=1)
        answered = [task.result() for task in waiting if task in done]
        for task in waiting:
            task.cancel()
    return answered


@pytest.mark.parametrize(("ids", "reason"), [(True, "STORE_UNAVAILABLE"), (False, "OUTCOME_UNKNOWN")])
async def test_a_killed_turn_answers_its_appends(own_service: Service, ids: bool, reason: str) -> None:  # noqa: FBT001
    """Appends of a statement whose task is ended are UNAVAILABLE at once, and the next append is stored."""
    stub = own_service.stub
    made = [await stub.CreateConversation(create()) for _ in range(4)]
    requests = [append(each.id, user_message(), request_id=str(uuid4()) if ids else "") for each in made]
    for _ in range(3):  # appends that come together share statements from the second time on
        await asyncio.gather(*(stub.CreateItems(append(each.id, user_message())) for each in made))
    answers = await killed(own_service, [stub.CreateItems(request) for request in requests], "_run_turn")
    assert {("UNAVAILABLE", reason)} == {(told.code, told.reason) for told in answers}
    assert (await stub.CreateItems(append(made[0].id, user_message()))).items


@pytest.mark.parametrize(("ids", "reason"), [(True, "STORE_UNAVAILABLE"), (False, "OUTCOME_UNKNOWN")])
async def test_a_killed_turn_answers_its_creates(own_service: Service, ids: bool, reason: str) -> None:  # noqa: FBT001
    """Creates of a statement whose task is ended are UNAVAILABLE at once, and the next create is stored."""
    stub = own_service.stub
    requests = [create(request_id=str(uuid4()) if ids else "") for _ in range(4)]
    for _ in range(3):  # creates that come together share statements from the second time on
        await asyncio.gather(*(stub.CreateConversation(create()) for _ in range(4)))
    answers = await killed(own_service, [stub.CreateConversation(request) for request in requests], "_run_turn")
    assert {("UNAVAILABLE", reason)} == {(told.code, told.reason) for told in answers}
    assert (await stub.CreateConversation(requests[0])).id


@pytest.mark.parametrize(("ids", "reason"), [(True, "STORE_UNAVAILABLE"), (False, "OUTCOME_UNKNOWN")])
async def test_a_killed_lane_answers_its_appends(own_service: Service, ids: bool, reason: str) -> None:  # noqa: FBT001
    """Appends to a locked conversation, whose lane is ended, are UNAVAILABLE at once, and the next one is stored."""
    stub = own_service.stub
    before, locked = [await stub.CreateConversation(create()) for _ in range(2)]
    requests = [append(locked.id, user_message(), request_id=str(uuid4()) if ids else "") for _ in range(6)]
    first = lambda: stub.CreateItems(append(before.id, user_message()))  # noqa: E731
    calls = [lambda request=request: stub.CreateItems(request) for request in requests]
    async with (
        queued_behind(own_service.database, first, *calls) as (line, tasks),
        row_locked(own_service.url, locked.id),
    ):
        line.release.set()
        await line.until(lambda: len(line.texts) == 3)  # the first append, the shared statement, that of the lane
        assert 1 == kill("_run_lane")
        answers = await asyncio.wait_for(asyncio.gather(*tasks[1:]), SOON)
    assert [("UNAVAILABLE", reason)] * 6 == [(told.code, told.reason) for told in answers]
    next_ = await stub.CreateItems(append(locked.id, user_message()))
    assert next_.items[0].sequence in (1, 7)  # the statement stores all six when the row is free before it is cancelled


async def test_a_killed_flush_answers_its_reads(own_service: Service) -> None:
    """Reads of a round trip whose task is ended are UNAVAILABLE at once, and the next read is answered."""
    stub = own_service.stub
    made = await stub.CreateConversation(create())
    answers = await killed(own_service, [stub.GetConversation(get(made.id)) for _ in range(6)], "_flush")
    assert len(answers) >= 2
    assert {("UNAVAILABLE", "STORE_UNAVAILABLE")} == {(told.code, told.reason) for told in answers}
    assert made.id == (await stub.GetConversation(get(made.id))).id


@pytest.mark.parametrize(
    "error", [asyncpg.ConnectionDoesNotExistError(), asyncpg.DataError("x"), asyncpg.DivisionByZeroError("x")]
)
async def test_a_shared_read_that_fails(
    own_service: Service, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads whose round trip fails are tried again one by one; the one that is to blame fails alone."""
    # On a busy machine calls arrive one by one: they gather for longer, and behind the first one.
    monkeypatch.setattr(read_batching, "GATHER_TICKS", 1000)
    stub = own_service.stub
    made = [await stub.CreateConversation(create()) for _ in range(8)]
    shared = 0

    async def fail(execute: Execute, execution: Execution) -> Rows:
        nonlocal shared
        shared += len(execution.arguments) > 1
        if any(made[-1].id in arguments for arguments in execution.arguments):
            raise error
        if any(made[0].id in arguments for arguments in execution.arguments):
            await asyncio.sleep(0.05)
        return await execute(execution)

    with intercepted(own_service.database, fail):
        for _ in range(20):
            answers = await asyncio.gather(*(outcome(stub.GetConversation(get(each.id))) for each in made))
            assert made[:-1] == answers[:-1]
            assert answers[-1].code in {"UNAVAILABLE", "INTERNAL"}
            if shared > 3:
                break
    assert shared


async def test_an_append_that_breaks_the_batcher_fails_alone(
    own_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception while a statement is put together is the answer of one call; the others go on."""
    stub = own_service.stub
    made = [await stub.CreateConversation(create()) for _ in range(4)]
    add, failures = append_batching._add_to_groups, [ZeroDivisionError()]

    def broken(*arguments: Any) -> bool:
        if failures:
            raise failures.pop()
        return add(*arguments)

    monkeypatch.setattr(append_batching, "_add_to_groups", broken)
    calls = [lambda each=each: stub.CreateItems(append(each.id, user_message())) for each in made for _ in range(2)]
    async with queued_behind(own_service.database, *calls) as (line, tasks):
        line.release.set()
        answers = await asyncio.wait_for(asyncio.gather(*tasks), SOON)
    assert ["INTERNAL"] == [told.code for told in answers if hasattr(told, "code")]
