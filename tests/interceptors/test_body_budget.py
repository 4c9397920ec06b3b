"""Large requests have a budget of bytes, and those on their way a number of places."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

from server.interceptors.body_budget import BodyBudget
from server.interceptors.slow_reads import SlowReads
from tests.support.build import append, create, user_message
from tests.support.problems import problem_of
from tests.support.service import Service, running_service

CREATE_ITEMS = "/conversations.v1.ConversationsService/CreateItems"


def test_bytes_of_a_connection_and_of_all() -> None:
    """A connection may hold its part and the process the whole budget; a byte more has no room and is not counted."""
    budget = BodyBudget(20, 10)
    with budget.room_for("a", 6) as first, budget.room_for("a", 4) as second:
        assert (first, second, budget.bytes) == (True, True, 10)
        with budget.room_for("a", 1) as third:
            assert not third
        with budget.room_for("b", 10) as other, budget.room_for("c", 1) as beyond:
            assert (other, beyond) == (True, False)
    assert (budget.bytes, dict(budget._per_connection)) == (0, {})


class Call:
    """A call that notes how it was ended."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.codes: list[Any] = []

    async def abort(self, code: Any, _message: str, _trailers: Any) -> None:
        """Ends the call."""
        self.codes.append(code)
        self.ended.set()


def reading(reads: SlowReads, call: Any) -> "asyncio.Task[bool]":
    """A read that lasts until the call is ended."""
    return asyncio.create_task(reads.read(call, call.ended.wait))


async def test_slow_requests_get_a_quarter_of_the_places() -> None:
    """Of eight places two may be taken by slow requests; a third slow one is refused, and a fast one is not."""
    reads, calls = SlowReads(8), [Call() for _ in range(3)]
    slow = [reading(reads, call) for call in calls]
    done, _ = await asyncio.wait(slow, return_when=asyncio.FIRST_COMPLETED, timeout=5)
    assert len(done) == 1
    assert [code for call in calls for code in call.codes] == [grpc.StatusCode.RESOURCE_EXHAUSTED]
    fast: Any = Call()
    assert await reads.read(fast, lambda: asyncio.sleep(0, "body")) == "body"
    for call in calls:
        call.ended.set()
    await asyncio.wait(slow)
    assert (reads.count, fast.codes) == (0, [])


async def test_a_caller_that_leaves_gives_its_place_back() -> None:
    """A read that is cancelled stays cancelled, and its place is free again."""
    reads, call = SlowReads(1), Call()
    task = reading(reads, call)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    fast: Any = Call()
    async with asyncio.timeout(1):
        assert await reads.read(fast, lambda: asyncio.sleep(0, "body")) == "body"


async def test_dripping_requests(service: Service) -> None:
    """While callers let their requests drip, those beyond four are refused, and small appends go on."""
    async with running_service(service.url) as served:
        name = (await served.stub.CreateConversation(create())).id
        method: Any = served.channel.stream_stream(CREATE_ITEMS)
        calls = [method(timeout=4) for _ in range(5)]
        waiting = [asyncio.ensure_future(call.read()) for call in calls]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=3)
        (refused,) = done
        error = refused.exception()
        assert isinstance(error, grpc.aio.AioRpcError)
        assert (problem_of(error).code, problem_of(error).reason) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
        assert len((await served.stub.CreateItems(append(name, user_message()))).items) == 1
        for call in calls:
            call.cancel()
        await asyncio.wait(waiting)
