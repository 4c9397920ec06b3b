"""Requests that take long to arrive, limited."""

import asyncio
import time
import weakref
from typing import Any

import grpc.aio
import pytest

from server.interceptors.slow_reads import LOOK_SECONDS, SLOW_SECONDS, SlowReads
from server.observability.resident_memory import MemoryGauge


class Body:
    """Stands for the bytes of a request, to which there are no weak references."""


class LateAbort:
    """A context whose abort takes as long as the test wants, as gRPC's does under load."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.goes_on = asyncio.Event()

    async def abort(self, *_status: Any) -> None:
        """Ends the call, late."""
        self.begun.set()
        await self.goes_on.wait()
        raise grpc.aio.AbortError


async def test_a_request_that_arrives_while_it_is_refused_is_not_served() -> None:
    """Its caller is told that nothing was written, so the method never gets it."""
    reads, context, arrives = SlowReads(4), LateAbort(), asyncio.Event()
    reads.begin()  # the one place for slow requests is taken

    async def read() -> bytes:
        await arrives.wait()
        return b"body"

    call = asyncio.create_task(reads.read(context, read))  # type: ignore[arg-type]
    async with asyncio.timeout(SLOW_SECONDS + 5):
        await context.begun.wait()
        arrives.set()
        await asyncio.sleep(0)
        context.goes_on.set()
        with pytest.raises(grpc.aio.AbortError):
            await call
    assert 1 == reads.count


async def test_a_refused_request_that_has_arrived_is_freed_at_once(without_collection: None) -> None:
    """The error of its call does not keep it until a collection, which counts objects and not bytes."""
    reads, context, arrives = SlowReads(4), LateAbort(), asyncio.Event()
    reads.begin()  # the one place for slow requests is taken
    kept: list[weakref.ref[Body]] = []

    async def read() -> Body:
        await arrives.wait()
        body = Body()
        kept.append(weakref.ref(body))
        return body

    call = asyncio.create_task(reads.read(context, read))  # type: ignore[arg-type]
    async with asyncio.timeout(SLOW_SECONDS + 5):
        await context.begun.wait()
        arrives.set()
        await asyncio.sleep(0)
        context.goes_on.set()
        await asyncio.wait((call,))
    assert isinstance(call.exception(), grpc.aio.AbortError)
    assert kept[0]() is None


async def test_each_request_becomes_slow_in_its_own_time() -> None:
    """One timer watches all: those that come later become slow later, small ones never, and so again after a pause."""
    reads, arrived = SlowReads(16), asyncio.Event()

    async def slow() -> bytes:
        await arrived.wait()
        return b"slow"

    async def small() -> bytes:
        await asyncio.sleep(0)
        return b"small"

    loop = asyncio.get_running_loop()
    for _ in range(2):
        arrived.clear()
        calls, began = [], []
        for _ in range(2):
            began.append(loop.time())
            calls.append(asyncio.create_task(reads.read(LateAbort(), slow)))  # type: ignore[arg-type]
            for _ in range(3):
                assert b"small" == await reads.read(LateAbort(), small)  # type: ignore[arg-type]
            await asyncio.sleep(0.6 * SLOW_SECONDS)
        async with asyncio.timeout(SLOW_SECONDS + 5):
            for number, since in enumerate(began, 1):
                while reads.count < number:  # noqa: ASYNC110 - what it looks at is no event
                    await asyncio.sleep(0.001)
                assert SLOW_SECONDS <= loop.time() - since + 0.001
        await asyncio.sleep(2 * SLOW_SECONDS)
        assert 2 == reads.count
        arrived.set()
        assert [b"slow"] * 2 == await asyncio.gather(*calls)
        assert 0 == reads.count


class Arrivals:
    """Three requests on their way to a process whose memory a test sets.

    Attributes:
        used: Its memory; it is short beyond 10.
        reads: What watches them.
    """

    def __init__(self, places: int, *, small: bool) -> None:
        self.used = 0
        self.reads = SlowReads(places, MemoryGauge(10, lambda: self.used))
        self._arrive = asyncio.Event()
        self._contexts = [LateAbort() for _ in range(3)]
        for context in self._contexts:
            context.goes_on.set()
        read: Any = self.reads.read_small if small else self.reads.read
        self._calls = [asyncio.create_task(read(context, self._body)) for context in self._contexts]

    async def _body(self) -> bytes:
        await self._arrive.wait()
        return b"body"

    @property
    def refused(self) -> list[bool]:
        """Whether each has been refused."""
        return [context.begun.is_set() for context in self._contexts]

    async def end(self) -> list[type]:
        """Has them arrive; the type of what each call ends with."""
        self._arrive.set()
        return [type(each) for each in await asyncio.gather(*self._calls, return_exceptions=True)]


async def test_while_memory_is_short_only_the_oldest_goes_on() -> None:
    """The others are refused before they are slow."""
    arrivals = Arrivals(16, small=False)
    await asyncio.sleep(SLOW_SECONDS / 2)
    assert [False] * 3 == arrivals.refused
    arrivals.used = 11
    await asyncio.sleep(SLOW_SECONDS)
    assert [False, True, True] == arrivals.refused
    assert [bytes, grpc.aio.AbortError, grpc.aio.AbortError] == await arrivals.end()
    assert (0, {}) == (arrivals.reads.count, arrivals.reads._watches)


async def test_small_requests_may_take_their_time_unless_memory_is_short() -> None:
    """They take no place of those that may be large, and are refused as those are when the process has grown."""
    arrivals = Arrivals(4, small=True)
    await asyncio.sleep(2 * SLOW_SECONDS)
    assert (0, [False] * 3) == (arrivals.reads.count, arrivals.refused)
    arrivals.used = 11
    await asyncio.sleep(SLOW_SECONDS)
    assert [False, True, True] == arrivals.refused
    assert [bytes, grpc.aio.AbortError, grpc.aio.AbortError] == await arrivals.end()


async def test_a_late_look_refuses_nothing_that_it_sees_for_the_first_time() -> None:
    """What has arrived while the loop was blocked is taken after the look; the next look finds it gone."""
    reads = SlowReads(16, MemoryGauge(-1, lambda: 1))

    async def read() -> bytes:
        await asyncio.sleep(LOOK_SECONDS + 0.005)
        return b"body"

    calls = [asyncio.create_task(reads.read_small(LateAbort(), read)) for _ in range(3)]  # type: ignore[arg-type]
    await asyncio.sleep(LOOK_SECONDS / 2)
    time.sleep(5 * LOOK_SECONDS)  # noqa: ASYNC251 - blocks the loop, as a sick process does
    assert [b"body"] * 3 == await asyncio.gather(*calls)


async def test_while_memory_is_short_requests_begin_two_at_a_time() -> None:
    """A small one gets its turn soon: those before it are refused or have arrived."""
    reads, never = SlowReads(16, MemoryGauge(-1, lambda: 1)), asyncio.Event()
    begun: list[int] = []

    async def read(number: int) -> bytes:
        begun.append(number)
        await (asyncio.sleep(0) if number == 9 else never.wait())
        return b"body"

    contexts = [LateAbort() for _ in range(10)]
    first = asyncio.create_task(reads.read(contexts[0], lambda: read(0)))  # type: ignore[arg-type]
    await asyncio.sleep(SLOW_SECONDS / 2)
    later = [asyncio.create_task(reads.read(contexts[n], lambda n=n: read(n))) for n in range(1, 10)]  # type: ignore[arg-type, misc]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [0, 1, 2] == begun
    for each in later[:8]:
        each.cancel()
    async with asyncio.timeout(5):
        assert b"body" == await later[8]
    first.cancel()
    await asyncio.wait([first, *later])


async def test_a_read_that_fails_after_it_was_refused_ends_as_refused() -> None:
    """grpc.aio allows one end of a call; another one would be logged as a defect."""
    reads, context, fails = SlowReads(4), LateAbort(), asyncio.Event()
    reads.begin()

    async def read() -> bytes:
        await fails.wait()
        raise ValueError

    call = asyncio.create_task(reads.read(context, read))  # type: ignore[arg-type]
    async with asyncio.timeout(SLOW_SECONDS + 5):
        await context.begun.wait()
        context.goes_on.set()
        fails.set()
        with pytest.raises(grpc.aio.AbortError):
            await call
