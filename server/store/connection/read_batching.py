"""Reads that come at the same moment, in one round trip (ADR 12).

A read that comes while no other is in flight runs at once. When others are, the
reads of one statement that come within the same few turns of the event loop are
sent together: the more the process has to do, the more they are. None waits for
a statement that is in flight.
"""

import asyncio
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import lru_cache

from server.errors import StoreUnavailable
from server.store.connection.execution import Arguments, Execute, Execution, Rows
from server.store.sql.statement import Statement

GATHER_TICKS = 24  # of the event loop in which reads gather
MAX_BATCH = 8  # reads in one round trip


@dataclass(slots=True, eq=False)
class PendingRead:
    """A read that waits for its round trip."""

    arguments: Arguments
    rows: "asyncio.Future[Rows]"
    caller: Context = field(default_factory=copy_context)


@lru_cache(maxsize=1024)
def _numbered(statement: Statement) -> Statement:
    """``statement`` with one more argument, the number that each of its rows then begins with.

    A plain SELECT stays one: another around it is what Citus plans anew each time.
    """
    number = f"${len(statement.names) + 1}::int AS number"
    if _is_plain(statement.text):
        text = statement.text.replace("SELECT ", f"SELECT {number}, ", 1)
    else:
        text = f"SELECT {number}, rows.* FROM ({statement.text}) AS rows"  # noqa: S608 - our own text
    return Statement(text, (*statement.names, "number"), statement.kind)


def _is_plain(text: str) -> bool:
    return text.startswith("SELECT ") and text.count("SELECT") == 1 and "DISTINCT" not in text


class ReadBatcher:
    """Runs reads.

    Args:
        execute: Runs a statement with one or several sets of arguments; the rows of all, in
            the order of the sets.
    """

    def __init__(self, execute: Execute) -> None:
        self._execute = execute
        self._running = 0
        self._batches: dict[Statement, list[PendingRead]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def fetch(self, statement: Statement, arguments: Arguments) -> Rows:
        """The rows of ``statement``."""
        self._running += 1
        try:
            if self._running == 1:
                return await self._execute(Execution(statement, (arguments,)))
            return await self._enqueue(statement, arguments)
        finally:
            self._running -= 1

    def _enqueue(self, statement: Statement, arguments: Arguments) -> "asyncio.Future[Rows]":
        loop = asyncio.get_running_loop()
        batch = self._batches.get(statement)
        if batch is None:
            batch = self._batches[statement] = []
            task = loop.create_task(self._flush(statement, batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        read = PendingRead(arguments, loop.create_future())
        batch.append(read)
        if len(batch) == MAX_BATCH:
            del self._batches[statement]
        return read.rows

    async def _flush(self, statement: Statement, batch: list[PendingRead]) -> None:
        try:
            for _ in range(GATHER_TICKS):
                await asyncio.sleep(0)
            self._close_batch(statement, batch)
            await self._run(statement, [read for read in batch if not read.rows.done()])  # some callers have left
        except Exception as error:  # noqa: BLE001 - it is the answer of each
            _fail(batch, error)
        finally:  # also if this task is cancelled: no caller waits for ever
            self._close_batch(statement, batch)
            _fail(batch, StoreUnavailable())

    def _close_batch(self, statement: Statement, batch: list[PendingRead]) -> None:
        """Takes no more reads into ``batch``."""
        if self._batches.get(statement) is batch:
            del self._batches[statement]

    async def _run(self, statement: Statement, batch: list[PendingRead]) -> None:
        if len(batch) < 2:
            for read in batch:
                await self._run_one(statement, read)
            return
        try:
            await self._run_batch(statement, batch)
        except Exception:  # noqa: BLE001 - of one of them, perhaps: each is tried with the whole time, and has its own error
            await asyncio.gather(*(self._run_one(statement, read) for read in batch))

    async def _run_batch(self, statement: Statement, batch: list[PendingRead]) -> None:
        arguments = [(*read.arguments, number) for number, read in enumerate(batch)]
        answers: list[Rows] = [[] for _ in batch]
        callers = [read.caller for read in batch]
        for row in await self._execute(Execution(_numbered(statement), arguments, callers)):
            answers[row["number"]].append(row)
        for read, rows in zip(batch, answers, strict=True):
            if not read.rows.done():
                read.rows.set_result(rows)

    async def _run_one(self, statement: Statement, read: PendingRead) -> None:
        try:
            rows = await self._execute(Execution(statement, (read.arguments,), (read.caller,)))
        except Exception as error:  # noqa: BLE001 - it is the answer
            _fail([read], error)
        else:
            if not read.rows.done():
                read.rows.set_result(rows)


def _fail(batch: list[PendingRead], error: Exception) -> None:
    for read in batch:
        if not read.rows.done():
            read.rows.set_exception(error)
