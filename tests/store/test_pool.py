"""A pool whose connections are all taken: every method says so after a second, however many wait."""

import asyncio
import time
from typing import Any
from uuid import uuid4

from server.store.sql.statement import Statement
from tests.support.build import ahead, append, copy_of, create, request_of_each_method, user_message
from tests.support.postgres import fresh_database
from tests.support.problems import problem
from tests.support.service import running_service

HELD_SECONDS = 3
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
        assert ("UNAVAILABLE", True) == (code, retry_info), method
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
