"""Reads that come at the same moment, in one round trip (ADR 12).

A read that comes while no other is under way runs at once. When others are, the
reads of one statement that come within the same few turns of the event loop are
sent together: the more the process has to do, the more they are. None waits for
a statement that is under way.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, TypeAlias

import asyncpg

from server.errors import DeadlineExceeded
from server.store.sql.statement import Statement

GATHER_TICKS = 24  # of the event loop in which reads gather
MAX_BATCH = 8  # reads in one round trip

Rows: TypeAlias = list[asyncpg.Record]
Arguments: TypeAlias = tuple[Any, ...]
Alone: TypeAlias = Callable[[Statement, Arguments], Awaitable[Rows]]
Many: TypeAlias = Callable[[str, list[Arguments]], Awaitable[Rows]]
PendingRead: TypeAlias = "tuple[Arguments, asyncio.Future[Rows]]"


@lru_cache(maxsize=1024)
def _numbered(statement: Statement) -> str:
    """The text of ``statement`` with one more parameter, which each of its rows begins with."""
    number = len(statement.names) + 1
    return f"SELECT ${number}::int AS number, rows.* FROM ({statement.text}) AS rows"  # noqa: S608 - our own text


class ReadBatcher:
    """Runs reads.

    Args:
        alone: Runs one.
        many: Runs one text with several sets of arguments in one round trip; the
            rows of all, in the order of the sets.
    """

    def __init__(self, alone: Alone, many: Many) -> None:
        self._alone = alone
        self._many = many
        self._running = 0
        self._batches: dict[Statement, list[PendingRead]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def fetch(self, statement: Statement, arguments: Arguments) -> Rows:
        """The rows of ``statement``."""
        self._running += 1
        try:
            if self._running == 1:
                return await self._alone(statement, arguments)
            return await self._enqueue(statement, arguments)
        finally:
            self._running -= 1

    def _enqueue(self, statement: Statement, arguments: Arguments) -> "asyncio.Future[Rows]":
        loop = asyncio.get_running_loop()
        pending = self._batches.get(statement)
        if pending is None:
            pending = self._batches[statement] = []
            task = loop.create_task(self._flush(statement, pending))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        asked: asyncio.Future[Rows] = loop.create_future()
        pending.append((arguments, asked))
        if len(pending) == MAX_BATCH:
            del self._batches[statement]
        return asked

    async def _flush(self, statement: Statement, pending: list[PendingRead]) -> None:
        for _ in range(GATHER_TICKS):
            await asyncio.sleep(0)
        if self._batches.get(statement) is pending:
            del self._batches[statement]
        pending = [ask for ask in pending if not ask[1].done()]  # the callers of others have gone
        try:
            await self._answer(statement, pending)
        except DeadlineExceeded:  # of one of them, perhaps: each is tried with the whole time
            await asyncio.gather(*(self._answer_one(statement, ask) for ask in pending))
        except Exception as error:  # noqa: BLE001 - it is the answer of each
            _fail(pending, error)

    async def _answer(self, statement: Statement, pending: list[PendingRead]) -> None:
        if len(pending) < 2:
            for ask in pending:
                await self._answer_one(statement, ask)
            return
        numbered = [(*arguments, number) for number, (arguments, _) in enumerate(pending)]
        answers: list[Rows] = [[] for _ in pending]
        for row in await self._many(_numbered(statement), numbered):
            answers[row["number"]].append(row)
        for (_, asked), rows in zip(pending, answers, strict=True):
            if not asked.done():
                asked.set_result(rows)

    async def _answer_one(self, statement: Statement, ask: PendingRead) -> None:
        arguments, asked = ask
        try:
            rows = await self._alone(statement, arguments)
        except Exception as error:  # noqa: BLE001 - it is the answer
            _fail([ask], error)
        else:
            if not asked.done():
                asked.set_result(rows)


def _fail(pending: list[PendingRead], error: Exception) -> None:
    for _, asked in pending:
        if not asked.done():
            asked.set_exception(error)
