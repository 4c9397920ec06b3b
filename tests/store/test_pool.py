"""A pool whose connections are all taken: every method says so after a second, however many wait."""

import asyncio
import time
from typing import Any
from uuid import uuid4

import pytest

from server.errors import StoreUnavailable
from server.observability.stats import StoreStats
from server.store.connection.slots import ConnectionSlots, waited_since
from server.store.conversation_locks import ConversationLocks
from server.store.sql.statement import Statement
from tests.support.build import ahead, append, copy_of, create, request_of_each_method, user_message
from tests.support.postgres import fresh_database
from tests.support.problems import problem
from tests.support.service import running_service

HELD_SECONDS = 3
SCANS = ("ListConversations", "ListItems", "DeleteConversations")
BOUND_SECONDS = 1.5  # a second to wait, and what a busy machine adds; two waits in a row would be two seconds


def every_call(conversation_id: str) -> list[tuple[str, Any]]:
    """Methods and their requests: each method but the stream, and appends that run in other ways."""
    again, reference = user_message(), copy_of(conversation_id, "msg_1")
    requests = request_of_each_method(conversation_id)
    del requests["AppendItems"]
    return [
        *requests.items(),
        ("CreateItems", append(conversation_id, again, request_id=str(uuid4()))),
        ("CreateItems", append(conversation_id, reference)),
    ]


async def test_every_method_is_refused_after_a_second(postgres: str, template: str) -> None:
    """While all connections are taken, each call of many is UNAVAILABLE with RetryInfo after one wait, not several."""
    async with fresh_database(postgres, template) as url, running_service(url, pool_size=2) as service:
        made = await service.stub.CreateConversation(create(user_message(id="msg_1")))
        hold = Statement(f"SELECT pg_sleep({HELD_SECONDS})", (), "read")
        held = asyncio.gather(*(service.database.fetch(hold, {}) for _ in range(2)))
        await asyncio.sleep(0.1)

        async def measured(method: str, request: Any) -> tuple[float, str, bool]:
            began = time.monotonic()
            told = await problem(getattr(service.stub, method)(request))
            return time.monotonic() - began, told.code, "RetryInfo" in told.details

        calls = every_call(made.id) * 3
        results = await asyncio.gather(*(measured(*each) for each in calls))
        await held
    for (method, _), (seconds, code, retry_info) in zip(calls, results, strict=True):
        # One scan of a caller waits for a connection, and its others for that scan.
        assert code in {"UNAVAILABLE", *(["RESOURCE_EXHAUSTED"] if method in SCANS else [])}, method
        assert retry_info, method
        assert seconds < BOUND_SECONDS, method


async def test_a_stream_is_refused_after_a_second(postgres: str, template: str) -> None:
    """Each append that was sent ahead is answered after the same second."""
    async with fresh_database(postgres, template) as url, running_service(url, pool_size=1) as service:
        made = await service.stub.CreateConversation(create())
        hold = Statement(f"SELECT pg_sleep({HELD_SECONDS})", (), "read")
        held = asyncio.ensure_future(service.database.fetch(hold, {}))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        messages = (ahead(made.id, user_message(str(number))) for number in range(20))
        answers = [answer async for answer in service.stub.AppendItems(messages)]
        assert time.monotonic() - began < BOUND_SECONDS
        assert 20 == len(answers)
        assert not any(answer.HasField("appended") for answer in answers)
        await held


async def refused_after(slots: ConnectionSlots) -> float:
    """Seconds until a statement is refused for want of a slot."""
    began = time.perf_counter()
    with pytest.raises(StoreUnavailable):
        await slots.acquire(waits=True)
    return time.perf_counter() - began


async def test_the_wait_for_a_conversation_counts() -> None:
    """A write that has waited for another write to its conversation waits so much less for a connection."""
    slots, locks = ConnectionSlots(1, 1.0, StoreStats()), ConversationLocks(2.0)
    await slots.acquire(waits=False)

    async def second() -> float:
        async with locks.hold("conv_a"):
            return await refused_after(slots)

    async with locks.hold("conv_a"):
        waiting = asyncio.ensure_future(second())
        await asyncio.sleep(0.6)
    assert 0.3 <= await waiting <= 0.6


@pytest.mark.parametrize(("waited", "left"), [(0.0, 1.0), (0.8, 0.2), (0.9, 0.1), (5.0, 0.1)])
async def test_a_short_wait_is_left(waited: float, left: float) -> None:
    """However long a statement has waited for its turn, it waits a tenth of a second for a connection."""
    slots = ConnectionSlots(1, 1.0, StoreStats())
    await slots.acquire(waits=False)
    with waited_since(time.perf_counter() - waited):
        assert left - 0.02 <= await refused_after(slots) <= left + 0.3
