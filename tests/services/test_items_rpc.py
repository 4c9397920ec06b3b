"""Items: create, get, get in a batch, list and delete, as the contract says."""

import json
import re
from collections.abc import AsyncIterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from conversations.v1.content_pb2 import ROLE_ASSISTANT, ROLE_USER, Content, InputText, Opaque
from conversations.v1.conversation_pb2 import Conversation
from conversations.v1.conversations_service_pb2 import (
    INCLUDE_REASONING_ENCRYPTED_CONTENT,
    ORDER_ASCENDING,
    ORDER_DESCENDING,
)
from conversations.v1.item_body_pb2 import FunctionCall, Message, Reasoning
from conversations.v1.item_pb2 import Item, NewItem
from conversations.v1.item_status_pb2 import ItemStatus
from conversations.v1.options_pb2 import item_type

from server.items.codec import from_json
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
    new_item,
    text_of,
    user_message,
)
from tests.support.problems import problem
from tests.support.service import Service, shared_service

HEX = "[0-9a-f]{48}"
ARMS = {arm.name: arm for arm in Item.DESCRIPTOR.oneofs_by_name["body"].fields if arm.name != "unknown"}


@pytest.fixture
async def conversation(stub: Any) -> Conversation:
    """A conversation without items."""
    made: Conversation = await stub.CreateConversation(create())
    return made


def samples() -> dict[str, Item]:
    """An item of each type, without id, status and JSON."""
    found: dict[str, Item] = {}
    for line in (Path(__file__).parents[1] / "cases" / "samples.jsonl").read_text().splitlines():
        item = from_json(json.loads(line)["item"])
        for name in ("id", "status", "json"):
            item.ClearField(name)
        found.setdefault(item.WhichOneof("body") or "", item)
    return found


SAMPLES = samples()


async def last_sequence(stub: Any, conversation_id: str) -> int:
    return int((await stub.GetConversation(get(conversation_id))).last_sequence)


# Create


@pytest.mark.parametrize(("count", "field"), [(0, "items"), (1, None), (20, None), (21, "items")])
async def test_one_to_twenty_items(stub: Any, conversation: Conversation, count: int, field: str | None) -> None:
    """An append takes 1 to 20 items, in request order, all or none."""
    call = stub.CreateItems(append(conversation.id, *(user_message(str(n)) for n in range(count))))
    if field:
        failure = await problem(call)
        assert (failure.code, failure.reason, set(failure.fields)) == ("INVALID_ARGUMENT", "FIELD_INVALID", {field})
        assert await last_sequence(stub, conversation.id) == 0
        return
    made = (await call).items
    assert [(text_of(item), item.sequence) for item in made] == [(str(n), n + 1) for n in range(count)]
    assert await last_sequence(stub, conversation.id) == count


@pytest.mark.parametrize(("count", "works"), [(0, True), (20, True), (21, False)])
async def test_a_conversation_begins_with_up_to_twenty(stub: Any, count: int, *, works: bool) -> None:
    """Creating a conversation takes no items or up to twenty."""
    call = stub.CreateConversation(create(*(user_message() for _ in range(count))))
    if works:
        assert (await call).last_sequence == count
        return
    failure = await problem(call)
    assert (failure.reason, set(failure.fields)) == ("FIELD_INVALID", {"items"})


async def test_created_items_read_back(stub: Any, conversation: Conversation) -> None:
    """What an append answers is what every read gives later."""
    made = list((await stub.CreateItems(append(conversation.id, user_message("a"), user_message("b")))).items)
    assert [await stub.GetItem(get_item(conversation.id, item.id)) for item in made] == made
    assert list((await stub.ListItems(list_items(conversation.id, order=ORDER_ASCENDING))).items) == made
    assert list((await stub.BatchGetItems(batch_get(conversation.id, *(item.id for item in made)))).items) == made


async def test_sequences_go_on(stub: Any, conversation: Conversation) -> None:
    """Sequences are consecutive over appends and never used again."""
    first = (await stub.CreateItems(append(conversation.id, user_message(), user_message()))).items
    await stub.DeleteItem(delete_item(conversation.id, first[1].id))
    second = (await stub.CreateItems(append(conversation.id, user_message()))).items
    assert [item.sequence for item in (*first, *second)] == [1, 2, 3]


@pytest.mark.parametrize("name", sorted(ARMS))
async def test_minted_ids_and_default_status(stub: Any, conversation: Conversation, name: str) -> None:
    """An item of any type gets an id with its prefix and 48 hex digits, and its type's default status."""
    option = ARMS[name].GetOptions().Extensions[item_type]
    made = (await stub.CreateItems(append(conversation.id, NewItem(item=SAMPLES[name])))).items[0]
    assert re.fullmatch(f"{option.minted_id_prefix or option.id_prefix}_{HEX}", made.id)
    assert made.status == option.default_status
    expected = Item()
    expected.CopyFrom(SAMPLES[name])
    assert getattr(made, name) == getattr(expected, name)


