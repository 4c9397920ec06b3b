"""Requests over HTTP as the messages of the contract: from path, query, headers and the JSON of the body."""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar
from urllib.parse import parse_qsl
from uuid import UUID, uuid5

from conversations.v1 import conversations_service_pb2 as pb
from conversations.v1.conversation_pb2 import Conversation
from conversations.v1.item_pb2 import NewItem
from google.protobuf.field_mask_pb2 import FieldMask

from server.http.paths import Step, shown
from server.http.problems import RequestInvalid, clip, invalid, unknown_cursor
from server.http.request import Request
from server.items import ItemJsonError, ItemMisfit, Misfit, RoleMissing, fill_from_client, kind_of
from server.items.text import Json, loads_checked
from server.requests.page_tokens import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE
from server.requests.validation import certainly_valid

Writes = TypeVar("Writes", pb.CreateConversationRequest, pb.CreateItemsRequest)

MAX_ITEMS = 20
MAX_KEY_CHARACTERS = 255  # of Idempotency-Key
INCLUDE, INCLUDES = (
    ("include", "include[]"),
    frozenset(
        (
            "code_interpreter_call.outputs",
            "computer_call_output.output.image_url",
            "file_search_call.results",
            "message.input_image.image_url",
            "message.output_text.logprobs",
            "reasoning.encrypted_content",
            "web_search_call.action.sources",
            "web_search_call.results",
        )
    ),
)
_ORDERS = {"asc": pb.ORDER_ASCENDING, "desc": pb.ORDER_DESCENDING}
_TIME_ORDERS = {"asc": "create_time", "desc": "create_time desc"}
_KEYS_NAMESPACE = UUID("7d1f6d52-5b1f-4d5c-9d60-6c0c3f6a2f0e")  # of the UUIDs that stand for other keys
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
_VISIBLE = re.compile(rf"[!-~]{{1,{MAX_KEY_CHARACTERS}}}", re.ASCII)
_INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_ETAG_CHARACTERS = 32
_NO_ETAG = '"0"'  # which no conversation has


