"""Requests of the contract, asked over HTTP where they can be: for a test that speaks both protocols in turns."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlencode

from conversations.v1.conversations_service_pb2 import ORDER_ASCENDING
from conversations.v1.item_pb2 import NewItem

from server.settings.addresses import Address
from tests.support.build import text_of
from tests.support.http import CONVERSATIONS, JSON
from tests.support.model import Refused

# Status, code and param of a refusal, and its reason over gRPC; what is missing has two reasons.
_REASONS = {
    (404, None, "after"): "FIELD_INVALID",
    (400, "item_already_in_conversation", "items"): "ITEM_EXISTS",
    (412, "etag_mismatch", None): "ETAG_MISMATCH",
    (422, "idempotency_key_reused", None): "REQUEST_ID_REUSED",
}
_SECONDS = 20.0


@dataclass(frozen=True)
class HttpConversation:
    """A conversation, as HTTP shows it."""

    id: str
    metadata: dict[str, str]
    etag: str


@dataclass(frozen=True)
class HttpItem:
    """An item, as HTTP shows it."""

    id: str
    json: dict[str, Any]


@dataclass(frozen=True)
class HttpItems:
    """Items that were appended, or a page of items."""

    items: list[HttpItem]
    first_id: str
    last_id: str
    has_more: bool


@dataclass(frozen=True)
class _Ask:
    verb: str
    path: str
    body: Any = None
    headers: Mapping[str, str] | None = None


class HttpTurns:
    """A client of the edge at one address."""

    def __init__(self, address: Address) -> None:
        self._connection = HTTPConnection(address.host, address.port, timeout=_SECONDS)

    def close(self) -> None:
        """Ends its connection."""
        self._connection.close()

    def ask(self, method: str, request: Any) -> Any:
        """The answer; None if there is no such request over HTTP.

        Raises:
            Refused: It is refused.
        """
        asked = _asked(method, request)
        if asked is None:
            return None
        sent = None if asked.body is None else json.dumps(asked.body)
        headers = {**(JSON if sent else {}), **(asked.headers or {})}
        self._connection.request(asked.verb, asked.path, sent, headers)
        answer = self._connection.getresponse()
        told = json.loads(answer.read())
        if answer.status != 200:
            raise Refused(_reason(answer.status, told["error"]))
        return _shown(told, answer.headers["ETag"])


def _asked(method: str, request: Any) -> _Ask | None:
    path = f"{CONVERSATIONS}/{getattr(request, 'conversation_id', '')}"
    key = {"Idempotency-Key": request.request_id} if getattr(request, "request_id", "") else {}
    match method:
        case "CreateConversation":
            body = {"metadata": dict(request.conversation.metadata), "items": list(map(_item, request.items))}
            return _Ask("POST", CONVERSATIONS, body, key)
        case "GetConversation":
            return _Ask("GET", path)
        case "UpdateConversation" if list(request.update_mask.paths) == ["metadata"]:
            body = {"metadata": dict(request.conversation.metadata)}
            return _Ask(
                "POST", f"{CONVERSATIONS}/{request.conversation.id}", body, _if_match(request.conversation.etag)
            )
        case "DeleteConversation":
            return _Ask("DELETE", path, headers=_if_match(request.etag))
        case "CreateItems" if not request.HasField("expected_last_sequence"):
            return _Ask("POST", f"{path}/items", {"items": list(map(_item, request.items))}, key)
        case "GetItem":
            return _Ask("GET", f"{path}/items/{request.item_id}")
        case "DeleteItem":
            return _Ask("DELETE", f"{path}/items/{request.item_id}", headers=key)
        case "ListItems" if not request.page_token and request.page_size <= 100:
            return _Ask("GET", f"{path}/items?{urlencode(_query(request))}")
        case _:
            return None


def _item(new: NewItem) -> dict[str, Any]:
    content = [{"type": "input_text", "text": text_of(new.item)}]
    return {"role": "user", "content": content, **({"id": new.item.id} if new.item.id else {})}


def _if_match(etag: str) -> dict[str, str]:
    return {"If-Match": etag} if etag else {}


def _query(request: Any) -> dict[str, str]:
    query = {"order": "asc" if request.order == ORDER_ASCENDING else "desc"}
    if request.page_size:
        query["limit"] = str(request.page_size)
    if request.HasField("after"):
        query["after"] = request.after
    return query


def _reason(status: int, error: dict[str, Any]) -> str:
    if reason := _REASONS.get((status, error["code"], error["param"])):
        return reason
    assert (404, None, None) == (status, error["code"], error["param"]), (status, error)
    return "ITEM_NOT_FOUND" if error["message"].startswith("Item ") else "CONVERSATION_NOT_FOUND"


def _shown(told: dict[str, Any], etag: str) -> Any:
    match told.get("object", "item"):
        case "conversation":
            return HttpConversation(told["id"], told["metadata"], etag)
        case "list":
            items = [HttpItem(item["id"], item) for item in told["data"]]
            return HttpItems(items, told["first_id"] or "", told["last_id"] or "", told["has_more"])
        case "conversation.deleted":
            return told
        case _:
            return HttpItem(told["id"], told)