async def test_an_unknown_type_gets_an_id(stub: Any, conversation: Conversation) -> None:
    """An item of a type this build does not know is kept, under an id of its own kind."""
    opaque = Opaque(type="brand_new", json=b'{"type":"brand_new","x":1}')
    made = (await stub.CreateItems(append(conversation.id, new_item(unknown=opaque)))).items[0]
    assert (re.fullmatch(f"item_{HEX}", made.id) is not None, made.unknown, made.status) == (True, opaque, 0)


async def test_statuses_of_each_type(stub: Any, conversation: Conversation) -> None:
    """A type takes the statuses its option lists and no other."""
    wrong = []
    for name, arm in ARMS.items():
        allowed = set(arm.GetOptions().Extensions[item_type].statuses)
        for status in range(1, len(ItemStatus.values())):
            new = NewItem(item=SAMPLES[name])
            new.item.status = ItemStatus.ValueType(status)
            call = stub.CreateItems(append(conversation.id, new))
            if status in allowed:
                kept = (await call).items[0].status
                wrong += [(name, status, kept)] if kept != status else []
            else:
                failure = await problem(call)
                wrong += [] if failure.fields == {"items[0].item.status": "item.status"} else [(name, status, failure)]
    assert wrong == []


KEPT_IDS = [
    ("message", "msg_1"),
    ("message", "msg"),
    ("message", "msgs-are-fine_too"),
    ("message", "msg_" + "a" * 60),
    ("function_call", "fc_1"),
    ("function_call_output", "fc_1"),
    ("reasoning", "rs_1"),
    ("local_shell_call_output", "anything"),
]


@pytest.mark.parametrize(("name", "item_id"), KEPT_IDS)
async def test_chosen_ids_are_kept(stub: Any, conversation: Conversation, name: str, item_id: str) -> None:
    """An id with the prefix of its type stays as sent."""
    new = NewItem(item=SAMPLES[name])
    new.item.id = item_id
    assert (await stub.CreateItems(append(conversation.id, new))).items[0].id == item_id
    assert (await stub.GetItem(get_item(conversation.id, item_id))).id == item_id


REFUSED_IDS = [
    ("message", "fc_1", "item.id_prefix"),
    ("message", "MSG_1", "item.id_prefix"),
    ("message", "ms", "item.id_prefix"),
    ("function_call", "msg_1", "item.id_prefix"),
    ("reasoning", "item_1", "item.id_prefix"),
    ("message", "msg_" + "a" * 61, "string.max_len"),
    ("message", "msg_é", "string.pattern"),
    ("message", "msg 1", "string.pattern"),
    ("message", "msg_1\n", "string.pattern"),
    ("message", "msg_\0", "string.pattern"),
    ("local_shell_call_output", "a/b", "string.pattern"),
]


@pytest.mark.parametrize(("name", "item_id", "rule"), REFUSED_IDS)
async def test_wrong_ids(stub: Any, conversation: Conversation, name: str, item_id: str, rule: str) -> None:
    """An id with another prefix or form is refused at its path, and nothing is written."""
    new = NewItem(item=SAMPLES[name])
    new.item.id = item_id
    failure = await problem(stub.CreateItems(append(conversation.id, new)))
    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert failure.fields == {"items[0].item.id": rule}
    assert await last_sequence(stub, conversation.id) == 0


async def test_output_fields_are_ignored(stub: Any, conversation: Conversation) -> None:
    """Sequence, time and author are the server's, whatever was sent."""
    sent = user_message(sequence=77, created_by="eve", create_time={"seconds": 1})
    made = (await stub.CreateItems(append(conversation.id, sent))).items[0]
    assert (made.sequence, made.created_by) == (1, "local")
    assert made.create_time.seconds > 1
    assert await stub.GetItem(get_item(conversation.id, made.id)) == made


async def test_every_violation_is_listed(stub: Any, conversation: Conversation) -> None:
    """All rules broken in all items are told at once."""
    items = [
        user_message(id="fc_1"),
        new_item(message=Message()),
        user_message(),
        user_message(status=ItemStatus.ITEM_STATUS_SEARCHING, id="rs_1"),
    ]
    failure = await problem(stub.CreateItems(append(conversation.id, *items)))
    assert failure.fields == {
        "items[0].item.id": "item.id_prefix",
        "items[1].item.message.role": "item.role",
        "items[3].item.id": "item.id_prefix",
        "items[3].item.status": "item.status",
    }
    assert await last_sequence(stub, conversation.id) == 0


def with_json(text: bytes, **fields: Any) -> NewItem:
    """A message of a user, without content, and JSON beside it."""
    return new_item(message=Message(role=ROLE_USER), json=text, **fields)


