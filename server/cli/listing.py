"""Reads conversations and items from a service, page by page."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import grpc
from conversations.v1 import conversation_pb2, item_pb2
from conversations.v1 import conversations_service_pb2 as pb
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub

_PAGE = 100  # the limit of the contract
_SECONDS = 30

T = TypeVar("T")


def conversations(channel: grpc.Channel, count: int, chosen: str) -> Iterator[conversation_pb2.Conversation]:
    """Yields the newest ``count`` conversations, of those that the filter ``chosen`` leaves."""
    stub = ConversationsServiceStub(channel)

    def page(size: int, token: str) -> tuple[Sequence[conversation_pb2.Conversation], str]:
        request = pb.ListConversationsRequest(page_size=size, page_token=token, filter=chosen)
        answer = stub.ListConversations(request, timeout=_SECONDS)
        return answer.conversations, answer.next_page_token

    return _pages(page, count)


def items(
    channel: grpc.Channel, conversation_id: str, count: int = sys.maxsize, *, oldest_first: bool
) -> Iterator[item_pb2.Item]:
    """Yields ``count`` items of a conversation, by default all, from the newest or from the oldest."""
    stub = ConversationsServiceStub(channel)
    order = pb.ORDER_ASCENDING if oldest_first else pb.ORDER_DESCENDING

    def page(size: int, token: str) -> tuple[Sequence[item_pb2.Item], str]:
        request = pb.ListItemsRequest(conversation_id=conversation_id, page_size=size, page_token=token, order=order)
        answer = stub.ListItems(request, timeout=_SECONDS)
        return answer.items, answer.next_page_token

    return _pages(page, count)


def _pages(page: Callable[[int, str], tuple[Sequence[T], str]], count: int) -> Iterator[T]:
    """Yields ``count`` elements; a page may have fewer than asked for."""
    token = ""
    while count > 0:
        found, token = page(min(count, _PAGE), token)
        yield from found
        count -= len(found)
        if not token:
            return
