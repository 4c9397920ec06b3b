"""All documented items go through the wire and the database and come back as the JSON that they were."""

import json
from typing import Any

import pytest
from conversations.v1 import options_pb2
from conversations.v1.conversations_service_pb2 import ORDER_ASCENDING
from conversations.v1.item_pb2 import Item, NewItem

from server.items import new_item_from_json, status_name, to_json
from server.items.codec import from_json
from server.items.names import item_type
from tests.support.build import append, create, get_item, list_items
from tests.support.samples import FREE_JSON, ITEM_TYPES, SAMPLES, as_stored, strictly


class Text(str):
    """JSON that must be the same to the letter."""

    __slots__ = ()


def lettered(value: Any, kind: Any = None) -> Any:
    """The value with its free JSON, in which the order of keys and the form of numbers count, as text."""
    if isinstance(value, list):
        return [lettered(each) for each in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("type") if isinstance(value.get("type"), str) else None
    return {
        key: Text(json.dumps(child)) if (kind, key) in FREE_JSON or (None, key) in FREE_JSON else lettered(child)
        for key, child in value.items()
    }


def expected(sample: dict[str, Any], item: Item) -> dict[str, Any]:
    """The JSON of a sample once it is stored: ``item`` says the id, the contract the status where none was sent."""
    whole: dict[str, Any] = as_stored(sample)
    given: dict[str, Any] = {} if whole.get("id") else {"id": item.id}
    arm = Item.DESCRIPTOR.fields_by_name.get(str(whole.get("type")))
    if arm is not None and whole["type"] in ITEM_TYPES and not whole.get("status"):
        default = arm.GetOptions().Extensions[options_pb2.item_type].default_status
        given |= {"status": status_name(default)} if default else {}
    return whole | given


def test_there_are_150() -> None:
    """No sample is missing."""
    assert 150 == len(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
async def test_sample_is_stored(stub: Any, name: str) -> None:
    """A documented item is answered, listed and got as the JSON that was sent, with an id."""
    made = await stub.CreateConversation(create())
    answer = await stub.CreateItems(append(made.id, new_item_from_json(json.dumps(SAMPLES[name]))))
    (item,) = answer.items
    listed = await stub.ListItems(list_items(made.id))
    assert [item] == list(listed.items)
    assert item == await stub.GetItem(get_item(made.id, item.id))

    whole, actual = expected(SAMPLES[name], item), to_json(item)
    assert strictly(whole) == strictly(actual)
    assert lettered(whole) == lettered(actual)
    first = [key for key in ("type", "id", "status") if key in actual]
    assert first == list(actual)[: len(first)]
    assert item_type(from_json(SAMPLES[name])) == item_type(item)


@pytest.mark.parametrize("name", SAMPLES)
async def test_sample_is_a_first_item(stub: Any, name: str) -> None:
    """A documented item can be among those that a conversation is created with."""
    made = await stub.CreateConversation(create(new_item_from_json(SAMPLES[name])))
    listed = await stub.ListItems(list_items(made.id))
    (item,) = listed.items
    assert strictly(expected(SAMPLES[name], item)) == strictly(to_json(item))


@pytest.mark.parametrize("name", SAMPLES)
async def test_what_is_read_can_be_written(stub: Any, name: str) -> None:
    """An item that was read is accepted elsewhere and is the same there, as a message and as JSON."""
    first, second, third = [await stub.CreateConversation(create()) for _ in range(3)]
    answer = await stub.CreateItems(append(first.id, new_item_from_json(SAMPLES[name])))
    (item,) = answer.items
    as_message = await stub.CreateItems(append(second.id, NewItem(item=item)))
    as_json = await stub.CreateItems(append(third.id, new_item_from_json(json.dumps(to_json(item)))))
    for (again,) in (as_message.items, as_json.items):
        assert json.dumps(to_json(item)) == json.dumps(to_json(again))


async def test_one_conversation_holds_them_all(stub: Any) -> None:
    """All types in one conversation, appended by twenties, are listed in the order they were sent."""
    seen: set[str] = set()
    names = []
    for name, sample in SAMPLES.items():
        if sample.get("id") not in seen:
            names.append(name)
            seen.update({sample["id"]} if sample.get("id") else set())
    made = await stub.CreateConversation(create())
    for start in range(0, len(names), 20):
        new = [new_item_from_json(SAMPLES[name]) for name in names[start : start + 20]]
        await stub.CreateItems(append(made.id, *new))
    items: list[Item] = []
    token = ""
    while not items or token:
        request = list_items(made.id, order=ORDER_ASCENDING, page_size=33, page_token=token)
        page = await stub.ListItems(request)
        items += page.items
        token = page.next_page_token
    assert len(names) == len(items) > 140
    for name, item in zip(names, items, strict=True):
        assert strictly(expected(SAMPLES[name], item)) == strictly(to_json(item)), name


BIG = [
    ("integer beyond 2^53", '{"n": 9007199254740993}'),
    ("integer beyond 2^64", '{"n": 123456789012345678901234567890}'),
    ("order of keys", '{"b": 1, "a": {"d": 2, "c": 3}}'),
    ("one is not one point nought", "[1, 1.0, 1e2, -0.0]"),
    ("null, false and empty", '{"a": null, "b": false, "c": "", "d": [], "e": {}}'),
    ("beyond the basic plane", '{"😀": "\\ud83d\\ude00 \\u2028"}'),
]


@pytest.mark.parametrize(("value", "kind"), [(text, kind) for _, text in BIG for kind in ("free", "unknown", "newer")])
async def test_free_json_is_kept_to_the_letter(stub: Any, value: str, kind: str) -> None:
    """Numbers and the order of keys survive in free JSON, in unknown types and under newer keys."""
    document = {
        "free": '{"type": "tool_search_call", "execution": "client", "call_id": null, "arguments": %s}',
        "unknown": '{"type": "hologram_call", "payload": %s}',
        "newer": '{"type": "message", "role": "user", "content": [], "newer": %s}',
    }[kind] % value
    made = await stub.CreateConversation(create())
    answer = await stub.CreateItems(append(made.id, new_item_from_json(document)))
    item = await stub.GetItem(get_item(made.id, answer.items[0].id))
    key = {"free": "arguments", "unknown": "payload", "newer": "newer"}[kind]
    assert json.dumps(json.loads(value)) == json.dumps(to_json(item)[key])
