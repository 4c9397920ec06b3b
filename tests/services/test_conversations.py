"""Conversations: create, get, update, delete and list, as the contract says."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from itertools import chain
from typing import Any

import pytest
from conversations.v1.conversation_pb2 import Conversation
from conversations.v1.conversations_service_pb2 import ListConversationsRequest
from google.protobuf.empty_pb2 import Empty

from server.store.connection.execution import Execute, Execution, Rows
from tests.support.build import (
    append,
    batch_get,
    copy_of,
    create,
    delete,
    delete_item,
    get,
    get_item,
    list_items,
    plain,
    sets,
    text_of,
    update,
    user_message,
)
from tests.support.problems import problem
from tests.support.service import Service, intercepted, shared_service

ASTRAL = "😀"  # one code point, two UTF-16 units, four bytes
UNKNOWN_ID = "conv_" + "0" * 48


def pairs(count: int, start: int = 0) -> dict[str, str]:
    return {f"k{number}": "v" for number in range(start, start + count)}


async def test_create_gives_what_get_gives(stub: Any) -> None:
    """A new conversation has an id of the documented form and reads back as it was answered."""
    made = await stub.CreateConversation(create(metadata={"topic": "demo", "empty": ""}, attributes=sets(teams=["a"])))
    assert re.fullmatch("conv_[0-9a-f]{48}", made.id)
    assert made.create_time == made.update_time
    assert (dict(made.metadata), plain(made)) == ({"topic": "demo", "empty": ""}, {"teams": {"a"}})
    assert (made.owner, made.last_sequence) == ("local", 0)
    assert await stub.GetConversation(get(made.id)) == made


async def test_an_empty_request_creates(stub: Any) -> None:
    """Nothing is required to create a conversation."""
    made = await stub.CreateConversation(create())
    assert (dict(made.metadata), plain(made), made.last_sequence) == ({}, {}, 0)


async def test_create_ignores_output_fields(stub: Any) -> None:
    """Only metadata and attributes of the sent conversation are read."""
    old = await stub.CreateConversation(create())
    sent = {"id": old.id, "etag": '"77"', "owner": "eve", "last_sequence": 9, "create_time": {"seconds": 1}}
    made = await stub.CreateConversation(create(**sent))
    assert made.id != old.id
    assert (made.etag, made.owner, made.last_sequence) == (old.etag, "local", 0)
    assert made.create_time.seconds > 1


async def test_create_with_items_counts_them(stub: Any) -> None:
    """Items of the creating request are placed from 1 on."""
    made = await stub.CreateConversation(create(user_message("a"), user_message("b")))
    assert made.last_sequence == 2
    listed = await stub.ListItems(list_items(made.id))
    assert [item.sequence for item in listed.items] == [2, 1]


ID_RULES = [
    ("", False),
    ("con_1", False),
    ("Conv_1", False),
    ("conv", True),
    ("conv_nonexistent123", True),
    ("conv" + "a" * 60, True),
    ("conv" + "a" * 61, False),
    ("conv_1\n", False),
    ("conv_'; --", False),
    ("conv_é", False),
]


@pytest.mark.parametrize(("conversation_id", "well_formed"), ID_RULES)
async def test_only_the_form_of_an_id_is_checked(stub: Any, conversation_id: str, *, well_formed: bool) -> None:
    """A well-formed unknown id is not found, another one is invalid."""
    failure = await problem(stub.GetConversation(get(conversation_id)))
    expected = ("NOT_FOUND", {}) if well_formed else ("INVALID_ARGUMENT", {"conversation_id"})
    assert (failure.code, set(failure.fields) or {}) == expected


METADATA = [
    ("16 pairs", pairs(16), None),
    ("17 pairs", pairs(17), "conversation.metadata"),
    ("key of 64", {"k" * 64: "v"}, None),
    ("key of 65", {"k" * 65: "v"}, f'conversation.metadata["{"k" * 65}"]'),
    ("key of 64 astral", {ASTRAL * 64: "v"}, None),
    ("key of 65 astral", {ASTRAL * 65: "v"}, f'conversation.metadata["{ASTRAL * 25}…'),
    ("empty key", {"": "v"}, 'conversation.metadata[""]'),
    ("value of 512", {"k": "v" * 512}, None),
    ("value of 513", {"k": "v" * 513}, 'conversation.metadata["k"]'),
    ("value of 512 astral", {"k": ASTRAL * 512}, None),
    ("value of 513 astral", {"k": ASTRAL * 513}, 'conversation.metadata["k"]'),
    ("decomposed value of 513", {"k": "e\u0301" * 256 + "e"}, 'conversation.metadata["k"]'),
]


@pytest.mark.parametrize(("metadata", "field"), [pytest.param(m, f, id=name) for name, m, f in METADATA])
@pytest.mark.parametrize("method", ["create", "update"])
async def test_metadata_limits(stub: Any, method: str, metadata: dict[str, str], field: str | None) -> None:
    """Sixteen pairs, keys of 64 and values of 512 code points pass; one more does not."""
    made = await stub.CreateConversation(create())
    call = (
        stub.CreateConversation(create(metadata=metadata))
        if method == "create"
        else stub.UpdateConversation(update(made.id, "metadata", metadata=metadata))
    )
    if field is None:
        assert dict((await call).metadata) == metadata
        return
    failure = await problem(call)
    assert (failure.code, failure.reason, set(failure.fields)) == ("INVALID_ARGUMENT", "FIELD_INVALID", {field})


UPDATES = [
    # before, mask, sent, after
    ("omitted mask replaces", {"a": "1", "b": "2"}, (), {"c": "3"}, {"c": "3"}),
    ("whole", {"a": "1", "b": "2"}, ("metadata",), {"c": "3"}, {"c": "3"}),
    ("whole to empty", {"a": "1"}, ("metadata",), {}, {}),
    ("star", {"a": "1"}, ("*",), {"b": "2"}, {"b": "2"}),
    ("star to empty", {"a": "1"}, ("*",), {}, {}),
    ("set one", {"a": "1", "b": "2"}, ("metadata.a",), {"a": "9"}, {"a": "9", "b": "2"}),
    ("add one", {"a": "1"}, ("metadata.b",), {"b": "2"}, {"a": "1", "b": "2"}),
    ("remove one", {"a": "1", "b": "2"}, ("metadata.a",), {}, {"b": "2"}),
    ("remove a missing one", {"a": "1"}, ("metadata.z",), {}, {"a": "1"}),
    ("what is not named is not read", {"a": "1"}, ("metadata.a",), {"a": "2", "b": "3"}, {"a": "2"}),
    ("set and remove", {"a": "1", "b": "2"}, ("metadata.a", "metadata.c"), {"c": "3"}, {"b": "2", "c": "3"}),
    ("named twice", {"a": "1"}, ("metadata.a", "metadata.a"), {"a": "2"}, {"a": "2"}),
    ("whole and a key", {"a": "1", "b": "2"}, ("metadata", "metadata.a"), {"c": "3"}, {"c": "3"}),
    ("backticks", {"my-key": "1", "a.b": "2"}, ("metadata.`my-key`", "metadata.`a.b`"), {"a.b": "9"}, {"a.b": "9"}),
    ("backticks around a plain key", {"a": "1"}, ("metadata.`a`",), {"a": "2"}, {"a": "2"}),
    ("hostile keys", {"'; --": "1", "%": "2"}, ("metadata.`'; --`",), {}, {"%": "2"}),
    ("letters of any script", {"ключ": "1"}, ("metadata.ключ",), {"ключ": "2"}, {"ключ": "2"}),
    (
        "output fields beside others",
        {"a": "1"},
        ("id", "etag", "owner", "metadata.b"),
        {"b": "2"},
        {"a": "1", "b": "2"},
    ),
    ("the other map", {"a": "1"}, ("attributes",), {"b": "2"}, {"a": "1"}),
]


@pytest.mark.parametrize(
    ("before", "mask", "sent", "after"), [pytest.param(b, m, s, a, id=name) for name, b, m, s, a in UPDATES]
)
async def test_update_masks(
    stub: Any, before: dict[str, str], mask: tuple[str, ...], sent: dict[str, str], after: dict[str, str]
) -> None:
    """An update changes what its mask names and nothing else."""
    made = await stub.CreateConversation(create(metadata=before))
    changed = await stub.UpdateConversation(update(made.id, *mask, metadata=sent))
    assert dict(changed.metadata) == after
    assert await stub.GetConversation(get(made.id)) == changed


async def test_update_returns_a_new_etag_and_time(stub: Any) -> None:
    """Every update moves etag and update_time, and only those besides the maps."""
    made = await stub.CreateConversation(create(metadata={"a": "1"}))
    changed = await stub.UpdateConversation(update(made.id, metadata={"a": "1"}))
    assert changed.etag != made.etag
    assert changed.update_time.ToDatetime() > made.update_time.ToDatetime()
    expected = Conversation()
    expected.CopyFrom(made)
    expected.etag = changed.etag
    expected.update_time.CopyFrom(changed.update_time)
    assert changed == expected


BAD_MASKS = [
    (("metadata.`a\0b`",), {"update_mask.paths[0]": "update_mask.key"}),
    (
        ("metadata", "x", "y"),
        {"update_mask.paths[1]": "update_mask.path", "update_mask.paths[2]": "update_mask.path"},
    ),
    (("etag",), {"update_mask": "update_mask.empty"}),
    (tuple(f"metadata.k{n}" for n in range(33)), {"update_mask.paths": "repeated.max_items"}),
]


@pytest.mark.parametrize(("mask", "fields"), BAD_MASKS)
async def test_bad_masks(stub: Any, mask: tuple[str, ...], fields: dict[str, str]) -> None:
    """Every unknown path is named, and output-only paths alone change nothing."""
    made = await stub.CreateConversation(create(metadata={"a": "1"}))
    failure = await problem(stub.UpdateConversation(update(made.id, *mask, metadata={"b": "2"})))
    assert (failure.code, failure.reason, failure.fields) == ("INVALID_ARGUMENT", "FIELD_INVALID", fields)
    assert await stub.GetConversation(get(made.id)) == made


async def test_an_update_of_nothing_is_refused(stub: Any) -> None:
    """Without a mask and without a map there is nothing to change."""
    made = await stub.CreateConversation(create(metadata={"a": "1"}))
    failure = await problem(stub.UpdateConversation(update(made.id)))
    assert (failure.reason, failure.fields) == ("FIELD_INVALID", {"update_mask": "update_mask.empty"})


@pytest.mark.parametrize("with_conversation", [True, False])
async def test_update_needs_an_id(stub: Any, *, with_conversation: bool) -> None:
    """An update without an id is invalid, not a search."""
    request = update("", metadata={"a": "1"})
    if not with_conversation:
        request.ClearField("conversation")
    failure = await problem(stub.UpdateConversation(request))
    assert (failure.code, set(failure.fields)) == ("INVALID_ARGUMENT", {"conversation"})


async def test_thirty_two_paths_are_taken(stub: Any) -> None:
    """The longest mask works."""
    made = await stub.CreateConversation(create())
    paths = [f"metadata.k{number}" for number in range(32)]
    assert dict((await stub.UpdateConversation(update(made.id, *paths, metadata=pairs(16)))).metadata) == pairs(16)


async def test_limit_after_merging(stub: Any) -> None:
    """Pairs added to those stored may not exceed sixteen, and a swap at the limit is fine."""
    made = await stub.CreateConversation(create(metadata=pairs(15)))
    full = await stub.UpdateConversation(update(made.id, "metadata.x", metadata={"x": "1"}))
    assert len(full.metadata) == 16
    failure = await problem(stub.UpdateConversation(update(made.id, "metadata.y", metadata={"y": "1"})))
    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "LIMIT_EXCEEDED")
    assert (failure.metadata, set(failure.fields)) == ({"limit": "16"}, {"conversation.metadata"})
    assert await stub.GetConversation(get(made.id)) == full
    swapped = await stub.UpdateConversation(update(made.id, "metadata.x", "metadata.y", metadata={"y": "1"}))
    assert dict(swapped.metadata) == pairs(15) | {"y": "1"}
    whole = await stub.UpdateConversation(update(made.id, "metadata", metadata=pairs(16, start=100)))
    assert dict(whole.metadata) == pairs(16, start=100)


WRONG_ETAGS = [
    '"2"',
    '"0"',
    '"01"',
    "1",
    '"1',
    '1"',
    'W/"1"',
    '" 1"',
    '"-1"',
    '"\u0661"',
    "garbage",
    '"' + "9" * 30 + '"',
]


@pytest.mark.parametrize("etag", WRONG_ETAGS)
@pytest.mark.parametrize("method", ["update", "delete"])
async def test_another_etag_aborts(stub: Any, method: str, etag: str) -> None:
    """Any other etag than the present one aborts, tells the present one, and changes nothing."""
    made = await stub.CreateConversation(create(metadata={"a": "1"}))
    call = (
        stub.UpdateConversation(update(made.id, etag=etag, metadata={"b": "2"}))
        if method == "update"
        else stub.DeleteConversation(delete(made.id, etag=etag))
    )
    failure = await problem(call)
    assert (failure.code, failure.reason, failure.metadata) == ("ABORTED", "ETAG_MISMATCH", {"etag": made.etag})
    assert failure.details == ("ErrorInfo", "RetryInfo")
    assert await stub.GetConversation(get(made.id)) == made


async def test_the_present_etag_passes(stub: Any) -> None:
    """The etag of the last answer lets an update and a delete through, an older one does not."""
    made = await stub.CreateConversation(create())
    changed = await stub.UpdateConversation(update(made.id, etag=made.etag, metadata={"a": "1"}))
    stale = await problem(stub.UpdateConversation(update(made.id, etag=made.etag, metadata={"a": "2"})))
    assert (stale.reason, stale.metadata) == ("ETAG_MISMATCH", {"etag": changed.etag})
    assert await stub.DeleteConversation(delete(made.id, etag=changed.etag)) == Empty()


async def test_items_do_not_move_the_etag(stub: Any) -> None:
    """Appending and deleting items leave etag and update_time alone."""
    made = await stub.CreateConversation(create())
    item = (await stub.CreateItems(append(made.id, user_message()))).items[0]
    left = await stub.DeleteItem(delete_item(made.id, item.id))
    assert (left.etag, left.update_time, left.last_sequence) == (made.etag, made.update_time, 1)


@pytest.mark.parametrize("method", ["update", "delete"])
async def test_an_etag_beyond_its_length_is_invalid(stub: Any, method: str) -> None:
    """An etag has at most 32 characters."""
    made = await stub.CreateConversation(create())
    if method == "update":
        call, field = stub.UpdateConversation(update(made.id, etag="x" * 33, metadata={"a": "1"})), "conversation.etag"
    else:
        call, field = stub.DeleteConversation(delete(made.id, etag="x" * 33)), "etag"
    failure = await problem(call)
    assert (failure.reason, set(failure.fields)) == ("FIELD_INVALID", {field})


def calls_on(stub: Any, conversation_id: str, item_id: str) -> list[Any]:
    """A call of every method that names a conversation."""
    return [
        stub.GetConversation(get(conversation_id)),
        stub.UpdateConversation(update(conversation_id, metadata={"a": "1"})),
        stub.UpdateConversation(update(conversation_id, metadata={"a": "1"}, etag='"9"')),
        stub.DeleteConversation(delete(conversation_id)),
        stub.DeleteConversation(delete(conversation_id, etag='"9"')),
        stub.CreateItems(append(conversation_id, user_message())),
        stub.CreateItems(append(conversation_id, user_message(id=item_id))),
        stub.CreateItems(append(conversation_id, user_message(), expected_last_sequence=7)),
        stub.CreateItems(append(conversation_id, user_message(), request_id="7d0d4a0e-9c4e-4f0a-8f7e-1f4f4b7c0a11")),
        stub.GetItem(get_item(conversation_id, item_id)),
        stub.BatchGetItems(batch_get(conversation_id, item_id)),
        stub.ListItems(list_items(conversation_id)),
        stub.ListItems(list_items(conversation_id, after=item_id)),
        stub.ListItems(list_items(conversation_id, filter='type = "message"')),
        stub.DeleteItem(delete_item(conversation_id, item_id)),
    ]


@pytest.mark.parametrize("kind", ["deleted", "unknown"])
async def test_deleted_and_unknown_are_one_answer(stub: Any, kind: str) -> None:
    """Every method answers a deleted conversation exactly as one that never was."""
    conversation_id = UNKNOWN_ID
    item_id = "msg_1"
    if kind == "deleted":
        conversation_id = (await stub.CreateConversation(create(user_message(id=item_id)))).id
        assert await stub.DeleteConversation(delete(conversation_id)) == Empty()
    failures = [await problem(call) for call in calls_on(stub, conversation_id, item_id)]
    for failure in failures:
        assert failure == failures[0]
    assert (failures[0].code, failures[0].reason) == ("NOT_FOUND", "CONVERSATION_NOT_FOUND")
    assert failures[0].message == f"Conversation with id '{conversation_id}' not found."
    assert failures[0].metadata == {"conversationId": conversation_id}
    assert failures[0].details == ("ErrorInfo", "ResourceInfo")


async def test_copies_outlive_their_source(stub: Any) -> None:
    """Deleting a conversation leaves items that were copied elsewhere."""
    source = await stub.CreateConversation(create(user_message("kept", id="msg_kept")))
    copy = await stub.CreateConversation(create(copy_of(source.id, "msg_kept")))
    await stub.DeleteConversation(delete(source.id))
    assert text_of(await stub.GetItem(get_item(copy.id, "msg_kept"))) == "kept"


ATTRIBUTES = [
    ("16 names", {f"n{number}": ["v"] for number in range(16)}, None),
    ("17 names", {f"n{number}": ["v"] for number in range(17)}, {"conversation.attributes"}),
    ("256 values", {"n": [str(number) for number in range(256)]}, None),
    ("257 values", {"n": [str(number) for number in range(257)]}, {'conversation.attributes["n"].values'}),
    ("256 bytes", {"n": ["é" * 128]}, None),
    ("257 bytes", {"n": ["é" * 128 + "e"]}, {'conversation.attributes["n"].values[0]'}),
    ("empty value", {"n": ["a", ""]}, {'conversation.attributes["n"].values[1]'}),
    ("value with an equals sign", {"n": ["a=b", "=", "c"]}, None),
    ("name of 64", {"n" * 64: ["v"]}, None),
    ("name of 65", {"n" * 65: ["v"]}, {f'conversation.attributes["{"n" * 65}"]'}),
    ("name in upper case", {"N": ["v"]}, {'conversation.attributes["N"]'}),
    ("name with a digit first", {"1n": ["v"]}, {'conversation.attributes["1n"]'}),
    ("name with a line end", {"n\n": ["v"]}, {'conversation.attributes["n\n"]'}),
    ("name with an equals sign", {"a=b": ["v"]}, {'conversation.attributes["a=b"]'}),
]


@pytest.mark.parametrize(("attributes", "fields"), [pytest.param(a, f, id=name) for name, a, f in ATTRIBUTES])
async def test_attribute_limits(stub: Any, attributes: dict[str, list[str]], fields: set[str] | None) -> None:
    """Attributes within the limits come back, others are refused at their path."""
    call = stub.CreateConversation(create(attributes=sets(**attributes)))
    if fields is None:
        made = await call
        assert plain(made) == {name: set(values) for name, values in attributes.items()}
        assert plain(await stub.GetConversation(get(made.id))) == plain(made)
        return
    failure = await problem(call)
    assert (failure.code, failure.reason, set(failure.fields)) == ("INVALID_ARGUMENT", "FIELD_INVALID", fields)


ATTRIBUTE_UPDATES: list[
    tuple[str, dict[str, list[str]], tuple[str, ...], dict[str, list[str]], dict[str, set[str]]]
] = [
    ("whole", {"a": ["1"], "b": ["2"]}, ("attributes",), {"c": ["3"]}, {"c": {"3"}}),
    ("whole to empty", {"a": ["1"]}, ("attributes",), {}, {}),
    ("set one", {"a": ["1"], "b": ["2"]}, ("attributes.a",), {"a": ["8", "9"]}, {"a": {"8", "9"}, "b": {"2"}}),
    ("remove one", {"a": ["1"], "b": ["2"]}, ("attributes.a",), {}, {"b": {"2"}}),
    ("no values is no attribute", {"a": ["1"]}, ("attributes.a",), {"a": []}, {}),
    ("values are a set", {}, ("attributes.a",), {"a": ["2", "1", "2"]}, {"a": {"1", "2"}}),
    ("star", {"a": ["1"]}, ("*",), {"b": ["2"]}, {"b": {"2"}}),
    ("omitted mask", {"a": ["1"]}, (), {"b": ["2"]}, {"b": {"2"}}),
    ("the other map", {"a": ["1"]}, ("metadata",), {"b": ["2"]}, {"a": {"1"}}),
    ("a name that begins like another", {"team": ["1"], "teams": ["2"]}, ("attributes.team",), {}, {"teams": {"2"}}),
]


@pytest.mark.parametrize(
    ("before", "mask", "sent", "after"), [pytest.param(b, m, s, a, id=name) for name, b, m, s, a in ATTRIBUTE_UPDATES]
)
async def test_attribute_updates(
    stub: Any,
    before: dict[str, list[str]],
    mask: tuple[str, ...],
    sent: dict[str, list[str]],
    after: dict[str, set[str]],
) -> None:
    """Attributes are replaced as a whole or by name; their values are sets."""
    made = await stub.CreateConversation(create(attributes=sets(**before)))
    changed = await stub.UpdateConversation(update(made.id, *mask, attributes=sets(**sent)))
    assert plain(changed) == after
    assert sum(len(values.values) for values in changed.attributes.values()) == sum(map(len, after.values()))
    assert await stub.GetConversation(get(made.id)) == changed


async def test_attribute_limit_after_merging(stub: Any) -> None:
    """Names added to those stored may not exceed sixteen either."""
    made = await stub.CreateConversation(create(attributes=sets(**{f"n{number}": ["v"] for number in range(16)})))
    failure = await problem(stub.UpdateConversation(update(made.id, "attributes.x", attributes=sets(x=["v"]))))
    assert (failure.code, failure.reason, failure.metadata) == ("INVALID_ARGUMENT", "LIMIT_EXCEEDED", {"limit": "16"})
    assert set(failure.fields) == {"conversation.attributes"}


# Lists


@pytest.fixture(scope="module")
async def shelf(postgres: str, template: str) -> AsyncIterator[Service]:
    """A service with 25 conversations, numbered by creation, and one deleted."""
    async with shared_service(postgres, template) as served:
        for number in range(26):
            made = await served.stub.CreateConversation(create(metadata={"number": str(number)}))
        await served.stub.DeleteConversation(delete(made.id))
        yield served


async def pages(stub: Any, **query: Any) -> list[list[str]]:
    """The numbers on each page of a list."""
    found, token = [], ""
    while True:
        page = await stub.ListConversations(ListConversationsRequest(page_token=token, **query))
        found.append([conversation.metadata["number"] for conversation in page.conversations])
        token = page.next_page_token
        if not token:
            return found


@pytest.mark.parametrize(
    ("size", "lengths"),
    [(0, [20, 5]), (1, [1] * 25), (7, [7, 7, 7, 4]), (24, [24, 1]), (25, [25]), (26, [25]), (1000, [25])],
)
@pytest.mark.parametrize("order_by", ["", "create_time desc", "create_time", "create_time asc"])
async def test_paging_finds_each_once(shelf: Service, order_by: str, size: int, lengths: list[int]) -> None:
    """Pages of any size hold every living conversation once, in order."""
    found = await pages(shelf.stub, page_size=size, order_by=order_by)
    ascending = [str(number) for number in range(25)]
    assert [len(page) for page in found] == lengths
    assert list(chain(*found)) == (ascending if order_by in ("create_time", "create_time asc") else ascending[::-1])


async def test_a_list_holds_what_get_gives(shelf: Service) -> None:
    """A listed conversation is the same as the one asked for by id."""
    page = await shelf.stub.ListConversations(ListConversationsRequest(page_size=1))
    assert await shelf.stub.GetConversation(get(page.conversations[0].id)) == page.conversations[0]


async def test_the_largest_page_is_100(own_service: Service) -> None:
    """A larger page size is lowered to 100."""
    for _ in range(101):
        await own_service.stub.CreateConversation(create())
    page = await own_service.stub.ListConversations(ListConversationsRequest(page_size=101))
    assert (len(page.conversations), page.next_page_token != "") == (100, True)


async def test_an_empty_list(own_service: Service) -> None:
    """Nothing to list is an empty page without a token."""
    page = await own_service.stub.ListConversations(ListConversationsRequest())
    assert (list(page.conversations), page.next_page_token) == ([], "")


async def test_new_ones_do_not_disturb_a_walk(own_service: Service) -> None:
    """A conversation made, and the cursor's own deleted, between two pages neither hides nor repeats one."""
    made = [(await own_service.stub.CreateConversation(create())).id for _ in range(4)]
    first = await own_service.stub.ListConversations(ListConversationsRequest(page_size=2))
    await own_service.stub.CreateConversation(create())
    await own_service.stub.DeleteConversation(delete(made[2]))
    second = await own_service.stub.ListConversations(
        ListConversationsRequest(page_size=2, page_token=first.next_page_token)
    )
    assert [each.id for each in (*first.conversations, *second.conversations)] == made[::-1]


