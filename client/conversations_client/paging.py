"""Lists that take as many pages as they need."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Protocol, TypeVar

from conversations.v1.conversation_pb2 import Conversation
from conversations.v1.conversations_service_pb2 import (
    ListConversationsRequest,
    ListConversationsResponse,
    ListItemsRequest,
    ListItemsResponse,
)
from conversations.v1.item_pb2 import Item
from google.protobuf.message import Message


class _Page(Protocol):
    next_page_token: str


_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=_Page)


async def list_items(
    method: Callable[[ListItemsRequest], Awaitable[ListItemsResponse]], request: ListItemsRequest
) -> AsyncGenerator[Item, None]:
    """Yields the items that ``request`` asks for, beginning with its page; `page_size` is that of each page.

    Args:
        method: `client.conversations.ListItems`; a partial of it if calls need a timeout or metadata.
        request: Is not changed.
    """
    async for page in pages(method, request):
        for item in page.items:
            yield item


async def list_conversations(
    method: Callable[[ListConversationsRequest], Awaitable[ListConversationsResponse]],
    request: ListConversationsRequest,
) -> AsyncGenerator[Conversation, None]:
    """Yields the conversations that ``request`` asks for; arguments as of `list_items`."""
    async for page in pages(method, request):
        for conversation in page.conversations:
            yield conversation


async def pages(
    method: Callable[[_Request], Awaitable[_Response]], request: _Request
) -> AsyncGenerator[_Response, None]:
    """Yields the page that ``request`` asks for and all that follow; a page is read when it is asked for."""
    following = type(request)()
    following.CopyFrom(request)
    while True:
        page = await method(following)
        yield page
        if not page.next_page_token:
            return
        following.page_token = page.next_page_token  # type: ignore[attr-defined]