CONTRADICTIONS: list[tuple[NewItem, str]] = [
    (with_json(b'{"role":"system","role":"user","content":[]}'), "json.role"),
    (with_json(b'{"role":"system","content":[]}'), "json"),
    (with_json(b'{"role":"user","content":[],"id":"msg_1"}', id="msg_2"), "json.id"),
    (with_json(b'{"role":"user","content":[],"status":"failed"}'), "json.status"),
    (new_item(unknown=Opaque(type="holo", json=b'{"type":"holo","a":{"b":1,"b":2}}')), "unknown.json.b"),
    (new_item(unknown=Opaque(type="holo", json=b'{"type":"holo","id":"h_1"}')), "unknown.json.id"),
    (
        new_item(message=Message(role=ROLE_USER, content=[Content(unknown=Opaque(type="holo", json=b"{"))])),
        "message.content[0].unknown.json",
    ),
]


@pytest.mark.parametrize(("item", "path"), CONTRADICTIONS)
async def test_json_says_one_thing(stub: Any, conversation: Conversation, item: NewItem, path: str) -> None:
    """JSON that contradicts itself or its item is refused at its field, and nothing is written."""
    failure = await problem(stub.CreateItems(append(conversation.id, user_message(), item)))
    assert failure.code == "INVALID_ARGUMENT"
    assert failure.fields == {f"items[1].item.{path}": "item.json"}
    assert await last_sequence(stub, conversation.id) == 0


async def test_a_newer_status_is_not_overwritten(stub: Any, conversation: Conversation) -> None:
    """A status that this build has no name for stays the item's only one: no default is stored beside it."""
    sent = with_json(b'{"type":"message","role":"user","content":[],"status":"archived"}')
    made = (await stub.CreateItems(append(conversation.id, sent))).items[0]
    assert made.status == ItemStatus.ITEM_STATUS_UNSPECIFIED
    again = await stub.CreateConversation(create(NewItem(item=made)))
    assert again.last_sequence == 1


async def test_every_broken_annotation_is_listed(stub: Any, conversation: Conversation) -> None:
    """Rules of the contract's annotations are told at once, too."""
    items = [NewItem(), NewItem(item=Item()), new_item(function_call=FunctionCall(name="f")), copy_of("", "")]
    failure = await problem(stub.CreateItems(append(conversation.id, *items, include=[0, 99])))
    assert failure.reason == "FIELD_INVALID"
    assert set(failure.fields) >= {
        "items[0].source",
        "items[1].item.body",
        "items[2].item.function_call.call_id",
        "items[3].reference.item_id",
        "items[3].reference.conversation_id",
        "include[0]",
        "include[1]",
    }


async def test_include_changes_nothing(stub: Any, conversation: Conversation) -> None:
    """An item is whole whether or not its parts were asked for."""
    new = new_item(reasoning=Reasoning(encrypted_content="secret"))
    made = (await stub.CreateItems(append(conversation.id, new))).items[0]
    asked = list_items(conversation.id, include=[INCLUDE_REASONING_ENCRYPTED_CONTENT])
    assert made.reasoning.encrypted_content == "secret"
    assert list((await stub.ListItems(asked)).items) == [made]
    assert list((await stub.ListItems(list_items(conversation.id))).items) == [made]


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_an_id_that_exists(stub: Any, conversation: Conversation, position: int) -> None:
    """An id the conversation has already fails the whole append."""
    await stub.CreateItems(append(conversation.id, user_message("old", id="msg_1")))
    items = [user_message() for _ in range(3)]
    items[position].item.id = "msg_1"
    failure = await problem(stub.CreateItems(append(conversation.id, *items)))
    assert (failure.code, failure.reason) == ("ALREADY_EXISTS", "ITEM_EXISTS")
    assert failure.metadata == {"conversationId": conversation.id, "itemId": "msg_1"}
    assert failure.details == ("ErrorInfo", "ResourceInfo")
    listed = (await stub.ListItems(list_items(conversation.id))).items
    assert [text_of(item) for item in listed] == ["old"]
    assert await last_sequence(stub, conversation.id) == 1


async def test_an_id_twice_in_a_request(stub: Any, conversation: Conversation) -> None:
    """Two items of one id in a request fail it, and nothing is written."""
    twice = [user_message(id="msg_1"), user_message(id="msg_2"), user_message(id="msg_1")]
    for call in (stub.CreateItems(append(conversation.id, *twice)), stub.CreateConversation(create(*twice))):
        failure = await problem(call)
        assert (failure.code, failure.reason, failure.metadata["itemId"]) == ("ALREADY_EXISTS", "ITEM_EXISTS", "msg_1")
    assert await last_sequence(stub, conversation.id) == 0


async def test_an_id_is_free_again_after_delete(stub: Any, conversation: Conversation) -> None:
    """The id of a deleted item can be used again, any number of times."""
    for number in range(1, 4):
        made = (await stub.CreateItems(append(conversation.id, user_message(str(number), id="msg_1")))).items[0]
        assert (made.sequence, text_of(await stub.GetItem(get_item(conversation.id, "msg_1")))) == (number, str(number))
        await stub.DeleteItem(delete_item(conversation.id, "msg_1"))


