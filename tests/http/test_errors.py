"""What callers are told: each case with status, code, param and wording, and beside it what gRPC says."""

import json
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from conversations.v1.conversations_service_pb2 import ListConversationsRequest, ListItemsRequest

from server import errors
from server.errors import ServiceError
from server.http.errors import ROWS, problem_of
from server.http.request import Request
from server.items import new_item_from_json
from tests.support.build import append, create, delete, delete_item, get, get_item, list_items, update
from tests.support.http import CONVERSATIONS, EdgeService, HttpClient
from tests.support.problems import problem

HELLO = {"role": "user", "content": "hello"}
LONG, MISSING = "x" * 300, f"conv_{'0' * 48}"


@dataclass(frozen=True)
class Case:
    """A request that is refused: what over HTTP, with which answer, and with which code and reason over gRPC."""

    verb: str
    path: str  # {} is a conversation with the item msg_a
    body: Any
    status: int
    code: str | None
    param: str | None
    message: str
    grpc: tuple[str, str] | None = None
    call: Any = None  # makes method and request of gRPC from the id of the conversation


def case(*values: Any, grpc: str = "", call: Any = None) -> Case:
    """A case; ``grpc``: code and reason in a text."""
    verb, path, body, status, code, param, message = values
    expected, _, reason = grpc.partition(" ")
    return Case(verb, path, body, status, code, param, message, (expected, reason) if grpc else None, call)


def _items(*items: Any) -> dict[str, Any]:
    return {"items": list(items)}


INVALID = "INVALID_ARGUMENT FIELD_INVALID"
IN_ITEMS = "{}/items"
PREFIXES = "Expected an ID that begins with"

