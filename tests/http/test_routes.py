"""What the edge serves, in the forms of the OpenAI API."""

import json
import re
from typing import Any

import pytest
from google.api import annotations_pb2

from server.http.routes import GRPC_ONLY, ROUTES, SERVICE
from server.items import to_json
from tests.support.build import append, get, list_items, new_item
from tests.support.http import CONVERSATIONS, EdgeService, HttpClient, RawConnection, request_text
from tests.support.samples import SAMPLES, as_stored, strictly

HELLO = {"role": "user", "content": "hello"}


def test_each_method_with_a_path_has_a_route() -> None:
    """A method that the contract maps to HTTP is served with that verb and path, unless it is known not to be."""
    served = {route.name: (route.verb.lower(), route.path) for route in ROUTES}
    for method in SERVICE.methods:
        rule = method.GetOptions().Extensions[annotations_pb2.http]
        verb = rule.WhichOneof("pattern")
        if verb is None or method.name in GRPC_ONLY:
            assert method.name not in served
            continue
        path = getattr(rule, verb).replace("{conversation.id}", "{conversation_id}")
        assert (verb, path) == served.pop(method.name)
    assert {} == served


async def test_a_conversation_from_its_creation_to_its_end(http: HttpClient) -> None:
    """Create, get, update and delete have the objects of the API, and nothing more in them."""
    made = await http.post(CONVERSATIONS, {"metadata": {"topic": "demo"}})
    assert 200 == made.status
    assert re.fullmatch(r"conv_[0-9a-f]{48}", made.json["id"])
    path = f"{CONVERSATIONS}/{made.json['id']}"
    expected = {"id": made.json["id"], "object": "conversation", "metadata": {"topic": "demo"}}
    assert {**expected, "created_at": made.json["created_at"]} == made.json
    assert isinstance(made.json["created_at"], int)
    assert made.json == (await http.get(path)).json
    changed = await http.post(path, {"metadata": {"a": "b"}})
    assert {**made.json, "metadata": {"a": "b"}} == changed.json
    cleared = await http.post(path, {"metadata": None})
    assert {**made.json, "metadata": {}} == cleared.json
    gone = await http.delete(path)
    assert (200, {"id": made.json["id"], "object": "conversation.deleted", "deleted": True}) == (gone.status, gone.json)
    assert 404 == (await http.get(path)).status


@pytest.mark.parametrize("body", [None, {}, {"items": None}, {"items": []}, {"metadata": None}])
async def test_an_empty_conversation(http: HttpClient, body: Any) -> None:
    """Everything in the body of a create may be left out, the body too."""
    made = await http.post(CONVERSATIONS, body)
    assert (200, {}) == (made.status, made.json["metadata"])
    assert [] == (await http.get(f"{CONVERSATIONS}/{made.json['id']}/items")).json["data"]


async def test_items_are_appended_listed_and_deleted(http: HttpClient) -> None:
    """The list, the bare item and the answer to a delete are those of the API."""
    path = await http.create()
    sent = [HELLO, {"role": "assistant", "content": "hi"}]
    made = (await http.post(f"{path}/items", {"items": sent})).json
    first, second = made["data"]
    assert {"object": "list", "first_id": first["id"], "last_id": second["id"], "has_more": False} == {
        name: value for name, value in made.items() if name != "data"
    }
    assert ["type", "id", "status"] == list(first)[:3]
    assert {"type": "message", "id": first["id"], "status": "completed", "role": "user"} == {
        name: value for name, value in first.items() if name != "content"
    }
    assert [{"type": "input_text", "text": "hello"}] == first["content"]
    assert [{"type": "output_text", "text": "hi", "annotations": [], "logprobs": []}] == second["content"]
    assert [second, first] == (await http.get(f"{path}/items")).json["data"]
    assert first == (await http.get(f"{path}/items/{first['id']}")).json
    answer = await http.delete(f"{path}/items/{first['id']}")
    assert (200, "conversation", path) == (answer.status, answer.json["object"], f"{CONVERSATIONS}/{answer.json['id']}")
    assert [second] == (await http.get(f"{path}/items")).json["data"]