async def test_one_id_in_two_conversations(stub: Any, conversation: Conversation) -> None:
    """An id names another item in another conversation."""
    other = await stub.CreateConversation(create(user_message("other", id="msg_1")))
    await stub.CreateItems(append(conversation.id, user_message("this", id="msg_1")))
    await stub.DeleteItem(delete_item(other.id, "msg_1"))
    assert text_of(await stub.GetItem(get_item(conversation.id, "msg_1"))) == "this"


EXPECTED = [
    (0, 0, True),
    (3, 3, True),
    (3, 2, False),
    (3, 4, False),
    (3, 0, False),
    (0, 1, False),
    (3, 2**63 - 1, False),
]


@pytest.mark.parametrize(("present", "expected", "works"), EXPECTED)
async def test_expected_last_sequence(stub: Any, present: int, expected: int, *, works: bool) -> None:
    """An append goes through at the expected place only; otherwise it tells the present one."""
    made = await stub.CreateConversation(create(*(user_message() for _ in range(present))))
    call = stub.CreateItems(append(made.id, user_message(), expected_last_sequence=expected))
    if works:
        assert (await call).items[0].sequence == present + 1
        return
    failure = await problem(call)
    assert (failure.code, failure.reason) == ("ABORTED", "SEQUENCE_MISMATCH")
    assert (failure.metadata, failure.details) == ({"lastSequence": str(present)}, ("ErrorInfo", "RetryInfo"))
    assert await last_sequence(stub, made.id) == present


async def test_a_negative_expected_sequence_is_invalid(stub: Any, conversation: Conversation) -> None:
    """No sequence is negative."""
    failure = await problem(stub.CreateItems(append(conversation.id, user_message(), expected_last_sequence=-1)))
    assert (failure.reason, set(failure.fields)) == ("FIELD_INVALID", {"expected_last_sequence"})


async def test_deleting_does_not_lower_the_expected_sequence(stub: Any) -> None:
    """The expected sequence is that of the newest item ever, deleted or not."""
    made = await stub.CreateConversation(create(user_message(id="msg_1")))
    await stub.DeleteItem(delete_item(made.id, "msg_1"))
    failure = await problem(stub.CreateItems(append(made.id, user_message(), expected_last_sequence=0)))
    assert failure.metadata == {"lastSequence": "1"}


# References


@pytest.mark.parametrize("method", ["append", "create"])
async def test_a_reference_copies(stub: Any, conversation: Conversation, method: str) -> None:
    """A reference gives the item with its id and content, between the others and in their order."""
    source = await stub.CreateConversation(create(user_message("source", id="msg_s")))
    original = await stub.GetItem(get_item(source.id, "msg_s"))
    items = [user_message("before"), copy_of(source.id, "msg_s"), user_message("after")]
    if method == "append":
        target, made = conversation.id, (await stub.CreateItems(append(conversation.id, *items))).items
    else:
        target = (await stub.CreateConversation(create(*items))).id
        made = (await stub.ListItems(list_items(target, order=ORDER_ASCENDING))).items
    assert [(text_of(item), item.sequence) for item in made] == [("before", 1), ("source", 2), ("after", 3)]
    original.sequence = 2
    assert made[1] == original
    assert list((await stub.ListItems(list_items(target, order=ORDER_ASCENDING))).items) == list(made)


async def test_a_copy_and_its_source_are_two_items(stub: Any, conversation: Conversation) -> None:
    """Deleting the copy leaves the source, and the other way round."""
    source = await stub.CreateConversation(create(user_message("a", id="msg_a"), user_message("b", id="msg_b")))
    await stub.CreateItems(append(conversation.id, copy_of(source.id, "msg_a"), copy_of(source.id, "msg_b")))
    await stub.DeleteItem(delete_item(conversation.id, "msg_a"))
    await stub.DeleteItem(delete_item(source.id, "msg_b"))
    assert text_of(await stub.GetItem(get_item(source.id, "msg_a"))) == "a"
    assert text_of(await stub.GetItem(get_item(conversation.id, "msg_b"))) == "b"


@pytest.mark.parametrize("kind", ["no item", "no conversation", "deleted item", "deleted conversation"])
@pytest.mark.parametrize("method", ["append", "create"])
async def test_a_reference_to_nothing(stub: Any, conversation: Conversation, method: str, kind: str) -> None:
    """The first reference that cannot be read is named, and nothing is written."""
    source = await stub.CreateConversation(create(user_message(id="msg_here"), user_message(id="msg_gone")))
    wanted = (source.id, "msg_gone")
    if kind == "no item":
        wanted = (source.id, "msg_never")
    elif kind == "no conversation":
        wanted = ("conv_never", "msg_gone")
    elif kind == "deleted item":
        await stub.DeleteItem(delete_item(source.id, "msg_gone"))
    else:
        await stub.DeleteConversation(delete(source.id))
    here = [] if kind == "deleted conversation" else [copy_of(source.id, "msg_here")]
    items = [user_message(), *here, copy_of(*wanted), copy_of("conv_later", "msg_later")]
    call = (
        stub.CreateItems(append(conversation.id, *items))
        if method == "append"
        else stub.CreateConversation(create(*items))
    )
    failure = await problem(call)
    assert (failure.code, failure.reason) == ("NOT_FOUND", "ITEM_NOT_FOUND")
    assert failure.metadata == {"conversationId": wanted[0], "itemId": wanted[1]}
    assert await last_sequence(stub, conversation.id) == 0


