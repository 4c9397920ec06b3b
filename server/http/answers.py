"""Answers: the messages of the contract in the JSON of the OpenAI API."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from conversations.v1 import conversations_service_pb2 as pb
from conversations.v1.conversation_pb2 import Conversation
from conversations.v1.item_pb2 import Item

from server.http.problems import Problem
from server.http.request import Request
from server.items import write_item
from server.items.text import Json, dumps

_NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent to a caller; ``closes``: whether the connection ends with it."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: _NO_HEADERS)
    closes: bool = False


# Makes an answer of a response, or of its bytes.
MakeAnswer: TypeAlias = Callable[[Any, Request], Answer]


def answer_of(problem: Problem) -> Answer:
    """Returns the answer that tells of a problem."""
    return Answer(problem.body(), problem.status, problem.all_headers(), problem.closes)


def conversation(message: Conversation, request: Request) -> Answer:
    """Returns one conversation; without its JSON if the caller has it already."""
    headers = {"ETag": message.etag}
    if request.verb == "GET" and _has(request.if_none_match, message.etag):
        return Answer(b"", 304, headers)
    return Answer(dumps(_conversation(message)), headers=headers)


def deleted_conversation(_message: object, request: Request) -> Answer:
    """Returns that a conversation was deleted."""
    return Answer(dumps({"id": request.path["conversation_id"], "object": "conversation.deleted", "deleted": True}))


def conversations(message: pb.ListConversationsResponse, _request: Request) -> Answer:
    """Returns a page of conversations."""
    texts = [dumps(_conversation(each)).decode() for each in message.conversations]
    return _page(texts, message.conversations, has_more=bool(message.next_page_token))


def item(response: bytes | Item, _request: Request) -> Answer:
    """Returns one item."""
    message = Item.FromString(response) if isinstance(response, bytes) else response
    return Answer(write_item(message).encode())


def created_items(response: bytes | pb.CreateItemsResponse, _request: Request) -> Answer:
    """Returns the items that were appended."""
    message = pb.CreateItemsResponse.FromString(response) if isinstance(response, bytes) else response
    return _items(message.items, has_more=False)


def items(response: bytes | pb.ListItemsResponse, _request: Request) -> Answer:
    """Returns a page of items."""
    message = pb.ListItemsResponse.FromString(response) if isinstance(response, bytes) else response
    return _items(message.items, has_more=message.has_more)


def _conversation(message: Conversation) -> dict[str, Json]:
    return {
        "id": message.id,
        "object": "conversation",
        "created_at": message.create_time.seconds,
        "metadata": dict(message.metadata),
    }


def _items(found: Sequence[Item], *, has_more: bool) -> Answer:
    return _page([write_item(each) for each in found], found, has_more=has_more)


def _page(texts: Sequence[str], found: Sequence[Item] | Sequence[Conversation], *, has_more: bool) -> Answer:
    """Returns a list of objects, each of which is JSON already."""
    first, last = (found[0].id, found[-1].id) if found else (None, None)
    end = dumps({"first_id": first, "last_id": last, "has_more": has_more}).decode()
    return Answer(f'{{"object":"list","data":[{",".join(texts)}],{end[1:]}'.encode())


def _has(if_none_match: str, etag: str) -> bool:
    """Whether one of the etags is that of the conversation (RFC 9110, section 13.1.2)."""
    sent = [each.strip().removeprefix("W/") for each in if_none_match.split(",")]
    return etag in sent or sent == ["*"]