CASES = [
    case(
        *("GET", f"{CONVERSATIONS}/{MISSING}", None, 404, None, None, f"Conversation with id '{MISSING}' not found."),
        grpc="NOT_FOUND CONVERSATION_NOT_FOUND",
        call=lambda _: ("GetConversation", get(MISSING)),
    ),
    case(
        *("GET", "{}/items/msg_none", None, 404, None, None, "Item with id 'msg_none' not found in conversation."),
        grpc="NOT_FOUND ITEM_NOT_FOUND",
        call=lambda of: ("GetItem", get_item(of, "msg_none")),
    ),
    case(
        *("DELETE", "{}/items/a%20b", None, 404, None, None, "Item with id 'a b' not found in conversation."),
        grpc=INVALID,
        call=lambda of: ("DeleteItem", delete_item(of, "a b")),
    ),
    case(
        *("GET", "{}/items?after=msg_none", None, 404, None, "after", "No item found with id 'msg_none'"),
        grpc=INVALID,
        call=lambda of: ("ListItems", ListItemsRequest(conversation_id=of, after="msg_none")),
    ),
    case("GET", "{}/items?after=", None, 404, None, "after", "No item found with id ''"),
    case("GET", "{}/items?after=%00%F0", None, 404, None, "after", "No item found with id '\0\ufffd'"),
    case(
        *("GET", f"{CONVERSATIONS}/thread_1", None, 400, "invalid_value", "conversation_id"),
        f"Invalid 'conversation_id': 'thread_1'. {PREFIXES} 'conv'.",
        grpc=INVALID,
        call=lambda _: ("GetConversation", get("thread_1")),
    ),
    case("GET", f"{CONVERSATIONS}/conv%201", None, 404, None, None, "Conversation with id 'conv 1' not found."),
    case("GET", f"{CONVERSATIONS}/conv_%00", None, 404, None, None, "Conversation with id 'conv_\0' not found."),
    case(
        *("POST", IN_ITEMS, _items({**HELLO, "id": "msg_a"}), 400, "item_already_in_conversation", "items"),
        "Item already in conversation",
        grpc="ALREADY_EXISTS ITEM_EXISTS",
        call=lambda of: ("CreateItems", append(of, new_item_from_json({**HELLO, "id": "msg_a"}))),
    ),
    case(
        *("POST", IN_ITEMS, _items({**HELLO, "id": "fc_1"}), 400, "invalid_value", "items[0].id"),
        f"Invalid 'items[0].id': 'fc_1'. {PREFIXES} 'msg'.",
        grpc=INVALID,
        call=lambda of: ("CreateItems", append(of, new_item_from_json({**HELLO, "id": "fc_1"}))),
    ),
    case(
        *("POST", IN_ITEMS, _items({"type": "message", "content": "x"}), 400, "invalid_value", "items[0]"),
        "Invalid 'items[0]': a message needs a role: 'assistant', 'system', 'developer', or 'user'.",
    ),
    case("POST", IN_ITEMS, b"{", 400, "invalid_json", None, "it is not valid JSON."),
    case("POST", IN_ITEMS, b'{"items": [NaN]}', 400, "invalid_json", None, "it has a number that is not finite."),
    case("POST", IN_ITEMS, b'{"items": [], "items": []}', 400, "invalid_json", None, "'items' is twice in one object."),
    case("POST", IN_ITEMS, b'{"items": ["\\ud800"]}', 400, "invalid_json", None, "'items[0]' has a lone surrogate."),
    case("POST", IN_ITEMS, b"\xff", 400, "invalid_json", None, "it is not UTF-8."),
    case("POST", IN_ITEMS, b"[" * 5000 + b"]" * 5000, 400, "invalid_json", None, "it is nested deeper than 100."),
    case("POST", IN_ITEMS, b"[]", 400, "invalid_type", None, "expected an object, but got an array instead."),
    case(
        *("POST", IN_ITEMS, _items({**HELLO, "content": 5}), 400, "invalid_type", "items[0].content"),
        "Invalid type for 'items[0].content': expected an array, but got an integer instead.",
    ),
    case("POST", IN_ITEMS, _items({**HELLO, "type": 5}), 400, "invalid_type", "items[0].type", "but got an integer"),
    case(
        *("POST", IN_ITEMS, _items({"type": "reasoning", "summary": [{"text": ""}]}), 400),
        *("missing_required_parameter", "items[0].summary[0].type", "Missing required parameter: 'items[0].summary"),
    ),
    case(
        *("POST", IN_ITEMS, _items({**HELLO, "content": [{}]}), 400, "missing_required_parameter"),
        *("items[0].content[0].type", "Missing required parameter: 'items[0].content[0].type'."),
    ),
    case(
        *("POST", IN_ITEMS, _items({**HELLO, "content": [{"type": None}]}), 400, "invalid_type"),
        *("items[0].content[0].type", "expected a string, but got null instead."),
    ),
    case("POST", IN_ITEMS, _items(HELLO, 5), 400, "invalid_type", "items[1]", "expected an object, but got an integer"),
    case("POST", IN_ITEMS, {"items": {}}, 400, "invalid_type", "items", "expected an array, but got an object"),
    case("POST", IN_ITEMS, {"items": None}, 400, "invalid_type", "items", "expected an array, but got null"),
    case("POST", IN_ITEMS, {"items": []}, 400, "empty_array", "items", "Invalid 'items': empty array."),
    case("POST", IN_ITEMS, {}, 400, "missing_required_parameter", "items", "Missing required parameter: 'items'."),
    case("POST", IN_ITEMS, None, 400, "missing_required_parameter", "items", "Missing required parameter: 'items'."),
    case(
        *("POST", IN_ITEMS, _items({}), 400, "missing_required_parameter", "items[0].type"),
        "Missing required parameter: 'items[0].type'.",
    ),
    case(
        *("POST", IN_ITEMS, _items({"type": "program_output", "call_id": "c"}), 400, "missing_required_parameter"),
        *("items[0].result", "Missing required parameter: 'items[0].result'."),
    ),
    case("POST", IN_ITEMS, _items({"type": "item_reference"}), 400, "missing_required_parameter", "items[0].id", "'"),
    case("POST", IN_ITEMS, _items({"id": "msg_x"}), 404, None, None, "Item with id 'msg_x' not found."),
    case(
        *("POST", IN_ITEMS, _items({"id": f"msg_{'0' * 48}"}), 404, None, None),
        f"Item with id 'msg_{'0' * 48}' not found.",
    ),
    case("POST", "{}", {}, 400, "missing_required_parameter", "metadata", "Missing required parameter: 'metadata'."),
    case(
        *("POST", CONVERSATIONS, {"metdata": {}}, 400, "unknown_parameter", "metdata"),
        "Unknown parameter: 'metdata'.",
    ),
    case("POST", CONVERSATIONS, {"metadata": []}, 400, "invalid_type", "metadata", "expected an object, but got an ar"),
    case("POST", CONVERSATIONS, {"metadata": {"a": 1}}, 400, "invalid_type", "metadata.a", "expected a string, but"),
    case("GET", "{}/items?before=msg_a", None, 400, "unknown_parameter", "before", "Unknown parameter: 'before'."),
    case("GET", "{}?limit=5", None, 400, "unknown_parameter", "limit", "Unknown parameter: 'limit'."),
    case("GET", "{}/items?limit=1&limit=2", None, 400, "invalid_value", "limit", "Duplicate parameter: 'limit'."),
    case(
        *("GET", "{}/items?limit=1000", None, 400, "integer_above_max_value", "limit"),
        "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 1000 instead.",
    ),
    case(
        *("GET", "{}/items?limit=0", None, 400, "integer_below_min_value", "limit"),
        "Invalid 'limit': integer below minimum value. Expected a value >= 1, but got 0 instead.",
    ),
    case("GET", f"{CONVERSATIONS}?limit=101", None, 400, "integer_above_max_value", "limit", "but got 101 instead."),
    case("GET", "{}/items?limit=ten", None, 400, "invalid_type", "limit", "expected an integer, but got a string"),
    case("GET", "{}/items?limit=" + "9" * 5000, None, 400, "invalid_type", "limit", "expected an integer"),
    case(
        *("GET", "{}/items?order=up", None, 400, "invalid_value", "order"),
        "Invalid value: 'up'. Supported values are: 'asc' and 'desc'.",
    ),
    case("GET", "{}/items?include=all", None, 400, "invalid_value", "include", "Invalid value: 'all'. Supported"),
    case(
        *("GET", f"{CONVERSATIONS}?filter=x", None, 400, "invalid_value", "filter", "Invalid 'filter': expected `name"),
        grpc="INVALID_ARGUMENT FILTER_INVALID",
        call=lambda _: ("ListConversations", ListConversationsRequest(filter="x")),
    ),
    case(
        *("GET", f"{CONVERSATIONS}?after={MISSING}", None, 404, None, "after"),
        f"No conversation found with id '{MISSING}'",
    ),
    case("GET", f"{CONVERSATIONS}?after=conv%00", None, 404, None, "after", "No conversation found with id 'conv\0'"),
    case("GET", f"{CONVERSATIONS}?after=", None, 404, None, "after", "No conversation found with id ''"),
    case("POST", IN_ITEMS, _items({"id": "msg_\0"}), 404, None, None, "Item with id 'msg_\0' not found."),
    case(
        *("POST", IN_ITEMS, _items(*[HELLO] * 21), 400, "array_above_max_length", "items"),
        "Invalid 'items': array too long. Expected an array with maximum length 20, "
        "but got an array with length 21 instead.",
        grpc=INVALID,
        call=lambda of: ("CreateItems", append(of, *[new_item_from_json(HELLO)] * 21)),
    ),
    case(
        *("POST", CONVERSATIONS, {"metadata": {str(n): "" for n in range(17)}}, 400),
        *("object_above_max_properties", "metadata"),
        "Invalid 'metadata': too many properties. Expected an object with at most 16 properties, "
        "but got an object with 17 properties instead.",
        grpc=INVALID,
        call=lambda _: ("CreateConversation", create(metadata={str(n): "" for n in range(17)})),
    ),
    case(
        *("POST", "{}", {"metadata": {"k" * 65: "v"}}, 400, "property_name_above_max_length", f"metadata.{'k' * 65}"),
        f"Invalid property name in 'metadata': '{'k' * 65}' is too long. Expected a string with maximum length 64, "
        "but got a string with length 65 instead.",
        grpc=INVALID,
        call=lambda of: ("UpdateConversation", update(of, metadata={"k" * 65: "v"})),
    ),
    case(
        *("POST", CONVERSATIONS, {"metadata": {"k": "v" * 513}}, 400, "string_above_max_length", "metadata.k"),
        "Invalid 'metadata.k': string too long. Expected a string with maximum length 512, "
        "but got a string with length 513 instead.",
        grpc=INVALID,
        call=lambda _: ("CreateConversation", create(metadata={"k": "v" * 513})),
    ),
    case(
        *("POST", IN_ITEMS, _items({**HELLO, "status": "failed"}), 400, "invalid_value", "items[0].status"),
        "Invalid 'items[0].status': must be completed, in_progress, incomplete for this type.",
        grpc=INVALID,
        call=lambda of: ("CreateItems", append(of, new_item_from_json({**HELLO, "status": "failed"}))),
    ),
]