async def test_a_reference_that_is_there_already(stub: Any, conversation: Conversation) -> None:
    """A reference whose id the conversation has, or that is sent twice, exists already."""
    source = await stub.CreateConversation(create(user_message(id="msg_s")))
    reference = copy_of(source.id, "msg_s")
    cases = [
        (source.id, [reference]),
        (conversation.id, [reference, reference]),
        (conversation.id, [reference, user_message(id="msg_s")]),
    ]
    for target, items in cases:
        failure = await problem(stub.CreateItems(append(target, *items)))
        assert (failure.reason, failure.metadata) == ("ITEM_EXISTS", {"conversationId": target, "itemId": "msg_s"})
    assert await last_sequence(stub, conversation.id) == 0


# Get


@pytest.mark.parametrize("method", ["get", "batch", "delete"])
async def test_a_missing_item(stub: Any, conversation: Conversation, method: str) -> None:
    """An item that is not in the conversation is not found, also when another conversation has it."""
    await stub.CreateConversation(create(user_message(id="msg_elsewhere")))
    calls = {
        "get": stub.GetItem(get_item(conversation.id, "msg_elsewhere")),
        "batch": stub.BatchGetItems(batch_get(conversation.id, "msg_elsewhere")),
        "delete": stub.DeleteItem(delete_item(conversation.id, "msg_elsewhere")),
    }
    failures = {name: await problem(call) for name, call in calls.items()}
    failure = failures[method]
    assert (failure.code, failure.reason) == ("NOT_FOUND", "ITEM_NOT_FOUND")
    assert failure.metadata == {"conversationId": conversation.id, "itemId": "msg_elsewhere"}
    assert failure.message == "Item with id 'msg_elsewhere' not found in conversation."


async def test_batch_keeps_order_and_repeats(stub: Any, conversation: Conversation) -> None:
    """Items come in the order of the ids, once for each time an id was sent."""
    await stub.CreateItems(append(conversation.id, *(user_message(id=f"msg_{n}") for n in range(3))))
    asked = ["msg_2", "msg_0", "msg_2", "msg_1", "msg_2"]
    assert [item.id for item in (await stub.BatchGetItems(batch_get(conversation.id, *asked))).items] == asked


async def test_batch_names_the_first_missing(stub: Any, conversation: Conversation) -> None:
    """Of several missing items the first in request order is named."""
    await stub.CreateItems(append(conversation.id, user_message(id="msg_1")))
    failure = await problem(stub.BatchGetItems(batch_get(conversation.id, "msg_1", "msg_z", "msg_a")))
    assert failure.metadata == {"conversationId": conversation.id, "itemId": "msg_z"}


@pytest.mark.parametrize(("count", "works"), [(0, False), (1, True), (100, True), (101, False)])
async def test_batch_sizes(stub: Any, conversation: Conversation, count: int, *, works: bool) -> None:
    """A batch asks for 1 to 100 ids."""
    await stub.CreateItems(append(conversation.id, user_message(id="msg_1")))
    call = stub.BatchGetItems(batch_get(conversation.id, *["msg_1"] * count))
    if works:
        assert len((await call).items) == count
        return
    failure = await problem(call)
    assert (failure.reason, set(failure.fields)) == ("FIELD_INVALID", {"item_ids"})


async def test_batch_names_each_malformed_id(stub: Any, conversation: Conversation) -> None:
    """Each id of a wrong form is told at its place."""
    failure = await problem(stub.BatchGetItems(batch_get(conversation.id, "msg_1", "a b", "", "msg_\0")))
    assert set(failure.fields) == {"item_ids[1]", "item_ids[2]", "item_ids[3]"}


# Delete


async def test_delete_returns_the_conversation(stub: Any) -> None:
    """Deleting an item answers its conversation, whose last_sequence stays."""
    made = await stub.CreateConversation(create(user_message(id="msg_1"), metadata={"a": "1"}))
    assert await stub.DeleteItem(delete_item(made.id, "msg_1")) == made
    assert await stub.GetConversation(get(made.id)) == made