async def test_pages(http: HttpClient) -> None:
    """45 items are walked in both directions by sevens, each once; ids of a page are those of its data."""
    path = await http.create()
    ids = []
    for start in range(0, 45, 15):
        answer = await http.post(f"{path}/items", {"items": [{**HELLO, "content": str(start + n)} for n in range(15)]})
        ids += [item["id"] for item in answer.json["data"]]
    for order, expected in (("asc", ids), ("desc", ids[::-1])):
        found: list[str] = []
        more, after = True, ""
        while more:
            page = (await http.get(f"{path}/items?limit=7&order={order}{after}")).json
            data = [item["id"] for item in page["data"]]
            assert (data[0], data[-1]) == (page["first_id"], page["last_id"])
            found += data
            more, after = page["has_more"], f"&after={page['last_id']}"
        assert expected == found
    page = (await http.get(f"{path}/items?order=asc{after}")).json
    assert ids[1:21] == [item["id"] for item in page["data"]]


async def test_an_empty_page(http: HttpClient) -> None:
    """The ids of an empty page are null."""
    path = await http.create()
    page = (await http.get(f"{path}/items")).json
    assert {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False} == page


async def test_include(http: HttpClient) -> None:
    """The values of `include` are taken in both spellings, and items are whole in any case."""
    path = await http.create(HELLO)
    queries = (
        "include[]=reasoning.encrypted_content&include[]=file_search_call.results",
        "include=web_search_call.results&include=message.output_text.logprobs",
        "include%5B%5D=code_interpreter_call.outputs",
    )
    (item,) = (await http.get(f"{path}/items")).json["data"]
    for query in queries:
        assert [item] == (await http.get(f"{path}/items?{query}")).json["data"]
        assert item == (await http.get(f"{path}/items/{item['id']}?{query}")).json
        made = await http.post(f"{path}/items?{query}", {"items": [HELLO]})
        assert 200 == (await http.delete(f"{path}/items/{made.json['first_id']}")).status


@pytest.mark.parametrize("name", SAMPLES)
async def test_sample(http: HttpClient, name: str) -> None:
    """Each documented item comes back as it was sent; a reference without a conversation is no item."""
    sample = SAMPLES[name]
    path = await http.create()
    made = await http.post(f"{path}/items", {"items": [sample]})
    if sample.get("type") == "item_reference" or not (sample.get("type") or sample.get("role")):
        assert 404 == made.status
        return
    assert 200 == made.status, made.body
    (item,) = made.json["data"]
    expected = as_stored(sample)
    given = {key: item[key] for key in ("id", "status") if key in item and expected.get(key) is None}
    assert strictly({**expected, **given}) == strictly(item)
    assert made.body == (await http.get(f"{path}/items?limit=1")).body
    assert item == (await http.get(f"{path}/items/{item['id']}")).json


async def test_both_protocols_store_the_same(edge: EdgeService) -> None:
    """What was written over HTTP is read over gRPC and the other way round, item for item."""
    names = [name for name in SAMPLES if name.startswith("out/")][:20]
    path = await edge.http.create()
    sent = [{**SAMPLES[name], "id": f"{SAMPLES[name]['id']}{number}"} for number, name in enumerate(names)]
    made = await edge.http.post(f"{path}/items", {"items": sent})
    assert 200 == made.status, made.body
    identifier = path.rpartition("/")[2]
    page = await edge.stub.ListItems(list_items(identifier, page_size=100, order=1))
    assert made.json["data"] == json.loads(json.dumps([to_json(item) for item in page.items]))
    await edge.stub.CreateItems(append(identifier, new_item(message=page.items[0].message)))
    conversation = await edge.stub.GetConversation(get(identifier))
    assert 21 == conversation.last_sequence


async def test_the_list_of_conversations(edge: EdgeService) -> None:
    """Conversations are listed newest first, page by page, and filtered; the API has no such list."""
    paths = [await edge.http.create(metadata={"list": "of-tests", "n": str(n)}) for n in range(5)]
    ids = [path.rpartition("/")[2] for path in paths][::-1]
    only = 'filter=metadata.list+%3D+"of-tests"'
    page = (await edge.http.get(f"{CONVERSATIONS}?{only}&limit=3")).json
    assert (ids[:3], True, "list") == ([each["id"] for each in page["data"]], page["has_more"], page["object"])
    rest = (await edge.http.get(f"{CONVERSATIONS}?{only}&limit=3&after={page['last_id']}")).json
    assert (ids[3:], False) == ([each["id"] for each in rest["data"]], rest["has_more"])
    ascending = (await edge.http.get(f"{CONVERSATIONS}?{only}&order=asc")).json
    assert ids[::-1] == [each["id"] for each in ascending["data"]]


