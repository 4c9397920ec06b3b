"""Streams that wait for a message are ended while memory is short, those of the greediest principal first."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from server.errors import Overloaded
from server.interceptors.stream_reads import GROWTH_BYTES, LOOK_SECONDS, StreamReads
from server.observability.resident_memory import MemoryGauge
from server.policy.principal import Principal, current_principal

_MIB = 1024 * 1024
SHORT = GROWTH_BYTES + _MIB


class Process:
    """A process with streams, whose memory the test sets.

    Attributes:
        used: Its memory, in bytes.
    """

    def __init__(self) -> None:
        self.used = 0
        self.reads = StreamReads(MemoryGauge(GROWTH_BYTES, lambda: self.used))
        self.tasks: dict[str, list[asyncio.Task[list[bytes]]]] = {}

    async def open(self, principal: str, count: int, messages: tuple[bytes, ...] = ()) -> None:
        """Opens streams that get ``messages`` and then wait."""
        token = current_principal.set(Principal("", principal))
        opened = [asyncio.create_task(_read_all(self.reads, messages)) for _ in range(count)]
        current_principal.reset(token)
        self.tasks.setdefault(principal, []).extend(opened)
        await asyncio.sleep(0)

    async def look(self, used: int) -> dict[str, int]:
        """Has the process take so much memory for two looks; how many streams go on, by principal."""
        self.used = used
        await asyncio.sleep(2.5 * LOOK_SECONDS)
        return {name: sum(not task.done() for task in tasks) for name, tasks in self.tasks.items()}

    async def close(self) -> None:
        """Ends all streams."""
        tasks = [task for each in self.tasks.values() for task in each]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _messages(sent: tuple[bytes, ...]) -> AsyncIterator[bytes]:
    for each in sent:
        yield each
    await asyncio.Event().wait()


async def _read_all(reads: StreamReads, sent: tuple[bytes, ...]) -> list[bytes]:
    return [body async for body in reads.watch(_messages(sent))]


@pytest.fixture
async def process() -> AsyncIterator[Process]:
    """A process without streams."""
    process = Process()
    yield process
    if process.tasks:
        await process.close()


async def test_the_greediest_first_and_once_for_each_growth(process: Process) -> None:
    """It stops when memory does not grow any more."""
    await process.open("greedy", 20)
    await process.open("less", 10)
    await process.open("decent", 2)
    assert await process.look(GROWTH_BYTES) == {"greedy": 20, "less": 10, "decent": 2}
    assert await process.look(SHORT) == {"greedy": 0, "less": 10, "decent": 2}
    assert await process.look(SHORT + 16 * _MIB) == {"greedy": 0, "less": 10, "decent": 2}
    assert await process.look(SHORT + 16 * _MIB + 1) == {"greedy": 0, "less": 0, "decent": 2}
    for task in process.tasks["greedy"]:
        assert isinstance(task.exception(), Overloaded)


@pytest.mark.parametrize(("count", "left"), [(8, 8), (9, 0)])
async def test_few_streams_go_on_until_much_is_taken(process: Process, count: int, left: int) -> None:
    """Eight streams of a principal are not what has made the process grow, until it has grown by twice as much."""
    await process.open("decent", count)
    assert await process.look(SHORT) == {"decent": left}
    assert await process.look(2 * GROWTH_BYTES) == {"decent": 0}


async def test_growth_counts_from_the_least_since_the_last_time(process: Process) -> None:
    """What was given back and is taken again is growth."""
    await process.open("one", 20)
    await process.open("two", 10)
    assert await process.look(SHORT + 100 * _MIB) == {"one": 0, "two": 10}
    assert await process.look(SHORT + 80 * _MIB) == {"one": 0, "two": 10}
    assert await process.look(SHORT + 100 * _MIB) == {"one": 0, "two": 0}


async def test_it_begins_again_after_a_while(process: Process) -> None:
    """Once memory has been given back, the next growth counts from the limit again."""
    await process.open("one", 20)
    await process.open("two", 10)
    assert await process.look(SHORT + 100 * _MIB) == {"one": 0, "two": 10}
    assert await process.look(0) == {"one": 0, "two": 10}
    assert await process.look(SHORT) == {"one": 0, "two": 0}


async def test_a_caller_that_leaves_is_cancelled(process: Process) -> None:
    """A read that others cancel ends as cancelled, and nothing is watched any more."""
    await process.open("one", 1, (b"a", b"b"))
    await process.close()
    assert process.tasks["one"][0].cancelled()
    assert not process.reads._waiting


async def test_a_refused_stream_is_no_cancelled_task(process: Process) -> None:
    """The reader may go on to wait after the refusal, to answer what has arrived."""
    seen: list[Any] = []

    async def reader() -> None:
        try:
            await _read_all(process.reads, (b"a",))
        except Overloaded as error:
            await asyncio.sleep(0)
            seen.append(error.code)

    token = current_principal.set(Principal("", "one"))
    task = asyncio.create_task(reader())
    current_principal.reset(token)
    await asyncio.sleep(0)
    await process.look(2 * GROWTH_BYTES)
    await task
    assert seen == [Overloaded.code]
    assert task.cancelling() == 0