BAD_LISTS = [
    ({"page_size": -1}, "page_size"),
    ({"order_by": "id"}, "order_by"),
    ({"order_by": "create_time DESC"}, "order_by"),
    ({"filter": " " * 2049}, "filter"),
    ({"page_token": "x" * 513}, "page_token"),
]


@pytest.mark.parametrize(("query", "field"), BAD_LISTS)
async def test_bad_list_requests(stub: Any, query: dict[str, Any], field: str) -> None:
    """What a list cannot mean is refused at its field."""
    failure = await problem(stub.ListConversations(ListConversationsRequest(**query)))
    assert (failure.code, failure.reason, set(failure.fields)) == ("INVALID_ARGUMENT", "FIELD_INVALID", {field})


QUERY: dict[str, Any] = {"page_size": 2, "filter": 'owner = "local"', "order_by": "create_time"}


@pytest.fixture
async def token(shelf: Service) -> str:
    """A token of the second page of `QUERY`."""
    page = await shelf.stub.ListConversations(ListConversationsRequest(**QUERY))
    return str(page.next_page_token)


BOUND: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"page_size": 5}, True),
    ({"filter": ""}, False),
    ({"filter": 'owner != "local"'}, False),
    ({"order_by": ""}, False),
    ({"order_by": "create_time desc"}, False),
]