@pytest.fixture(scope="module")
async def conversation(edge: EdgeService) -> str:
    """The path of a conversation with the item msg_a."""
    return await edge.http.create({**HELLO, "id": "msg_a"})


@pytest.mark.parametrize("each", CASES, ids=lambda each: f"{each.verb} {each.path[:40]} {each.status} {each.code}")
async def test_case(edge: EdgeService, conversation: str, each: Case) -> None:
    """The answer is that of the table; over gRPC the same thing has its code and reason."""
    raw = each.body if isinstance(each.body, bytes) else None
    body = None if raw is not None else each.body
    answer = await edge.http.call(each.verb, each.path.replace("{}", conversation), body, raw)
    status, code, param, message = answer.error
    assert (each.status, each.code, each.param) == (status, code, param), message
    assert each.message in message
    assert "false" == answer.headers["x-should-retry"]
    if each.grpc:
        method, request = each.call(conversation.rpartition("/")[2])
        refused = await problem(getattr(edge.stub, method)(request))
        assert each.grpc == (refused.code, refused.reason)


async def test_more_than_one_violation(http: HttpClient, conversation: str) -> None:
    """The first violation speaks; the next ones follow in its message."""
    items = [{**HELLO, "id": f"x{n}"} for n in range(5)]
    _, _, param, message = (await http.post(f"{conversation}/items", {"items": items})).error
    assert "items[0].id" == param
    assert message.endswith("(also: items[1].id must begin with 'msg'; items[2].id must begin with 'msg' and 2 more)")