async def test_a_deleted_item_is_gone_everywhere(stub: Any) -> None:
    """After a delete, get, batch, list and a second delete know nothing of the item."""
    made = await stub.CreateConversation(create(*(user_message(id=f"msg_{n}") for n in range(3))))
    await stub.DeleteItem(delete_item(made.id, "msg_1"))
    calls = [
        stub.GetItem(get_item(made.id, "msg_1")),
        stub.BatchGetItems(batch_get(made.id, "msg_0", "msg_1")),
        stub.DeleteItem(delete_item(made.id, "msg_1")),
    ]
    failures = [await problem(call) for call in calls]
    assert [failure == failures[0] for failure in failures] == [True] * 3
    assert (failures[0].reason, failures[0].metadata["itemId"]) == ("ITEM_NOT_FOUND", "msg_1")
    listed = await stub.ListItems(list_items(made.id))
    assert [item.id for item in listed.items] == ["msg_2", "msg_0"]


async def test_a_deleted_body_is_not_kept(service: Service) -> None:
    """The content of a deleted item is no longer in the database."""
    made = await service.stub.CreateConversation(create(user_message("secret", id="msg_1")))
    await service.stub.DeleteItem(delete_item(made.id, "msg_1"))
    pool = service.database.pool
    assert await pool.fetchval("SELECT body FROM items WHERE conversation_id = $1", made.id) == b""


# List

MIXED = [
    user_message("0", id="msg_0"),
    new_item(id="msg_1", message=Message(role=ROLE_ASSISTANT, content=[Content(input_text=InputText(text="1"))])),
    new_item(
        id="fc_2", function_call=FunctionCall(call_id="c", name="f", arguments="{}"), status="ITEM_STATUS_INCOMPLETE"
    ),
    user_message("3", id="msg_3", status="ITEM_STATUS_IN_PROGRESS"),
    new_item(id="rs_4", reasoning=Reasoning()),
    new_item(id="item_5", unknown=Opaque(type="brand_new", json=b'{"type":"brand_new"}')),
]


@pytest.fixture(scope="module")
async def mixed(postgres: str, template: str) -> AsyncIterator[tuple[Service, str, list[Item]]]:
    """A service with one conversation of items of several kinds, each with a time of its own."""
    async with shared_service(postgres, template) as served:
        made = await served.stub.CreateConversation(create())
        items = [(await served.stub.CreateItems(append(made.id, new))).items[0] for new in MIXED]
        yield served, made.id, items


@pytest.fixture(scope="module")
async def hundred(postgres: str, template: str) -> AsyncIterator[tuple[Service, str]]:
    """A service with one conversation of 105 items, of which 3, 50 and 105 are deleted."""
    async with shared_service(postgres, template) as served:
        made = await served.stub.CreateConversation(create())
        for start in range(1, 106, 15):
            new = [user_message(str(n), id=f"msg_{n}") for n in range(start, start + 15)]
            await served.stub.CreateItems(append(made.id, *new))
        for number in (3, 50, 105):
            await served.stub.DeleteItem(delete_item(made.id, f"msg_{number}"))
        yield served, made.id


ALIVE = [f"msg_{n}" for n in range(1, 106) if n not in (3, 50, 105)]


async def walk(served: Service, conversation_id: str, how: str, **query: Any) -> list[list[str]]:
    """The ids on each page, going on by token or by the last id."""
    found: list[list[str]] = []
    cursor: dict[str, str] = {}
    while True:
        page = await served.stub.ListItems(list_items(conversation_id, **query, **cursor))
        ids = [item.id for item in page.items]
        found.append(ids)
        assert (page.first_id, page.last_id) == (ids[0], ids[-1])
        assert (page.next_page_token != "") == page.has_more
        if not page.has_more:
            return found
        cursor = {"page_token": page.next_page_token} if how == "token" else {"after": page.last_id}


@pytest.mark.parametrize("how", ["token", "after"])
@pytest.mark.parametrize("order", [0, ORDER_ASCENDING, ORDER_DESCENDING])
@pytest.mark.parametrize(
    ("size", "lengths"),
    [
        (0, [20] * 5 + [2]),
        (1, [1] * 102),
        (34, [34] * 3),
        (51, [51, 51]),
        (100, [100, 2]),
        (101, [100, 2]),
        (1000, [100, 2]),
    ],
)
async def test_walking_finds_each_once(
    hundred: tuple[Service, str], how: str, order: int, size: int, lengths: list[int]
) -> None:
    """Pages of any size hold every living item once, newest first unless asked otherwise."""
    served, conversation_id = hundred
    found = await walk(served, conversation_id, how, page_size=size, order=order)
    assert [len(page) for page in found] == lengths
    assert list(chain(*found)) == (ALIVE if order == ORDER_ASCENDING else ALIVE[::-1])


@pytest.mark.parametrize(("size", "more"), [(5, True), (6, False), (7, False)])
async def test_has_more_is_exact(mixed: tuple[Service, str, list[Item]], size: int, *, more: bool) -> None:
    """A page that ends at the last item says so."""
    served, conversation_id, _ = mixed
    page = await served.stub.ListItems(list_items(conversation_id, page_size=size))
    assert (len(page.items), page.has_more, page.next_page_token != "") == (min(size, 6), more, more)


