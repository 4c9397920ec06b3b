"""Appends of one turn to several conversations, each of which has a statement of its own on Citus."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from server.store.connection.execution import Execute, Execution, Rows
from server.store.turns import SLOW_SECONDS
from tests.support.batching import outcome
from tests.support.build import append, create, user_message
from tests.support.problems import Problem
from tests.support.service import Service, intercepted

pytestmark = pytest.mark.citus


@asynccontextmanager
async def writes_held(service: Service, conversation_id: str) -> AsyncIterator[asyncio.Event]:
    """The writes to one conversation wait for the event, before they are sent."""
    released = asyncio.Event()

    async def hold(execute: Execute, execution: Execution) -> Rows:
        if execution.statement.kind != "read" and execution.arguments[0][0] == conversation_id:
            await released.wait()
        return await execute(execution)

    with intercepted(service.database, hold):
        yield released


async def new(stub: Any) -> str:
    """A conversation with an item `msg_1`."""
    return str((await stub.CreateConversation(create(user_message(id="msg_1")))).id)


async def taken_together(stub: Any, *requests: Any) -> list[asyncio.Task[Any]]:
    """Appends that queue behind another one until the same turn takes them, in this order."""
    first = append(await new(stub), user_message())
    tasks = [asyncio.create_task(outcome(stub.CreateItems(each))) for each in (first, *requests)]
    await asyncio.sleep(5 * SLOW_SECONDS)
    return tasks[1:]


async def test_one_that_is_answered_waits_for_no_other(service: Service) -> None:
    """Appends to a conversation go on while the statement of another one of their turn takes long."""
    stub = service.stub
    slow, other = await new(stub), await new(stub)
    async with writes_held(service, slow) as released:
        tasks = await taken_together(stub, *(append(each, user_message()) for each in (slow, other)))
        for _ in range(3):
            await asyncio.wait_for(stub.CreateItems(append(other, user_message())), 1)
        assert [False, True] == [task.done() for task in tasks]
        released.set()
        assert not [each for each in await asyncio.gather(*tasks) if isinstance(each, Problem)]


async def test_a_lane_that_ends_before_its_turn(service: Service) -> None:
    """What is refused runs again, and is answered while its turn goes on; what waits for the turn runs behind it."""
    stub = service.stub
    refused, slow = await new(stub), await new(stub)

    async def delay(execute: Execute, execution: Execution) -> Rows:
        await asyncio.sleep(1.5 * SLOW_SECONDS)  # so that the turn is slow when the lane begins
        return await execute(execution)

    async with writes_held(service, slow) as released:
        with intercepted(service.database, delay):
            requests = (append(refused, user_message(id="msg_1")), append(slow, user_message()))
            tasks = await taken_together(stub, *requests)
            assert "ITEM_EXISTS" == (await tasks[0]).reason
        behind = asyncio.create_task(outcome(stub.CreateItems(append(slow, user_message()))))
        await asyncio.sleep(5 * SLOW_SECONDS)
        released.set()
        last = [await asyncio.wait_for(task, 1) for task in (tasks[1], behind)]
        assert [2, 3] == [answer.items[0].sequence for answer in last]