async def test_etags(http: HttpClient) -> None:
    """A conversation has an etag, which spares its JSON to those who have it, and keeps writers from overwriting."""
    path = await http.create(metadata={"a": "1"})
    read = await http.get(path)
    etag = read.headers["ETag"]
    for condition in (etag, f'"x", W/{etag}', "*"):
        same = await http.get(path, **{"If-None-Match": condition})
        assert (304, b"", etag) == (same.status, same.body, same.headers["ETag"])
    changed = await http.post(path, {"metadata": {"a": "2"}}, If_Match=etag)
    assert (200, True) == (changed.status, changed.headers["ETag"] != etag)
    assert 200 == (await http.get(path, **{"If-None-Match": etag})).status
    for stale in (etag, "nonsense", '"' + "9" * 100 + '"'):
        refused = await http.post(path, {"metadata": {}}, If_Match=stale)
        assert (412, "etag_mismatch") == refused.error[:2]
        assert 412 == (await http.delete(path, If_Match=stale)).status
    assert {"a": "2"} == (await http.get(path)).json["metadata"]
    assert 200 == (await http.delete(path, If_Match="*")).status


async def test_references(edge: EdgeService) -> None:
    """An item of another conversation is copied by its id alone, or with the id of its conversation."""
    source = await edge.http.create(HELLO)
    (item,) = (await edge.http.get(f"{source}/items")).json["data"]
    identifier = source.rpartition("/")[2]
    for reference in (
        {"type": "item_reference", "id": item["id"]},
        {"id": item["id"]},
        {"type": None, "id": item["id"]},
        {"type": "item_reference", "id": item["id"], "conversation_id": identifier},
    ):
        target = await edge.http.create()
        made = await edge.http.post(f"{target}/items", {"items": [HELLO, reference]})
        assert 200 == made.status, made.body
        assert item == made.json["data"][1]
        created = await edge.http.create(reference)
        assert [item] == (await edge.http.get(f"{created}/items")).json["data"]
    again = await edge.http.post(f"{source}/items", {"items": [{"id": item["id"]}]})
    assert (400, "item_already_in_conversation") == again.error[:2]


async def test_health(http: HttpClient) -> None:
    """Probes need no name and no credentials."""
    for path in ("/healthz", "/readyz", "/startupz"):
        answer = await http.get(path, Host="anything.example")
        assert (200, {"status": "SERVING"}) == (answer.status, answer.json)


async def test_the_document(http: HttpClient) -> None:
    """The OpenAPI document is served to everybody, with every route."""
    answer = await http.get("/openapi.json")
    served = {(verb.upper(), path) for path, verbs in answer.json["paths"].items() for verb in verbs}
    assert {(route.verb, route.path) for route in ROUTES} == served


async def test_what_is_not_served(http: HttpClient) -> None:
    """An unknown path is 404, a known one with another verb 405 with those that it has."""
    missing = await http.get("/v1/responses")
    assert (404, None, None, "Invalid URL (GET /v1/responses)") == missing.error
    wrong = await http.call("PUT", f"{CONVERSATIONS}/conv_1")
    assert (405, None, None, "Invalid URL (PUT /v1/conversations/conv_1)") == wrong.error
    assert "DELETE, GET, POST" == wrong.headers["Allow"]
    assert 405 == (await http.call("POST", "/healthz")).status


async def test_a_name_in_braces_is_no_place(edge: EdgeService) -> None:
    """A path that spells a place as the table of routes does is a path with that text in it."""
    async with RawConnection.to(edge.address) as connection:
        await connection.send(request_text("GET", f"{CONVERSATIONS}/{{conversation_id}}", "Connection: close"))
        assert b"'{conversation_id}'. Expected an ID that begins with 'conv'" in await connection.rest()