@pytest.mark.parametrize(("other", "works"), BOUND)
async def test_a_token_belongs_to_its_query(shelf: Service, token: str, other: dict[str, Any], *, works: bool) -> None:
    """A token works for its own filter and order only; the page size may change."""
    call = shelf.stub.ListConversations(ListConversationsRequest(**{**QUERY, **other}, page_token=token))
    if works:
        assert [each.metadata["number"] for each in (await call).conversations][:2] == ["2", "3"]
        return
    assert (await problem(call)).reason == "PAGE_TOKEN_INVALID"


async def test_a_token_belongs_to_its_method(shelf: Service, token: str) -> None:
    """A token of conversations does not page items, nor the other way round."""
    made = await shelf.stub.CreateConversation(create(user_message(), user_message()))
    items = await shelf.stub.ListItems(list_items(made.id, page_size=1))
    await shelf.stub.DeleteConversation(delete(made.id))
    swapped = [
        shelf.stub.ListConversations(ListConversationsRequest(page_token=items.next_page_token)),
        shelf.stub.ListItems(list_items(made.id, page_token=token)),
    ]
    assert [(await problem(call)).reason for call in swapped] == ["PAGE_TOKEN_INVALID"] * 2


async def test_a_changed_token(shelf: Service, token: str) -> None:
    """A token that was changed, cut or made up is told as such."""
    for bad in (token[:-1], f"{token}A", f"{'B' if token[0] == 'A' else 'A'}{token[1:]}", "A" * 512, "é"):
        failure = await problem(shelf.stub.ListConversations(ListConversationsRequest(**QUERY, page_token=bad)))
        assert (failure.code, failure.reason, bad) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", bad)
        assert set(failure.fields) == {"page_token"}