@pytest.mark.parametrize("query", [{}, {"order": ORDER_ASCENDING}, {"filter": 'type = "message"'}])
async def test_an_empty_page(stub: Any, conversation: Conversation, query: dict[str, Any]) -> None:
    """A conversation without items is an empty page, not an error."""
    page = await stub.ListItems(list_items(conversation.id, **query))
    assert (list(page.items), page.has_more, page.next_page_token) == ([], False, "")
    assert (page.first_id, page.last_id) == ("", "")


AFTERS = [
    ("msg_10", ORDER_ASCENDING, ["msg_11", "msg_12"]),
    ("msg_10", ORDER_DESCENDING, ["msg_9", "msg_8"]),
    ("msg_10", 0, ["msg_9", "msg_8"]),
    ("msg_50", ORDER_ASCENDING, ["msg_51", "msg_52"]),
    ("msg_50", ORDER_DESCENDING, ["msg_49", "msg_48"]),
    ("msg_105", ORDER_DESCENDING, ["msg_104", "msg_103"]),
    ("msg_105", ORDER_ASCENDING, []),
    ("msg_104", ORDER_ASCENDING, []),
    ("msg_1", ORDER_DESCENDING, []),
    ("msg_2", ORDER_DESCENDING, ["msg_1"]),
]


@pytest.mark.parametrize(("after", "order", "expected"), AFTERS)
async def test_after(hundred: tuple[Service, str], after: str, order: int, expected: list[str]) -> None:
    """A list goes on behind an item in its order, also when that item was deleted."""
    served, conversation_id = hundred
    page = await served.stub.ListItems(list_items(conversation_id, after=after, order=order, page_size=2))
    assert [item.id for item in page.items] == expected


async def test_after_an_id_that_was_used_again(stub: Any, conversation: Conversation) -> None:
    """An id that a deleted and a living item have stands for the living one."""
    for name in ("msg_a", "msg_b", "msg_c"):
        await stub.CreateItems(append(conversation.id, user_message(id=name)))
    await stub.DeleteItem(delete_item(conversation.id, "msg_a"))
    await stub.CreateItems(append(conversation.id, user_message(id="msg_a")))
    page = await stub.ListItems(list_items(conversation.id, after="msg_a"))
    assert [item.id for item in page.items] == ["msg_c", "msg_b"]


@pytest.mark.parametrize("order", [ORDER_ASCENDING, ORDER_DESCENDING])
async def test_after_an_unknown_item(stub: Any, conversation: Conversation, order: int) -> None:
    """An id that never was in this conversation is an invalid `after`, whether the conversation is empty or not."""
    await stub.CreateConversation(create(user_message(id="msg_elsewhere")))
    for _ in range(2):
        for name in ("msg_elsewhere", "msg_never"):
            failure = await problem(stub.ListItems(list_items(conversation.id, after=name, order=order)))
            assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "FIELD_INVALID")
            assert failure.fields == {"after": "after.exists"}
        await stub.CreateItems(append(conversation.id, user_message()))


BAD_LISTS = [
    ({"page_size": -1}, {"page_size"}),
    ({"page_size": -(2**31)}, {"page_size"}),
    ({"order": 3}, {"order"}),
    ({"after": ""}, {"after"}),
    ({"after": "a b"}, {"after"}),
    ({"include": [0]}, {"include[0]"}),
    ({"include": [9]}, {"include[0]"}),
    ({"filter": " " * 2049}, {"filter"}),
    ({"page_token": "x" * 513}, {"page_token"}),
    ({"page_size": -1, "order": 7, "include": [77]}, {"page_size", "order", "include[0]"}),
]


@pytest.mark.parametrize(("query", "fields"), BAD_LISTS)
async def test_bad_list_requests(
    stub: Any, conversation: Conversation, query: dict[str, Any], fields: set[str]
) -> None:
    """What a list cannot mean is refused at its fields."""
    failure = await problem(stub.ListItems(list_items(conversation.id, **query)))
    assert (failure.code, failure.reason, set(failure.fields)) == ("INVALID_ARGUMENT", "FIELD_INVALID", fields)


QUERY: dict[str, Any] = {"page_size": 2, "order": ORDER_ASCENDING, "filter": 'type = "message"'}
BOUND: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"page_size": 1}, True),
    ({"page_size": 0}, True),
    ({"order": ORDER_DESCENDING}, False),
    ({"order": 0}, False),
    ({"filter": ""}, False),
    ({"filter": 'type != "message"'}, False),
]


@pytest.mark.parametrize(("other", "works"), BOUND)
async def test_a_token_belongs_to_its_query(
    mixed: tuple[Service, str, list[Item]], other: dict[str, Any], *, works: bool
) -> None:
    """A token works for its own filter and order only; the page size may change."""
    served, conversation_id, _ = mixed
    token = (await served.stub.ListItems(list_items(conversation_id, **QUERY))).next_page_token
    call = served.stub.ListItems(list_items(conversation_id, **{**QUERY, **other}, page_token=token))
    if works:
        assert [item.id for item in (await call).items] == ["msg_3"]
        return
    failure = await problem(call)
    assert (failure.code, failure.reason, set(failure.fields)) == (
        "INVALID_ARGUMENT",
        "PAGE_TOKEN_INVALID",
        {"page_token"},
    )


