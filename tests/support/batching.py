"""Writes that queue in their batcher while a statement is held back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from server.store import turns
from server.store.connection.database import Database
from server.store.connection.execution import Execute, Execution, Rows
from server.store.pending_write import PendingWrite
from tests.support.build import append, create, user_message
from tests.support.problems import problem_of
from tests.support.service import Service, intercepted

Call = Callable[[], Awaitable[Any]]


async def outcome(call: Awaitable[Any]) -> Any:
    """The response of a call, or its problem."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return problem_of(error)


class HeldStatement:
    """A statement that does not run until it is released, and the writes that queue meanwhile."""

    def __init__(self) -> None:
        self.texts: list[str] = []  # of all statements, the held one included
        self.writes: list[Any] = []
        self.started = asyncio.Event()
        self.release = asyncio.Event()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Waits until ``holds`` is true of the server."""
        async with asyncio.timeout(20):
            while not holds():  # noqa: ASYNC110 - what it looks at is no event
                await asyncio.sleep(0.001)


@asynccontextmanager
async def held_statement(
    database: Database, part: str = "", *, slow_seconds: float = 3600
) -> AsyncIterator[HeldStatement]:
    """Holds the next statement of ``database`` back until it is released.

    Args:
        database: Runs the statement.
        part: Text that the statement has; others run meanwhile.
        slow_seconds: After which it is a slow one, beside which the next one runs. Else the queue waits for it.
    """
    line, begin, slow = HeldStatement(), PendingWrite.begin, turns.SLOW_SECONDS

    async def hold(execute: Execute, execution: Execution) -> Rows:
        line.texts.append(execution.statement.text)
        if part in execution.statement.text and not line.started.is_set():
            line.started.set()
            await line.release.wait()
        return await execute(execution)

    def seen(write: PendingWrite[Any]) -> None:
        begin(write)
        if line.started.is_set():
            line.writes.append(write)

    PendingWrite.begin = seen  # type: ignore[method-assign,assignment]
    turns.SLOW_SECONDS = slow_seconds
    try:
        with intercepted(database, hold):
            yield line
    finally:
        line.release.set()
        PendingWrite.begin = begin  # type: ignore[method-assign]
        turns.SLOW_SECONDS = slow


class HeldAnswer:
    """The answer of a write that is committed, and whose call does not know."""

    def __init__(self) -> None:
        self.committed = asyncio.Event()
        self.release = asyncio.Event()


@asynccontextmanager
async def held_answer(database: Database, *, size: int = 0) -> AsyncIterator[HeldAnswer]:
    """Holds back the answer of the next write, or of the next for ``size`` calls, until it is released."""
    held = HeldAnswer()

    async def hold(execute: Execute, execution: Execution) -> Rows:
        rows = await execute(execution)
        write = execution.statement.kind != "read" and len(execution.callers) >= size
        if write and not held.committed.is_set():
            held.committed.set()
            await held.release.wait()
        return rows

    database.interceptors.insert(0, hold)  # innermost, as the network is
    try:
        yield held
    finally:
        held.release.set()
        database.interceptors.remove(hold)


@asynccontextmanager
async def queued_behind(
    database: Database, first: Call, *calls: Call
) -> AsyncIterator[tuple[HeldStatement, list[Any]]]:
    """Starts ``first``, then each call once the one before it is queued or has ended; yields their tasks."""
    async with held_statement(database) as line:
        tasks = [asyncio.create_task(outcome(first()))]
        await line.started.wait()
        for number, call in enumerate(calls, 1):
            tasks.append(asyncio.create_task(outcome(call())))
            await line.until(lambda want=number: want <= len(line.writes) + sum(task.done() for task in tasks))  # type: ignore[misc]
        yield line, tasks
        line.release.set()
        await asyncio.wait(tasks)


async def outcomes_behind(service: Service, *calls: Call) -> tuple[list[Any], list[str]]:
    """The outcomes of calls that queue behind another append, and the statements that ran for them."""
    stub = service.stub
    made = await stub.CreateConversation(create())
    first = lambda: stub.CreateItems(append(made.id, user_message()))  # noqa: E731
    async with queued_behind(service.database, first, *calls) as (line, tasks):
        pass
    return [task.result() for task in tasks[1:]], line.texts[1:]