# Filters

NASTY = "%_\\\"'"


@pytest.fixture(scope="module")
async def library(postgres: str, template: str) -> AsyncIterator[tuple[Service, dict[str, str]]]:
    """A service with conversations A to D, and their times."""
    contents: dict[str, dict[str, Any]] = {
        "A": {"metadata": {"topic": "demo", "n": "1"}, "attributes": sets(teams=["a", "b"], x=["y=z"])},
        "B": {"metadata": {"topic": "Demo", "my key": "x"}, "attributes": sets(teams=["b"])},
        "C": {"metadata": {"a.b": "dotted", "nasty": NASTY, "rtl": "שלום", "emoji": ASTRAL}},
        "D": {},
    }
    async with shared_service(postgres, template) as served:
        times = {}
        for name, content in contents.items():
            content.setdefault("metadata", {})["name"] = name
            made = await served.stub.CreateConversation(create(**content))
            times[name] = made.create_time.ToDatetime().isoformat() + "Z"
        yield served, times


FILTERS = [
    ("", "ABCD"),
    ("   ", "ABCD"),
    ('owner = "local"', "ABCD"),
    ('owner != "local"', ""),
    ('owner = "eve"', ""),
    ('owner != "eve"', "ABCD"),
    ('owner = ""', ""),
    ('create_time < "{B}"', "A"),
    ('create_time <= "{B}"', "AB"),
    ('create_time > "{B}"', "CD"),
    ('create_time >= "{B}"', "BCD"),
    ('create_time > "{A}" AND create_time < "{D}"', "BC"),
    ('create_time > "2020-01-01T00:00:00+05:30"', "ABCD"),
    ('create_time < "2020-01-01t00:00:00.5z"', ""),
    ('create_time > "0001-01-01T00:00:00Z"', "ABCD"),
    ('create_time < "9999-12-31T23:59:59.999999Z"', "ABCD"),
    ('metadata.topic = "demo"', "A"),
    ('metadata.topic != "demo"', "BCD"),
    ('metadata.topic = ""', ""),
    ('metadata.n = "1"', "A"),
    ('metadata.missing = "x"', ""),
    ('metadata.missing != "x"', "ABCD"),
    ('metadata.`my key` = "x"', "B"),
    ('metadata.`a.b` = "dotted"', "C"),
    ('metadata.`topic` = "demo"', "A"),
    ('metadata.nasty = "%_\\\\\\"\'"', "C"),
    ('metadata.nasty = "%"', ""),
    ('metadata.topic = "d%"', ""),
    ('metadata.topic = "d_mo"', ""),
    ('metadata.topic = "demo\' OR 1=1 --"', ""),
    ('metadata.`\') OR 1=1 --` = "x"', ""),
    ('metadata.`"` = "}}"', ""),
    ('metadata.rtl = "שלום"', "C"),
    (f'metadata.emoji = "{ASTRAL}"', "C"),
    ('attributes.teams = "a"', "A"),
    ('attributes.teams = "b"', "AB"),
    ('attributes.teams != "b"', "CD"),
    ('attributes.`teams` = "a"', "A"),
    ('attributes.team = "a"', ""),
    ('attributes.x = "y=z"', "A"),
    ('attributes.teams = "%"', ""),
    ('metadata.topic != "demo" AND attributes.teams = "b"', "B"),
    ('metadata.topic = "demo" AND metadata.topic = "Demo"', ""),
    ('  metadata.topic="demo"\tAND\n owner="local"  ', "A"),
    (" AND ".join(['owner = "local"'] * 8), "ABCD"),
]


