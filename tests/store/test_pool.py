"""A pool whose connections are all taken: every method says so after a second, however many wait."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from conversations.v1 import conversations_service_pb2 as pb

from server.store.sql.statement import Statement
from tests.support.build import (
    ahead,
    append,
    batch_get,
    copy_of,
    create,
    delete,
    delete_item,
    get,
    get_item,
    list_items,
    update,
    user_message,
)
from tests.support.postgres import fresh_database
from tests.support.problems import problem
from tests.support.service import running_service

HELD_SECONDS = 3
BOUND_SECONDS = 1.5  # a second to wait, and what a busy machine adds; two waits in a row would be two seconds


def every_method(stub: Any, conversation_id: str) -> dict[str, Callable[[], Awaitable[Any]]]:
    """A call of each method."""
    return {
        "CreateConversation": lambda: stub.CreateConversation(create(user_message())),
        "GetConversation": lambda: stub.GetConversation(get(conversation_id)),
        "ListConversations": lambda: stub.ListConversations(pb.ListConversationsRequest()),
        "UpdateConversation": lambda: stub.UpdateConversation(update(conversation_id, "metadata")),
        "DeleteConversation": lambda: stub.DeleteConversation(delete(conversation_id)),
        "CreateItems": lambda: stub.CreateItems(append(conversation_id, user_message())),
        "CreateItems again": lambda: stub.CreateItems(append(conversation_id, user_message(), request_id=str(uuid4()))),
        "CreateItems by reference": lambda: stub.CreateItems(
            append(conversation_id, copy_of(conversation_id, "msg_a"))
        ),
        "GetItem": lambda: stub.GetItem(get_item(conversation_id, "msg_a")),
        "BatchGetItems": lambda: stub.BatchGetItems(batch_get(conversation_id, "msg_a")),
        "ListItems": lambda: stub.ListItems(list_items(conversation_id)),
        "DeleteItem": lambda: stub.DeleteItem(delete_item(conversation_id, "msg_a")),
    }


async def test_every_method_is_refused_after_a_second(postgres: str, template: str) -> None:
    """While all connections are taken, each call of many is UNAVAILABLE with RetryInfo after one wait, not several."""
    async with fresh_database(postgres, template) as url, running_service(url, pool_size=2) as service:
        made = await service.stub.CreateConversation(create(user_message(id="msg_a")))
        hold = Statement(f"SELECT pg_sleep({HELD_SECONDS})", (), "read")
        held = asyncio.gather(*(service.database.fetch(hold, {}) for _ in range(2)))
        await asyncio.sleep(0.1)

        async def measured(name: str, call: Callable[[], Awaitable[Any]]) -> tuple[str, float, str, bool]:
            began = time.monotonic()
            told = await problem(call())
            return name, time.monotonic() - began, told.code, "RetryInfo" in told.details

        calls = every_method(service.stub, made.id)
        results = await asyncio.gather(*(measured(*each) for _ in range(3) for each in calls.items()))
        await held
    for name, seconds, code, retry_info in results:
        assert ("UNAVAILABLE", True) == (code, retry_info), name
        assert seconds < BOUND_SECONDS, name


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