async def test_a_token_belongs_to_its_conversation(mixed: tuple[Service, str, list[Item]]) -> None:
    """A token of one conversation does not page another."""
    served, conversation_id, _ = mixed
    token = (await served.stub.ListItems(list_items(conversation_id, page_size=2))).next_page_token
    other = await served.stub.CreateConversation(create(user_message()))
    failure = await problem(served.stub.ListItems(list_items(other.id, page_size=2, page_token=token)))
    assert failure.reason == "PAGE_TOKEN_INVALID"


async def test_a_changed_token(mixed: tuple[Service, str, list[Item]]) -> None:
    """A token that was changed or cut is told as such."""
    served, conversation_id, _ = mixed
    token = (await served.stub.ListItems(list_items(conversation_id, page_size=2))).next_page_token
    for bad in (token[:-1], f"{token}A", f"{'B' if token[0] == 'A' else 'A'}{token[1:]}"):
        failure = await problem(served.stub.ListItems(list_items(conversation_id, page_size=2, page_token=bad)))
        assert (bad, failure.reason) == (bad, "PAGE_TOKEN_INVALID")


async def test_appends_do_not_disturb_a_walk(stub: Any) -> None:
    """Items appended, and the cursor's own deleted, between two pages neither hide nor repeat one."""
    made = await stub.CreateConversation(create(*(user_message(id=f"msg_{n}") for n in range(4))))
    first = await stub.ListItems(list_items(made.id, page_size=2))
    await stub.CreateItems(append(made.id, user_message()))
    await stub.DeleteItem(delete_item(made.id, "msg_2"))
    second = await stub.ListItems(list_items(made.id, page_size=2, page_token=first.next_page_token))
    assert [item.id for item in second.items] == ["msg_1", "msg_0"]
    assert not second.has_more


FILTERS = [
    ("", [0, 1, 2, 3, 4, 5]),
    ('type = "message"', [0, 1, 3]),
    ('type != "message"', [2, 4, 5]),
    ('type = "function_call"', [2]),
    ('type = "brand_new"', [5]),
    ('type = "unknown"', []),
    ('type = "mess%"', []),
    ('type = "messag_"', []),
    ('type = "message\' OR 1=1 --"', []),
    ('role = "user"', [0, 3]),
    ('role != "user"', [1, 2, 4, 5]),
    ('role = "assistant"', [1]),
    ('role = ""', [2, 4, 5]),
    ('role = "ROLE_USER"', []),
    ('status = "completed"', [0, 1]),
    ('status != "completed"', [2, 3, 4, 5]),
    ('status = "in_progress"', [3]),
    ('status = "incomplete"', [2]),
    ('status = ""', [4, 5]),
    ('create_time < "{2}"', [0, 1]),
    ('create_time <= "{2}"', [0, 1, 2]),
    ('create_time > "{2}"', [3, 4, 5]),
    ('create_time >= "{2}"', [2, 3, 4, 5]),
    ('create_time > "{0}" AND create_time < "{4}" AND type = "message"', [1, 3]),
    ('type = "message" AND role = "user" AND status = "completed"', [0]),
    ('type = "message" AND type = "reasoning"', []),
]


@pytest.mark.parametrize("order", [ORDER_ASCENDING, ORDER_DESCENDING])
@pytest.mark.parametrize(("text", "expected"), FILTERS)
async def test_filters(mixed: tuple[Service, str, list[Item]], text: str, expected: list[int], order: int) -> None:
    """A filter finds exactly the items it says, in either order and over pages."""
    served, conversation_id, items = mixed
    times = [item.create_time.ToDatetime().isoformat() + "Z" for item in items]
    text = re.sub(r"\{(\d)\}", lambda match: times[int(match[1])], text)
    ids = [MIXED[number].item.id for number in expected]
    query = {"filter": text, "order": order, "page_size": 2}
    found = await walk(served, conversation_id, "token", **query) if ids else []
    assert list(chain(*found)) == (ids if order == ORDER_ASCENDING else ids[::-1])
    assert len((await served.stub.ListItems(list_items(conversation_id, filter=text))).items) == len(ids)


BAD_FILTERS = [
    ('owner = "x"', 0),
    ('type > "x"', 5),
    ('create_time > "soon"', 15),
]


@pytest.mark.parametrize(("text", "position"), BAD_FILTERS)
async def test_bad_filters(stub: Any, conversation: Conversation, text: str, position: int) -> None:
    """A filter that cannot be read is told with the place where reading stopped."""
    failure = await problem(stub.ListItems(list_items(conversation.id, filter=text)))
    assert (failure.code, failure.reason, failure.metadata) == (
        "INVALID_ARGUMENT",
        "FILTER_INVALID",
        {"position": str(position)},
    )
