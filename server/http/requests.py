"""Requests over HTTP as the messages of the contract: from path, query, headers and the JSON of the body."""

from typing import Any, TypeVar

from conversations.v1 import conversations_service_pb2 as pb
from conversations.v1.conversation_pb2 import Conversation
from conversations.v1.item_pb2 import NewItem
from google.protobuf.field_mask_pb2 import FieldMask

from server.http.heads import ORDERS, TIME_ORDERS, etag_of, order_of, page_size_of, unknown_parameter
from server.http.problems import RequestInvalid, clip, invalid, invalid_type, too_many_elements, unknown_cursor
from server.http.request import Request
from server.items import ItemJsonError, ItemMisfit, Misfit, RoleMissing, fill_from_client, kind_of
from server.items.text import Json, loads_checked
from server.requests.validation import certainly_valid

Writes = TypeVar("Writes", pb.CreateConversationRequest, pb.CreateItemsRequest)

MAX_ITEMS = 20


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
        raise _missing("metadata")
    message = pb.UpdateConversationRequest(
        conversation=Conversation(id=request.path["conversation_id"], etag=etag_of(request.if_match)),
        update_mask=FieldMask(paths=["metadata"]),
        request_id=request.request_id,
    )
    message.conversation.metadata.update(_metadata(document["metadata"]))
    return message


def delete_conversation(request: Request) -> pb.DeleteConversationRequest:
    """Returns the message of DELETE /v1/conversations/{conversation_id}."""
    return pb.DeleteConversationRequest(
        conversation_id=request.path["conversation_id"], etag=etag_of(request.if_match), request_id=request.request_id
    )


def list_conversations(request: Request) -> pb.ListConversationsRequest:
    """Returns the message of GET /v1/conversations, without its cursor."""
    after = request.query.get("after")
    if after is not None and not certainly_valid(pb.GetConversationRequest(conversation_id=after)):
        raise RequestInvalid(unknown_cursor("conversation", after))
    return pb.ListConversationsRequest(
        page_size=page_size_of(request.query),
        filter=request.query.get("filter", ""),
        order_by=TIME_ORDERS[order_of(request.query)],
    )


def create_items(request: Request) -> pb.CreateItemsRequest:
    """Returns the message of POST /v1/conversations/{conversation_id}/items."""
    document = _object(request, ("items",))
    items = document.get("items")
    if "items" not in document:
        raise _missing("items")
    if items is None:
        raise _wrong_kind("items", "an array", items)
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
        page_size=page_size_of(request.query),
        order=ORDERS[order_of(request.query)],
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
    items: Any = getattr(message, "items", ())
    return [each for each in items if each.WhichOneof("source") == "reference" and not each.reference.conversation_id]


def _object(request: Request, known: tuple[str, ...]) -> dict[str, Json]:
    """Returns the body; a key that it does not have is refused, for a misspelt one must not be ignored."""
    document = request.document
    assert isinstance(document, dict)
    for name in document:
        if name not in known:
            raise unknown_parameter(name)
    return document


def _metadata(given: Json) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise _wrong_kind("metadata", "an object", given)
    for key, value in given.items():
        if not isinstance(value, str):
            raise _wrong_kind(f"metadata.{clip(key)}", "a string", value)
    return {key: value for key, value in given.items() if isinstance(value, str)}


def _add_items(message: Writes, given: Json) -> None:
    if given is None:
        return
    if not isinstance(given, list):
        raise _wrong_kind("items", "an array", given)
    if len(given) > MAX_ITEMS:
        raise RequestInvalid(too_many_elements("items", MAX_ITEMS, len(given)))
    for index, each in enumerate(given):
        where = f"items[{index}]"
        if not isinstance(each, dict):
            raise _wrong_kind(where, "an object", each)
        try:
            fill_from_client(message.items.add(), each)
        except ItemMisfit as error:
            raise _misfit(error.misfit.inside(where)) from None
        except RoleMissing:
            text = f"Invalid '{where}': a message needs a role: 'assistant', 'system', 'developer', or 'user'."
            raise invalid(text, "invalid_value", where) from None


def _misfit(misfit: Misfit) -> RequestInvalid:
    path = clip(misfit.path)
    return invalid_type(path, misfit.expected, misfit.given) if misfit.given else _missing(path)


def _wrong_kind(path: str, expected: str, given: Json) -> RequestInvalid:
    return invalid_type(path, expected, kind_of(given))


def _missing(path: str) -> RequestInvalid:
    return invalid(f"Missing required parameter: '{path}'.", "missing_required_parameter", path)