async def test_a_deleted_cursor(edge: EdgeService) -> None:
    """A cursor dies with its item, as in the API; over gRPC the list goes on from its place."""
    path = await edge.http.create(*[{**HELLO, "id": f"msg_{n}"} for n in range(3)])
    await edge.http.delete(f"{path}/items/msg_1")
    answer = await edge.http.get(f"{path}/items?order=asc&after=msg_1")
    assert (404, None, "after", "No item found with id 'msg_1'") == answer.error
    page = await edge.stub.ListItems(list_items(path.rpartition("/")[2], order=1, after="msg_1"))
    assert ["msg_2"] == [item.id for item in page.items]


async def test_a_second_delete(edge: EdgeService) -> None:
    """A conversation is deleted once, unless the call is repeated under its key."""
    path = await edge.http.create()
    for _ in range(2):
        assert 200 == (await edge.http.delete(path, Idempotency_Key="once")).status
    assert 404 == (await edge.http.delete(path)).status
    refused = await problem(edge.stub.DeleteConversation(delete(path.rpartition("/")[2])))
    assert "NOT_FOUND" == refused.code


async def test_long_values_are_cut(http: HttpClient) -> None:
    """A message never repeats much of what was sent."""
    for path in (f"/{'x' * 3000}", f"{CONVERSATIONS}/{'x' * 3000}", f"{CONVERSATIONS}/c/items?{'x' * 3000}=1"):
        _, _, _, message = (await http.get(path)).error
        assert len(message) < 400


def _errors(of: type[ServiceError]) -> list[type[ServiceError]]:
    return [of, *(each for child in of.__subclasses__() for each in _errors(child))]


def test_every_error_has_an_answer() -> None:
    """No class of the service is left to chance: it has a row, or lists violations."""
    without = {errors.ServiceError, errors.Unauthenticated, errors._NotFound, errors._BadRequest}
    listing = {errors.FieldInvalid, errors.LimitExceeded, errors.FilterInvalid}
    ours = {each for each in _errors(ServiceError) if each.__module__ == "server.errors"}
    assert ours - without - listing == set(ROWS)


RETRIES = [
    (errors.Conflict(), 409, True, True),
    (errors.Overloaded("calls", 1), 429, True, True),
    (errors.ShuttingDown(), 503, True, True),
    (errors.IdentityUnavailable(), 503, True, True),
    (errors.StoreUnavailable(), 503, True, True),
    (errors.OutcomeUnknown(), 503, False, True),
    (errors.Internal("1"), 500, False, True),
    (errors.DeadlineExceeded(), 504, False, True),
    (errors.EtagMismatch('"1"'), 412, False, False),
    (errors.RequestIdReused("1"), 422, False, False),
    (errors.ActionDenied("item", "create"), 403, False, False),
    (errors.CredentialsMissing(), 401, False, False),
    (errors.ResponseTooLarge(1), 400, False, False),
    (errors.ItemExists("conv_1", "msg_1"), 400, False, False),
]


@pytest.mark.parametrize("error, status, keyless, keyed", RETRIES, ids=lambda each: type(each).__name__)
def test_retries(error: ServiceError, status: int, keyless: bool, keyed: bool) -> None:  # noqa: FBT001
    """A write without a key that may have been done is not to be repeated; reads and writes with a key may be."""
    places = {"conversation_id": "conv_1"}
    for request, expected in (
        (Request("POST", places), keyless),
        (Request("DELETE", places), keyless),
        (Request("POST", places, request_id="1"), keyed),
        (Request("GET", places), keyed),
    ):
        found = problem_of(error, request)
        assert (status, expected) == (found.status, found.retry)
        headers = found.all_headers()
        assert headers["x-should-retry"] == str(expected).lower()
        waits = expected and error.retry_after_ms is not None
        assert (str(error.retry_after_ms) if waits else None) == headers.get("retry-after-ms")
        assert waits == ("Retry-After" in headers)
        assert isinstance(json.loads(found.body())["error"]["message"], str)
        assert grpc.StatusCode.OK is not error.code
