"""Exports conversations to, and imports them from, JSON Lines of OpenAI items."""

import json
import uuid
from collections.abc import Iterable, Iterator

import grpc
from conversations.v1 import conversations_service_pb2 as pb
from conversations.v1 import item_pb2
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub

from server.cli import listing
from server.items import ItemJsonError, new_item_from_json, to_json

_BATCH = 20  # the limit of the contract
_SECONDS = 30


def export_lines(channel: grpc.Channel, conversation_id: str) -> Iterator[str]:
    """Yields each item as a line of JSON, oldest first."""
    for item in listing.items(channel, conversation_id, oldest_first=True):
        yield json.dumps(to_json(item), ensure_ascii=False)


def import_lines(channel: grpc.Channel, lines: Iterable[str], conversation_id: str | None) -> str:
    """Appends the item of every line and returns the conversation's id; sends nothing if a line is invalid.

    Raises:
        ItemJsonError: A line is not an item; its text names the line.
    """
    items = [_item(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    stub = ConversationsServiceStub(channel)
    if conversation_id is None:
        request = pb.CreateConversationRequest(request_id=str(uuid.uuid4()))
        conversation_id = stub.CreateConversation(request, timeout=_SECONDS).id
    for start in range(0, len(items), _BATCH):
        stub.CreateItems(
            pb.CreateItemsRequest(
                conversation_id=conversation_id, items=items[start : start + _BATCH], request_id=str(uuid.uuid4())
            ),
            timeout=_SECONDS,
        )
    return conversation_id


def _item(number: int, line: str) -> item_pb2.NewItem:
    try:
        return new_item_from_json(line)
    except ItemJsonError as error:
        raise ItemJsonError(f"line {number}: {error}") from None
