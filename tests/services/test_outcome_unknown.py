"""Writes whose answer from the database is lost: no client library repeats what may have been stored."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import grpc.aio
import pytest
from conversations.v1.conversations_service_pb2 import AppendItemsRequest, ListConversationsRequest
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo

from tests.support.batching import outcome
from tests.support.build import append, create, delete, delete_item, get, list_items, rewind, update, user_message
from tests.support.problems import problem
from tests.support.proxied import Proxied, proxied_service, unknown
from tests.support.tcp_proxy import Direction

NEEDLE = "needle"


@pytest.fixture
async def proxied(postgres: str, template: str) -> AsyncIterator[Proxied]:
    """A proxied service with the settings of tests."""
    async with proxied_service(postgres, template) as served:
        yield served


async def texts(stub: Any, conversation_id: str) -> list[str]:
    """The texts of a conversation's items."""
    page = await stub.ListItems(list_items(conversation_id))
    return [item.message.content[0].input_text.text for item in page.items]


async def test_an_append_is_not_doubled(proxied: Proxied) -> None:
    """With the shipped service config a lost answer is one call that fails and one item that is stored."""
    made = await proxied.stub.CreateConversation(create())
    proxied.proxy.lose_answers(NEEDLE.encode())
    await unknown(proxied.stub.CreateItems(append(made.id, user_message(NEEDLE))))
    assert 1 == proxied.proxy.lost
    await proxied.proxy.heal()
    assert [NEEDLE] == await texts(proxied.stub, made.id)


async def test_every_write_says_so(proxied: Proxied) -> None:
    """Create, update, rewind and the deletes without a request id are written once, and answered likewise."""
    stub, proxy = proxied.stub, proxied.proxy
    kept, gone, back = [await stub.CreateConversation(create(user_message(id=f"msg_{NEEDLE}"))) for _ in range(3)]
    for call, lost in (
        (lambda: stub.CreateConversation(create(metadata={"a": NEEDLE})), NEEDLE),
        (lambda: stub.UpdateConversation(update(kept.id, metadata={"a": NEEDLE})), NEEDLE),
        (lambda: stub.DeleteItem(delete_item(kept.id, f"msg_{NEEDLE}")), NEEDLE),
        (lambda: stub.DeleteConversation(delete(gone.id)), gone.id),
        (lambda: stub.RewindConversation(rewind(back.id, 0)), back.id),
    ):
        proxy.lose_answers(lost.encode())
        await unknown(call())
        await proxy.heal()
    listed = await stub.ListConversations(ListConversationsRequest(filter=f'metadata.a = "{NEEDLE}"'))
    assert 2 == len(listed.conversations)
    assert '"2"' == (await stub.GetConversation(get(kept.id))).etag
    assert [[], []] == [await texts(stub, each.id) for each in (kept, back)]
    assert "NOT_FOUND" == (await problem(stub.GetConversation(get(gone.id)))).code


async def test_with_a_request_id_it_is_known(proxied: Proxied) -> None:
    """A write with a request id is repeated by the service itself: it succeeds, and is stored once."""
    made = await proxied.stub.CreateConversation(create())
    proxied.proxy.lose_answers(NEEDLE.encode(), every=2)
    request = append(made.id, user_message(NEEDLE), request_id=str(uuid4()))
    first = await proxied.stub.CreateItems(request)
    again = await proxied.stub.CreateItems(request)
    assert proxied.proxy.lost
    assert first == again
    await proxied.proxy.heal()
    assert [NEEDLE] == await texts(proxied.stub, made.id)


async def test_many_in_one_statement(proxied: Proxied) -> None:
    """Each of the appends that shared the statement is answered likewise, and each is stored once."""
    stub = proxied.stub
    made = [await stub.CreateConversation(create()) for _ in range(20)]
    proxied.proxy.lose_answers(NEEDLE.encode())
    ended = await asyncio.gather(*(outcome(stub.CreateItems(append(each.id, user_message(NEEDLE)))) for each in made))
    assert {"OUTCOME_UNKNOWN"} == {each.reason for each in ended}
    await proxied.proxy.heal()
    assert [[NEEDLE]] * 20 == [await texts(stub, each.id) for each in made]


async def test_in_a_stream(proxied: Proxied) -> None:
    """A stream answers the append with the reason and without RetryInfo, and goes on."""
    made = await proxied.stub.CreateConversation(create())
    proxied.proxy.lose_answers(NEEDLE.encode())
    call = proxied.stub.AppendItems()
    await call.write(AppendItemsRequest(conversation_id=made.id, items=[user_message(NEEDLE)]))
    error = (await call.read()).error
    info = ErrorInfo()
    assert error.details[0].Unpack(info)
    assert "OUTCOME_UNKNOWN" == info.reason
    assert not any(each.Is(RetryInfo.DESCRIPTOR) for each in error.details)
    await proxied.proxy.heal()
    await call.write(AppendItemsRequest(items=[user_message("next")]))
    assert 2 == (await call.read()).appended.first_sequence
    await call.done_writing()
    assert grpc.aio.EOF == await call.read()


async def test_a_read_is_repeated(proxied: Proxied) -> None:
    """A read that gets no answer is run again; nothing is unknown."""
    made = await proxied.stub.CreateConversation(create())
    proxied.proxy.lose_answers(made.id.encode(), every=2)
    assert [made.id] * 4 == [(await proxied.stub.GetConversation(get(made.id))).id for _ in range(4)]
    assert proxied.proxy.lost


async def test_what_was_not_sent_is_known(postgres: str, template: str) -> None:
    """Where no connection could be made nothing was written, and a client may retry."""
    async with proxied_service(postgres, template) as proxied:
        made = await proxied.stub.CreateConversation(create())
        await proxied.proxy.refuse()
        await asyncio.sleep(0.1)
        bare = [("grpc.enable_retries", 0)]
        async with grpc.aio.insecure_channel(proxied.address, options=bare) as channel:
            found = await problem(ConversationsServiceStub(channel).CreateItems(append(made.id, user_message())))
        assert "STORE_UNAVAILABLE" == found.reason
        assert "RetryInfo" in found.details


async def test_a_dead_idle_connection_costs_no_write(proxied: Proxied) -> None:
    """A write for which a connection was taken that had ended before is run on another one."""
    made = await proxied.stub.CreateConversation(create())
    proxied.proxy.reset()
    await asyncio.sleep(0.1)
    await proxied.stub.CreateItems(append(made.id, user_message(NEEDLE)))
    assert [NEEDLE] == await texts(proxied.stub, made.id)


async def test_silence(postgres: str, template: str) -> None:
    """An answer that does not come, on a connection that stays open, leaves the outcome as unknown."""
    async with proxied_service(postgres, template, statement_timeout_seconds=0.5) as proxied:
        made = await proxied.stub.CreateConversation(create())
        await proxied.stub.CreateItems(append(made.id, user_message("first")))  # the statement is prepared
        proxied.proxy.swallow.add(Direction.DOWN)
        await unknown(proxied.stub.CreateItems(append(made.id, user_message(NEEDLE))))
        await proxied.proxy.heal()
        proxied.proxy.reset()
        assert [NEEDLE, "first"] == await texts(proxied.stub, made.id)