@pytest.mark.parametrize(("text", "expected"), FILTERS)
async def test_filters(library: tuple[Service, dict[str, str]], text: str, expected: str) -> None:
    """A filter finds exactly what it says, and a value is never anything but a value."""
    served, times = library
    text = re.sub(r"\{([A-D])\}", lambda match: times[match[1]], text).replace("}}", "}")
    request = ListConversationsRequest(filter=text, order_by="create_time")
    found = (await served.stub.ListConversations(request)).conversations
    assert "".join(each.metadata["name"] for each in found) == expected


async def test_a_time_with_an_offset_is_the_same_time(library: tuple[Service, dict[str, str]]) -> None:
    """Times are compared as instants, whatever their offset."""
    served, times = library
    elsewhere = datetime.fromisoformat(times["B"]).astimezone(timezone(-timedelta(hours=7))).isoformat()
    request = ListConversationsRequest(filter=f'create_time >= "{elsewhere}" AND create_time <= "{elsewhere}"')
    found = (await served.stub.ListConversations(request)).conversations
    assert [each.metadata["name"] for each in found] == ["B"]


async def test_a_filter_holds_on_every_page(library: tuple[Service, dict[str, str]]) -> None:
    """Pages of a filtered list are full, and the last one has no token."""
    served, _ = library
    query: dict[str, Any] = {"filter": 'metadata.topic != "demo"', "page_size": 2}
    first = await served.stub.ListConversations(ListConversationsRequest(**query))
    second = await served.stub.ListConversations(ListConversationsRequest(**query, page_token=first.next_page_token))
    assert [[each.metadata["name"] for each in page.conversations] for page in (first, second)] == [["D", "C"], ["B"]]
    assert second.next_page_token == ""


