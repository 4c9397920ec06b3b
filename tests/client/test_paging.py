"""Lists of the client package take as many pages as they need."""

from functools import partial

from conversations.v1.conversations_service_pb2 import ORDER_ASCENDING, ListConversationsRequest
from conversations_client import connect, list_conversations, list_items

from tests.support.build import create, text_of, user_message
from tests.support.build import list_items as request_of_items
from tests.support.service import Service


async def test_items(service: Service) -> None:
    """All items in order, over pages of two, and a page is read only when it is asked for."""
    async with connect(service.address) as client:
        made = await client.conversations.CreateConversation(create(*map(user_message, "abcde")))
        asked = []

        async def method(request, **options):
            asked.append(request.page_token)
            return await client.conversations.ListItems(request, **options)

        request = request_of_items(made.id, page_size=2, order=ORDER_ASCENDING)
        items = list_items(partial(method, timeout=5), request)
        assert "a" == text_of(await anext(items)).rstrip()
        assert [""] == asked
        assert ["b", "c", "d", "e"] == [text_of(item) async for item in items]
        assert 3 == len(asked)
        assert not request.page_token


async def test_conversations(own_service: Service) -> None:
    """All conversations, newest first."""
    async with connect(own_service.address) as client:
        made = [(await client.conversations.CreateConversation(create())).id for _ in range(3)]
        request = ListConversationsRequest(page_size=2)
        listed = [each.id async for each in list_conversations(client.conversations.ListConversations, request)]
    assert made[::-1] == listed
