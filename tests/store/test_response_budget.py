"""Large responses have a budget of memory, which they wait for in order, and give back."""

import asyncio
from collections.abc import Coroutine, Iterator
from contextvars import copy_context
from typing import Any

import pytest

from server.errors import Overloaded
from server.policy.principal import Principal, current_principal
from server.store.response_budget import ResponseBudget, Room, current_room

SIZE = 1000  # bytes of the largest response: 4 copies while it is made, 8,000 in all, 4,000 of one principal


@pytest.fixture
def budget() -> Iterator[ResponseBudget]:
    """A budget, which is whole again after the test."""
    made = ResponseBudget(SIZE, seconds=0.05)
    yield made
    assert (made.used, dict(made._per_caller), made._waiters, made._holding) == (0, {}, [], 0)


def call(who: str, coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    """Runs something as a call of a principal."""
    context = copy_context()
    context.run(current_principal.set, Principal("", who))
    return asyncio.get_running_loop().create_task(coroutine, context=context)


async def reading(budget: ResponseBudget, size: int, ends: asyncio.Event, **how: Any) -> None:
    """A call that makes a response, and lasts until ``ends``."""
    await budget.reserve(size, **how)
    room = current_room.get()
    assert room
    await ends.wait()
    room.release()


async def test_a_principal_gets_half_and_all_get_the_whole(budget: ResponseBudget) -> None:
    """Each of two may make one response of the largest size; a byte more is refused, of them and of a third."""
    ends = asyncio.Event()
    first, second = (call(who, reading(budget, SIZE, ends)) for who in ("a", "b"))
    refused = [call(who, reading(budget, 1, ends)) for who in ("a", "b", "c")]
    assert [Overloaded] * 3 == [type(each) for each in await asyncio.gather(*refused, return_exceptions=True)]
    assert (budget.used, budget.refused) == (8 * SIZE, 3)
    ends.set()
    await asyncio.gather(first, second)


async def test_who_waits_gets_what_is_given_back(budget: ResponseBudget) -> None:
    """In order; who waits for the end of his own response does not keep others."""
    order: list[str] = []

    async def noted(name: str, size: int) -> None:
        await reading(budget, size, at_once)
        order.append(name)

    ends, at_once = asyncio.Event(), asyncio.Event()
    at_once.set()
    first = call("a", reading(budget, SIZE, ends))
    await asyncio.sleep(0)
    waiting = [call("a", noted("a", SIZE)), call("b", noted("b", SIZE)), call("c", noted("c", SIZE))]
    await asyncio.sleep(0.01)
    assert ["b", "c"] == order
    ends.set()
    await asyncio.gather(first, *waiting)
    assert ["b", "c", "a"] == order


async def test_a_finished_response_takes_less(budget: ResponseBudget) -> None:
    """Two copies of what it is, until it is sent; to give back twice does no harm."""

    async def run() -> None:
        await budget.reserve(SIZE)
        room = current_room.get()
        assert room
        room.shrink(SIZE // 2)
        assert SIZE == budget.used
        room.release()
        room.release()

    await call("a", run())


async def test_a_second_reservation_replaces_the_first(budget: ResponseBudget) -> None:
    """A call that reads again, and more, does not wait for itself."""

    async def run() -> None:
        await budget.reserve(SIZE)
        await reading(budget, SIZE, at_once)

    at_once = asyncio.Event()
    at_once.set()
    await call("a", run())


async def test_a_caller_that_leaves_gives_its_turn_to_the_next(budget: ResponseBudget) -> None:
    """Whether it waits, or has got room in the same moment."""
    ends = asyncio.Event()
    room: Room = await call("a", budget.hold(2 * SIZE, patient=False))
    waiting, granted = call("a", reading(budget, SIZE, ends)), call("a", reading(budget, SIZE, ends))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    room.release()
    granted.cancel()
    done = await asyncio.gather(waiting, granted, return_exceptions=True)
    assert [asyncio.CancelledError] * 2 == [type(each) for each in done]


async def test_a_committed_write_waits_as_long_as_its_call(budget: ResponseBudget) -> None:
    """It is not refused after the time of a read."""
    ends, at_once = asyncio.Event(), asyncio.Event()
    at_once.set()
    first = call("a", reading(budget, SIZE, ends))
    await asyncio.sleep(0)
    patient = call("a", reading(budget, SIZE, at_once, patient=True))
    await asyncio.sleep(0.1)
    assert not patient.done()
    ends.set()
    await asyncio.gather(first, patient)


async def test_few_finished_responses_wait(budget: ResponseBudget) -> None:
    """32 at once; one more is refused at once, but for a write."""

    async def hold(*, patient: bool = False) -> None:
        (await budget.hold(1, patient=patient)).release()

    ends = asyncio.Event()
    first = call("a", reading(budget, SIZE, ends))
    await asyncio.sleep(0)
    waiting = [call("a", hold()) for _ in range(32)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await call("a", hold())
    patient = call("a", hold(patient=True))
    await asyncio.sleep(0)
    assert not any(each.done() for each in (*waiting, patient))
    ends.set()
    await asyncio.gather(first, patient, *waiting)
