"""The loops of the client package follow conversations through everything that ends a stream."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from datetime import timedelta
from functools import partial
from typing import Any

import grpc.aio
import pytest
from conversations.v1.conversations_service_pb2 import (
    WatchConversationsRequest,
    WatchConversationsResponse,
    WatchItemsRequest,
    WatchItemsResponse,
)
from conversations_client import Reset, connect, details_of, watch_conversations, watch_items

from server.store.change_log import turn_on
from tests.support.build import append, create, delete, user_message
from tests.support.postgres import fresh_database
from tests.support.service import Service, running_service


async def told(watch: AsyncGenerator[Any, None], count: int) -> tuple[list[str], str]:
    """The kinds of so many changes, and the token of the message with the last of them."""
    kinds: list[str] = []
    token = ""
    async with asyncio.timeout(10):
        async for event in watch:
            assert not isinstance(event, Reset)
            kinds += [change.WhichOneof("change") for change in event.changes]
            token = event.resume_token
            if len(kinds) >= count:
                break
    return kinds, token


async def test_a_conversation_is_followed_to_its_end(service: Service) -> None:
    """Each change is told once, also behind a stored token, and the loop ends with the conversation."""
    async with connect(service.address) as client:
        made = await client.conversations.CreateConversation(create(user_message("one")))
        request = WatchItemsRequest(conversation_id=made.id, after_sequence=0)
        async with aclosing(watch_items(client.watches.WatchItems, request)) as watch:
            kinds, token = await told(watch, 2)
        assert ["conversation", "item"] == kinds
        await client.conversations.CreateItems(append(made.id, user_message("two")))
        async with aclosing(watch_items(client.watches.WatchItems, request, resume_token=token)) as watch:
            assert ["item"] == (await told(watch, 1))[0]
            await client.conversations.DeleteConversation(delete(made.id))
            assert ["conversation_deleted"] == (await told(watch, 1))[0]
            assert [] == [event async for event in watch]


async def test_a_restart_is_not_noticed(postgres: str, template: str) -> None:
    """A watch goes on behind the last message when the server is back, and tells each item once."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(fresh_database(postgres, template))
        async with running_service(url) as first:
            client = await stack.enter_async_context(connect(first.address))
            made = await first.stub.CreateConversation(create(user_message("one")))
            request = WatchItemsRequest(conversation_id=made.id, after_sequence=0)
            watch = await stack.enter_async_context(aclosing(watch_items(client.watches.WatchItems, request)))
            assert ["conversation", "item"] == (await told(watch, 2))[0]
        second = await stack.enter_async_context(running_service(url, listen=first.address))
        await second.stub.CreateItems(append(made.id, user_message("two")))
        assert ["item"] == (await told(watch, 1))[0]


async def test_a_token_of_another_conversation_resets(service: Service) -> None:
    """The loop says so, and begins anew."""
    async with connect(service.address) as client:
        first, other = [await client.conversations.CreateConversation(create()) for _ in range(2)]
        async with aclosing(
            watch_items(client.watches.WatchItems, WatchItemsRequest(conversation_id=other.id))
        ) as watch:
            _, token = await told(watch, 1)
        request = WatchItemsRequest(conversation_id=first.id)
        async with aclosing(watch_items(client.watches.WatchItems, request, resume_token=token)) as watch:
            assert Reset() == await anext(watch)
            assert ["conversation"] == (await told(watch, 1))[0]


async def test_refused_credentials_are_renewed_once(service: Service) -> None:
    """If the new ones are refused too, the loop ends with that error."""
    async with connect(service.address) as client:
        made = await client.conversations.CreateConversation(create())
        metadata = [("authorization", "Bearer expired")]  # refused, since this server checks none
        renewals = []

        async def renew_in_vain() -> None:
            renewals.append("in vain")

        async def renew() -> None:
            metadata.clear()

        refused: Any = partial(client.watches.WatchItems, metadata=metadata)
        request = WatchItemsRequest(conversation_id=made.id)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with asyncio.timeout(10):
                await anext(watch_items(refused, request, renew=renew_in_vain))
        assert ("CREDENTIALS_INVALID", ["in vain"]) == (details_of(caught.value).reason, renewals)
        async with aclosing(watch_items(refused, request, renew=renew)) as watch:
            assert ["conversation"] == (await told(watch, 1))[0]


async def test_what_is_missing_ends_the_loop(service: Service) -> None:
    """There is nothing to wait for."""
    async with connect(service.address) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(watch_items(client.watches.WatchItems, WatchItemsRequest(conversation_id="conv_nobody")))
    assert "CONVERSATION_NOT_FOUND" == details_of(caught.value).reason


async def test_a_silent_stream_is_replaced(service: Service) -> None:
    """Each stream begins with a message, so messages without changes show that it was opened again."""
    async with connect(service.address) as client:
        made = await client.conversations.CreateConversation(create())
        request = WatchItemsRequest(conversation_id=made.id)
        async with (
            aclosing(watch_items(client.watches.WatchItems, request, silence_seconds=0.1)) as watch,
            asyncio.timeout(10),
        ):
            assert ["conversation"] == (await told(watch, 1))[0]
            for _ in range(2):
                event = await anext(watch)
                assert isinstance(event, WatchItemsResponse)
                assert not event.changes


async def test_all_conversations_are_followed(own_service: Service) -> None:
    """What happens between two watches is told to the second, and a log that is off ends the loop."""
    async with connect(own_service.address) as client:
        request = WatchConversationsRequest(include_items=True)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(watch_conversations(client.watches.WatchConversations, request))
        assert "CHANGES_NOT_KEPT" == details_of(caught.value).reason
        await turn_on(own_service.url, timedelta(hours=1))
        async with aclosing(watch_conversations(client.watches.WatchConversations, request)) as watch:
            first = await anext(watch)
        assert isinstance(first, WatchConversationsResponse)
        made = await client.conversations.CreateConversation(create(user_message("one")))
        behind = watch_conversations(client.watches.WatchConversations, request, resume_token=first.resume_token)
        async with aclosing(behind) as watch, asyncio.timeout(10):
            while True:
                event = await anext(watch)
                assert isinstance(event, WatchConversationsResponse)
                if event.changes:
                    break
        assert (made.id, 1) == (event.changes[0].conversation.id, len(event.changes[0].items))