def read_query(text: str, known: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Returns the parameters of a query by their names, and the values of `include`.

    Args:
        text: The query as it came.
        known: The parameters that the route has.

    Raises:
        RequestInvalid: A parameter is not known, comes twice, or is not one of its values.
    """
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=100, errors="replace")
    except ValueError:
        raise invalid("Invalid query: it has too many parameters.", "invalid_value") from None
    found: dict[str, str] = {}
    includes: list[str] = []
    names = frozenset(known)
    for name, value in pairs:
        if name in INCLUDE and "include" in names:
            includes.append(_one_of(INCLUDES, "include", value))
        elif name not in names or name == "include":
            raise _unknown(name)
        elif name in found:
            raise invalid(f"Duplicate parameter: '{name}'.", "invalid_value", name)
        else:
            found[name] = value
    return found, tuple(includes)


def request_id_of(key: str | None) -> str:
    """Returns the `request_id` that an `Idempotency-Key` stands for; '' without one.

    A UUID is the id itself, so that a write can be repeated over the other protocol.

    Raises:
        RequestInvalid: It is no key.
    """
    if key is None:
        return ""
    if _UUID.fullmatch(key):
        return key.lower()
    if not _VISIBLE.fullmatch(key):
        message = f"Invalid 'Idempotency-Key': must have 1 to {MAX_KEY_CHARACTERS} visible ASCII characters."
        raise invalid(message, "invalid_value", "Idempotency-Key")
    return str(uuid5(_KEYS_NAMESPACE, key))


def read_document(body: bytes) -> dict[str, Json]:
    """Returns the JSON object of a body; an empty one for an empty body.

    Raises:
        RequestInvalid: It is no JSON, none that can be stored, or no object.
    """
    if not body:
        return {}
    try:
        document = loads_checked(body)
    except ItemJsonError as error:
        where = f"'{error.path}'" if error.path else "it"
        message = f"Invalid body: failed to parse JSON value. Please check the value: {where} {error.rule}."
        raise invalid(message, "invalid_json") from None
    if not isinstance(document, dict):
        message = f"Invalid body: expected an object, but got {kind_of(document)} instead."
        raise invalid(message, "invalid_type")
    return document


def create_conversation(request: Request) -> pb.CreateConversationRequest:
    """Returns the message of POST /v1/conversations."""
    document = _object(request, ("items", "metadata"))
    message = pb.CreateConversationRequest(request_id=request.request_id)
    message.conversation.metadata.update(_metadata(document.get("metadata")))
    _add_items(message, document.get("items"))
    return message


def get_conversation(request: Request) -> pb.GetConversationRequest:
    """Returns the message of GET /v1/conversations/{conversation_id}."""
    return pb.GetConversationRequest(conversation_id=request.path["conversation_id"])


def update_conversation(request: Request) -> pb.UpdateConversationRequest:
    """Returns the message of POST /v1/conversations/{conversation_id}, which replaces the metadata."""
    document = _object(request, ("metadata",))
    if "metadata" not in document:
        raise _missing(["metadata"])
    message = pb.UpdateConversationRequest(
        conversation=Conversation(id=request.path["conversation_id"], etag=_etag(request.if_match)),
        update_mask=FieldMask(paths=["metadata"]),
        request_id=request.request_id,
    )
    message.conversation.metadata.update(_metadata(document["metadata"]))
    return message


def delete_conversation(request: Request) -> pb.DeleteConversationRequest:
    """Returns the message of DELETE /v1/conversations/{conversation_id}."""
    return pb.DeleteConversationRequest(
        conversation_id=request.path["conversation_id"], etag=_etag(request.if_match), request_id=request.request_id
    )


def list_conversations(request: Request) -> pb.ListConversationsRequest:
    """Returns the message of GET /v1/conversations, without its cursor."""
    after = request.query.get("after")
    if after is not None and not certainly_valid(pb.GetConversationRequest(conversation_id=after)):
        raise RequestInvalid(unknown_cursor("conversation", after))
    return pb.ListConversationsRequest(
        page_size=_page_size(request.query),
        filter=request.query.get("filter", ""),
        order_by=_TIME_ORDERS[_order(request.query)],
    )


def create_items(request: Request) -> pb.CreateItemsRequest:
    """Returns the message of POST /v1/conversations/{conversation_id}/items."""
    document = _object(request, ("items",))
    items = document.get("items")
    if "items" not in document:
        raise _missing(["items"])
    if items is None:
        raise _wrong_kind(["items"], "an array", items)
    if items == []:
        rule = "Expected an array with minimum length 1, but got an empty array instead."
        raise invalid(f"Invalid 'items': empty array. {rule}", "empty_array", "items")
    message = pb.CreateItemsRequest(conversation_id=request.path["conversation_id"], request_id=request.request_id)
    _add_items(message, items)
    return message


def list_items(request: Request) -> pb.ListItemsRequest:
    """Returns the message of GET /v1/conversations/{conversation_id}/items."""
    message = pb.ListItemsRequest(
        conversation_id=request.path["conversation_id"],
        page_size=_page_size(request.query),
        order=_ORDERS[_order(request.query)],
    )
    if "after" in request.query:
        message.after = request.query["after"]
    return message


def get_item(request: Request) -> pb.GetItemRequest:
    """Returns the message of GET /v1/conversations/{conversation_id}/items/{item_id}."""
    return pb.GetItemRequest(conversation_id=request.path["conversation_id"], item_id=request.path["item_id"])


def delete_item(request: Request) -> pb.DeleteItemRequest:
    """Returns the message of DELETE /v1/conversations/{conversation_id}/items/{item_id}."""
    return pb.DeleteItemRequest(
        conversation_id=request.path["conversation_id"],
        item_id=request.path["item_id"],
        request_id=request.request_id,
    )


def unlocated(message: object) -> list[NewItem]:
    """Returns the references of a request that do not say in which conversation their item is."""
    items: Iterable[NewItem] = getattr(message, "items", ())
    return [each for each in items if each.WhichOneof("source") == "reference" and not each.reference.conversation_id]


def _object(request: Request, known: tuple[str, ...]) -> dict[str, Json]:
    """Returns the body; a key that it does not have is refused, for a misspelt one must not be ignored."""
    document = request.document
    assert isinstance(document, dict)
    for name in document:
        if name not in known:
            raise _unknown(name)
    return document


def _metadata(given: Json) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise _wrong_kind(["metadata"], "an object", given)
    for key, value in given.items():
        if not isinstance(value, str):
            raise _wrong_kind(["metadata", clip(key)], "a string", value)
    return {key: value for key, value in given.items() if isinstance(value, str)}


def _add_items(message: Writes, given: Json) -> None:
    if given is None:
        return
    if not isinstance(given, list):
        raise _wrong_kind(["items"], "an array", given)
    if len(given) > MAX_ITEMS:
        text = (
            f"Invalid 'items': array too long. Expected an array with maximum length {MAX_ITEMS}, "
            f"but got an array with length {len(given)} instead."
        )
        raise invalid(text, "array_above_max_length", "items")
    for index, each in enumerate(given):
        if not isinstance(each, dict):
            raise _wrong_kind(["items", index], "an object", each)
        try:
            fill_from_client(message.items.add(), each)
        except ItemMisfit as error:
            raise _misfit(index, error.misfit) from None
        except RoleMissing:
            where = f"items[{index}]"
            text = f"Invalid '{where}': a message needs a role: 'assistant', 'system', 'developer', or 'user'."
            raise invalid(text, "invalid_value", where) from None


def _misfit(index: int, misfit: Misfit) -> RequestInvalid:
    joint = "" if misfit.path.startswith("[") else "."
    path = clip(f"items[{index}]{joint}{misfit.path}")
    if not misfit.given:
        return invalid(f"Missing required parameter: '{path}'.", "missing_required_parameter", path)
    return _invalid_type(path, misfit.expected, misfit.given)


def _wrong_kind(steps: list[Step], expected: str, given: Json) -> RequestInvalid:
    return _invalid_type(shown(steps), expected, kind_of(given))


def _invalid_type(path: str, expected: str, given: str) -> RequestInvalid:
    message = f"Invalid type for '{path}': expected {expected}, but got {given} instead."
    return invalid(message, "invalid_type", path)


def _missing(steps: list[Step]) -> RequestInvalid:
    path = shown(steps)
    return invalid(f"Missing required parameter: '{path}'.", "missing_required_parameter", path)


def _unknown(name: str) -> RequestInvalid:
    return invalid(f"Unknown parameter: '{clip(name)}'.", "unknown_parameter", clip(name))


def _one_of(values: Iterable[str], name: str, given: str) -> str:
    known = sorted(values)
    if given not in known:
        supported = ", ".join(f"'{each}'" for each in known[:-1])
        message = f"Invalid value: '{clip(given)}'. Supported values are: {supported} and '{known[-1]}'."
        raise invalid(message, "invalid_value", name)
    return given


def _order(query: Mapping[str, str]) -> str:
    return _one_of(_ORDERS, "order", query.get("order", "desc"))


def _page_size(query: Mapping[str, str]) -> int:
    text = query.get("limit")
    if text is None:
        return DEFAULT_PAGE_SIZE
    if not _INTEGER.fullmatch(text):
        raise _invalid_type("limit", "an integer", "a string")
    limit = int(text)
    if limit > MAX_PAGE_SIZE:
        raise invalid(_beyond("above maximum", "<=", MAX_PAGE_SIZE, limit), "integer_above_max_value", "limit")
    if limit < 1:
        raise invalid(_beyond("below minimum", ">=", 1, limit), "integer_below_min_value", "limit")
    return limit


def _beyond(what: str, sign: str, bound: int, given: int) -> str:
    return f"Invalid 'limit': integer {what} value. Expected a value {sign} {bound}, but got {given} instead."


def _etag(if_match: str) -> str:
    """Returns the etag that a conversation must have; '' if it may have any."""
    if if_match == "*":
        return ""
    return if_match if len(if_match) <= _ETAG_CHARACTERS else _NO_ETAG