BAD_FILTERS = [
    ('  nope = "x"', 2),
    ('owner = "a" AND owner > "x"', 22),
    ('create_time > "2026-01-01T00:00:00"', 15),
    ('owner = "a" OR owner = "b"', 12),
    ('role = "user"', 0),
    (" AND ".join(['owner = "a"'] * 9), 139),
]


@pytest.mark.parametrize(("text", "position"), BAD_FILTERS)
async def test_bad_filters(stub: Any, text: str, position: int) -> None:
    """A filter that cannot be read is told with the place where reading stopped."""
    failure = await problem(stub.ListConversations(ListConversationsRequest(filter=text)))
    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "FILTER_INVALID")
    assert (failure.metadata, set(failure.fields)) == ({"position": str(position)}, {"filter"})
    assert text not in failure.message


def test_the_tables_cover_each_filter_field() -> None:
    """Every field and operator that a filter may have is in the table above."""
    fields = {"owner": "= !=", "create_time": "< <= > >=", "metadata": "= !=", "attributes": "= !="}
    for name, operators in fields.items():
        for operator in operators.split():
            assert any(re.search(rf"{name}[^ ]* {operator} ", text) for text, _ in FILTERS), (name, operator)


# --- updates that lose a race


@asynccontextmanager
async def changed_after_the_update(service: Service, conversation_id: str, change: str) -> AsyncIterator[None]:
    """Another session changes the row between an update that is refused and the look at why."""
    done = False

    async def interfere(execute: Execute, execution: Execution) -> Rows:
        nonlocal done
        rows = await execute(execution)
        if execution.statement.kind == "write" and not done:
            done = True
            await service.database.pool.execute(f"UPDATE conversations SET {change} WHERE id = $1", conversation_id)
        return rows

    with intercepted(service.database, interfere):
        yield
    assert done


@pytest.mark.parametrize(
    ("count", "etag", "change", "reason"),
    [
        pytest.param(16, "", "metadata = '{}'", "CONFLICT", id="no longer too many"),
        pytest.param(0, '"7"', "revision = 7", "CONFLICT", id="the etag came true"),
        pytest.param(16, '"1"', "revision = 8", "ETAG_MISMATCH", id="another etag"),
        pytest.param(16, "", "owner = 'x'", "LIMIT_EXCEEDED", id="still too many"),
    ],
)
async def test_a_lost_race_is_no_limit(own_service: Service, count: int, etag: str, change: str, reason: str) -> None:
    """An update is answered with a limit only when it would exceed one; what has changed since is a conflict."""
    made = await own_service.stub.CreateConversation(create(metadata=pairs(count)))
    request = update(made.id, "metadata.new", metadata={"new": "v"}, etag=etag)
    async with changed_after_the_update(own_service, made.id, change):
        assert reason == (await problem(own_service.stub.UpdateConversation(request))).reason
