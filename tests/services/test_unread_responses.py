"""Responses that nobody reads have a bound, and leave others alone."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from conversations.v1 import conversations_service_pb2 as pb

from tests.support.build import append, batch_get, create, get_item, list_items, user_message
from tests.support.problems import problem_of
from tests.support.service import Service, running_service

MIB = 1024 * 1024
LIST = "/conversations.v1.ConversationsService/ListItems"


async def filled(stub: Any, count: int, size: int) -> str:
    """A conversation with items of so many bytes."""
    name: str = (await stub.CreateConversation(create())).id
    for _ in range(count):
        await stub.CreateItems(append(name, user_message("x" * size)))
    return name


async def test_large_items_are_the_same_in_every_response(service: Service) -> None:
    """Large responses are bytes of stored items that are joined; they say what small ones say."""
    name: str = (await service.stub.CreateConversation(create())).id
    written = await service.stub.CreateItems(append(name, *[user_message(letter * 2 * MIB) for letter in "ab"]))
    ids = [each.id for each in written.items]
    page = await service.stub.ListItems(list_items(name, order=pb.ORDER_ASCENDING))
    assert list(written.items) == list(page.items)
    assert (page.first_id, page.last_id, page.has_more, page.next_page_token) == (ids[0], ids[-1], False, "")
    assert list(written.items) == list((await service.stub.BatchGetItems(batch_get(name, *ids))).items)
    assert written.items[1] == await service.stub.GetItem(get_item(name, ids[1]))
    assert [1, 2] == [each.sequence for each in written.items]


async def test_a_page_of_large_items_goes_on_where_a_message_is_full(service: Service) -> None:
    """The token and has_more are those of a page that ends early."""
    name = await filled(service.stub, 3, 7 * MIB)
    page = await service.stub.ListItems(list_items(name, order=pb.ORDER_ASCENDING))
    assert (2, True) == (len(page.items), page.has_more)
    rest = await service.stub.ListItems(list_items(name, order=pb.ORDER_ASCENDING, page_token=page.next_page_token))
    assert [3] == [each.sequence for each in rest.items]


@pytest.mark.slow
@pytest.mark.parametrize("size", [64 * 1024, 4 * MIB])
async def test_unread_responses(service: Service, size: int) -> None:
    """When a caller takes no answers it is refused more of them; small reads go on, and all is given back."""
    async with running_service(service.url, max_message_bytes=8 * MIB, max_item_bytes=7 * MIB) as served:
        name = await filled(served.stub, 8 if size < MIB else 1, size)
        small = await filled(served.stub, 1, 10)
        options = [("grpc.http2.lookahead_bytes", 0), ("grpc.http2.bdp_probe", 0)]
        async with grpc.aio.insecure_channel(served.address, options=options) as channel:
            method: Any = channel.stream_stream(LIST)
            calls = [method(timeout=20) for _ in range(100)]
            for call in calls:
                await call.write(list_items(name, page_size=8).SerializeToString())
                await call.done_writing()
            refused = [asyncio.ensure_future(call.code()) for call in calls]
            await asyncio.sleep(3)
            codes = [each.result() for each in refused if each.done()]
            assert codes
            assert {grpc.StatusCode.RESOURCE_EXHAUSTED} == set(codes)
            assert 1 == len((await served.stub.ListItems(list_items(small))).items)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await served.stub.ListItems(list_items(name, page_size=8))
            problem = problem_of(caught.value)
            assert ("RESOURCE_EXHAUSTED", "RATE_LIMITED") == (problem.code, problem.reason)
            for call in calls:
                call.cancel()
            await asyncio.wait(refused)
        async with asyncio.timeout(5):
            assert await served.stub.ListItems(list_items(name, page_size=8))
