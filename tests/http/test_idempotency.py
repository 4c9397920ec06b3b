"""`Idempotency-Key`: a write that is repeated is done once, whichever protocol repeats it."""

from uuid import uuid4

import pytest
from conversations.v1.conversations_service_pb2 import CreateConversationRequest, ListItemsRequest

from server.http.heads import request_id_of
from server.items import new_item_from_json
from tests.support.build import append, create
from tests.support.http import CONVERSATIONS, EdgeService, HttpClient
from tests.support.problems import problem

HELLO = {"role": "user", "content": "hello"}


async def _count(edge: EdgeService, path: str) -> int:
    page = await edge.stub.ListItems(ListItemsRequest(conversation_id=path.rpartition("/")[2], page_size=100))
    return len(page.items)


@pytest.mark.parametrize("key", ["stainless-python-retry-1c5e", "!", "x" * 255, "00000000-0000-4000-8000-00000000000A"])
async def test_an_append_is_repeated(edge: EdgeService, key: str) -> None:
    """The same answer comes twice, and the items are there once."""
    path = await edge.http.create()
    first, second = [await edge.http.post(f"{path}/items", {"items": [HELLO]}, Idempotency_Key=key) for _ in "12"]
    assert (200, first.body) == (second.status, second.body)
    assert 1 == await _count(edge, path)
    other = await edge.http.post(f"{path}/items", {"items": [HELLO, HELLO]}, Idempotency_Key=key)
    assert (422, "idempotency_key_reused") == other.error[:2]
    assert "false" == other.headers["x-should-retry"]


async def test_the_key_of_http_is_the_request_id_of_grpc(edge: EdgeService) -> None:
    """A write that began over one protocol can be repeated over the other."""
    key = str(uuid4())
    made = await edge.http.post(CONVERSATIONS, {"metadata": {"a": "b"}}, Idempotency_Key=key.upper())
    again = await edge.stub.CreateConversation(create(metadata={"a": "b"}, request_id=key))
    assert made.json["id"] == again.id
    path = f"{CONVERSATIONS}/{again.id}"
    first = await edge.stub.CreateItems(append(again.id, new_item_from_json(HELLO), request_id=key))
    answer = await edge.http.post(f"{path}/items", {"items": [HELLO]}, Idempotency_Key=key)
    assert [first.items[0].id] == [item["id"] for item in answer.json["data"]]
    assert 1 == await _count(edge, path)
    assert "REQUEST_ID_REUSED" == (await problem(edge.stub.CreateConversation(create(request_id=key)))).reason


@pytest.mark.parametrize("sent", [create(), CreateConversationRequest()], ids=["empty", "none"])
async def test_a_creation_of_nothing_is_the_same_over_both(edge: EdgeService, sent: CreateConversationRequest) -> None:
    """An empty conversation in a request is none: over HTTP there is no such difference."""
    request = CreateConversationRequest()
    request.CopyFrom(sent)
    request.request_id = str(uuid4())
    made = await edge.stub.CreateConversation(request)
    again = await edge.http.post(CONVERSATIONS, Idempotency_Key=request.request_id)
    assert (200, made.id) == (again.status, again.json["id"])


async def test_every_write_can_be_repeated(http: HttpClient) -> None:
    """Create, update and both deletes answer a repeated call as the first one."""
    made = [await http.post(CONVERSATIONS, {"items": [HELLO]}, Idempotency_Key="a-key-of-this-test") for _ in "12"]
    assert made[0].json == made[1].json
    path = f"{CONVERSATIONS}/{made[0].json['id']}"
    item = (await http.get(f"{path}/items")).json["first_id"]
    etags = [(await http.post(path, {"metadata": {}}, Idempotency_Key="u")).headers["ETag"] for _ in "12"]
    assert etags[0] == etags[1]
    assert [200, 200] == [(await http.delete(f"{path}/items/{item}", Idempotency_Key="d")).status for _ in "12"]
    assert [200, 200] == [(await http.delete(path, Idempotency_Key="d")).status for _ in "12"]


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "schlüssel"])
async def test_what_is_no_key(http: HttpClient, key: str) -> None:
    """A key that cannot be one is refused: its sender counts on it."""
    answer = await http.post(CONVERSATIONS, {}, Idempotency_Key=key)
    assert (400, "invalid_value", "Idempotency-Key") == answer.error[:3]


def test_keys_become_the_same_ids_for_ever() -> None:
    """What a key stands for is stored, so a later version must not change it."""
    assert "647f1b2e-a909-520c-b67f-877a2c3a1b33" == request_id_of("a") != request_id_of("A")
