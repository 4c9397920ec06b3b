"""Request ids: a write that is sent again answers as before and writes nothing."""

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from conversations.v1.conversation_pb2 import Conversation
from google.protobuf.empty_pb2 import Empty

from tests.support.build import (
    append,
    batch_get,
    copy_of,
    create,
    delete,
    delete_item,
    fork,
    get,
    list_items,
    rewind,
    text_of,
    update,
    user_message,
)
from tests.support.problems import problem
from tests.support.service import Service

# One request of each write, on a conversation that has an item `msg_1`.
WRITES: dict[str, Callable[[str, str], Any]] = {
    "CreateConversation": lambda _, request_id: create(user_message("new"), metadata={"a": "1"}, request_id=request_id),
    "UpdateConversation": lambda target, request_id: update(target, metadata={"a": "2"}, request_id=request_id),
    "DeleteConversation": lambda target, request_id: delete(target, request_id=request_id),
    "CreateItems": lambda target, request_id: append(target, user_message("new"), request_id=request_id),
    "DeleteItem": lambda target, request_id: delete_item(target, "msg_1", request_id=request_id),
    "ForkConversation": lambda target, request_id: fork(target, request_id, metadata={"a": "2"}),
    "RewindConversation": lambda target, request_id: rewind(target, 1, request_id=request_id),
}
# Another request of the same method.
OTHERS: dict[str, Callable[[str, str], Any]] = {
    "CreateConversation": lambda _, request_id: create(user_message("new"), metadata={"a": "9"}, request_id=request_id),
    "UpdateConversation": lambda target, request_id: update(target, metadata={"a": "9"}, request_id=request_id),
    "DeleteConversation": lambda target, request_id: delete(target, etag='"9"', request_id=request_id),
    "CreateItems": lambda target, request_id: append(target, user_message("other"), request_id=request_id),
    "DeleteItem": lambda target, request_id: delete_item(target, "msg_2", request_id=request_id),
    "ForkConversation": lambda target, request_id: fork(target, request_id, through_sequence=1),
    "RewindConversation": lambda target, request_id: rewind(target, 0, request_id=request_id),
}
each_write = pytest.mark.parametrize("method", list(WRITES))


# What takes `msg_1` away, by method.
GONE: dict[str, Callable[[str], Any]] = {
    "DeleteItem": lambda source: delete_item(source, "msg_1"),
    "DeleteConversation": delete,
}


@pytest.fixture
def request_id() -> str:
    """An id that no other test uses."""
    return str(uuid4())


@pytest.fixture
async def conversation(stub: Any) -> Conversation:
    """A conversation with the items `msg_1` and `msg_2`."""
    made: Conversation = await stub.CreateConversation(
        create(user_message("one", id="msg_1"), user_message("two", id="msg_2"), metadata={"a": "1"})
    )
    return made


async def rows(service: Service) -> list[Any]:
    """Everything the database holds, for comparison."""
    pool = service.database.pool
    tables = ("conversations", "items", "requests")
    return [
        await pool.fetchval(f"SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {table} AS t")
        for table in tables
    ]


@each_write
async def test_a_replay_answers_as_before(
    service: Service, conversation: Conversation, request_id: str, method: str
) -> None:
    """The same request under the same id gives the first answer, and not a row changes."""
    call, request = getattr(service.stub, method), WRITES[method](conversation.id, request_id)
    first = await call(request)
    before = await rows(service)
    assert [await call(request) for _ in range(3)] == [first] * 3
    assert await rows(service) == before


@each_write
async def test_another_request_under_the_id(
    service: Service, conversation: Conversation, request_id: str, method: str
) -> None:
    """Another request under a used id is refused, and not a row changes."""
    call = getattr(service.stub, method)
    await call(WRITES[method](conversation.id, request_id))
    before = await rows(service)
    failure = await problem(call(OTHERS[method](conversation.id, request_id)))
    assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "REQUEST_ID_REUSED")
    assert failure.metadata == {"requestId": request_id}
    assert failure.details == ("ErrorInfo", "PreconditionFailure")
    assert await rows(service) == before


@each_write
async def test_upper_case_is_the_same_id(
    service: Service, conversation: Conversation, request_id: str, method: str
) -> None:
    """A UUID in upper case is the same id, and its request the same request."""
    call = getattr(service.stub, method)
    first = await call(WRITES[method](conversation.id, request_id))
    before = await rows(service)
    assert await call(WRITES[method](conversation.id, request_id.upper())) == first
    assert await rows(service) == before


@each_write
@pytest.mark.parametrize(
    "wrong",
    [
        "x",
        "0" * 32,
        "{7d0d4a0e-9c4e-4f0a-8f7e-1f4f4b7c0a11}",
        "7d0d4a0e-9c4e-4f0a-8f7e-1f4f4b7c0a1g",
        "7d0d4a0e-9c4e-4f0a-8f7e-1f4f4b7c0a11\n",
        " ",
        "\0",
    ],
)
async def test_no_uuid_is_no_request_id(stub: Any, conversation: Conversation, method: str, wrong: str) -> None:
    """A request id is a UUID in the form of its RFC."""
    failure = await problem(getattr(stub, method)(WRITES[method](conversation.id, wrong)))
    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert failure.fields == {"request_id": "string.uuid"}
    assert await stub.GetConversation(get(conversation.id)) == conversation


@each_write
async def test_two_ids_are_two_writes(stub: Any, conversation: Conversation, request_id: str, method: str) -> None:
    """The same request under another id is another write."""
    call = getattr(stub, method)
    first = await call(WRITES[method](conversation.id, request_id))
    again = call(WRITES[method](conversation.id, str(uuid4())))
    if method.startswith("Delete"):
        assert (await problem(again)).code == "NOT_FOUND"
    elif method == "RewindConversation":
        assert await again == first  # there is nothing more to delete
    else:
        assert await again != first


async def test_one_id_serves_every_method(stub: Any, conversation: Conversation, request_id: str) -> None:
    """An id is kept for one method and one conversation, so all may use the same one."""
    other = await stub.CreateConversation(create(user_message(id="msg_1"), metadata={"a": "1"}))
    for target in (conversation, other):
        for method in ("CreateItems", "UpdateConversation", "DeleteItem", "RewindConversation", "DeleteConversation"):
            await getattr(stub, method)(WRITES[method](target.id, request_id))
    source = await stub.CreateConversation(create(user_message(id="msg_1")))
    forked = await stub.ForkConversation(WRITES["ForkConversation"](source.id, request_id))
    made = await stub.CreateConversation(WRITES["CreateConversation"]("", request_id))
    assert 5 == len({made.id, forked.id, source.id, conversation.id, other.id})


FAILURES: list[tuple[str, Callable[[str, str], Any], str]] = [
    ("CreateConversation", lambda _, rid: create(*[user_message(id="msg_1")] * 2, request_id=rid), "ITEM_EXISTS"),
    ("CreateConversation", lambda _, rid: create(copy_of("conv_x", "msg_x"), request_id=rid), "ITEM_NOT_FOUND"),
    ("CreateConversation", lambda _, rid: create(user_message(id="fc_1"), request_id=rid), "FIELD_INVALID"),
    (
        "UpdateConversation",
        lambda target, rid: update(target, metadata={"a": "2"}, etag='"9"', request_id=rid),
        "ETAG_MISMATCH",
    ),
    ("UpdateConversation", lambda target, rid: update(target, "nope", request_id=rid), "FIELD_INVALID"),
    ("DeleteConversation", lambda target, rid: delete(target, etag='"9"', request_id=rid), "ETAG_MISMATCH"),
    ("CreateItems", lambda target, rid: append(target, user_message(id="msg_1"), request_id=rid), "ITEM_EXISTS"),
    ("CreateItems", lambda target, rid: append(target, copy_of("conv_x", "msg_x"), request_id=rid), "ITEM_NOT_FOUND"),
    (
        "CreateItems",
        lambda target, rid: append(target, user_message(), expected_last_sequence=9, request_id=rid),
        "SEQUENCE_MISMATCH",
    ),
    ("DeleteItem", lambda target, rid: delete_item(target, "msg_never", request_id=rid), "ITEM_NOT_FOUND"),
    ("ForkConversation", lambda target, rid: fork(target, rid, through_item_id="msg_never"), "ITEM_NOT_FOUND"),
    ("ForkConversation", lambda target, rid: fork("conv_x", rid), "CONVERSATION_NOT_FOUND"),
    (
        "RewindConversation",
        lambda target, rid: rewind(target, 1, expected_last_sequence=9, request_id=rid),
        "SEQUENCE_MISMATCH",
    ),
]


@pytest.mark.parametrize(("method", "failing", "reason"), FAILURES)
async def test_a_failed_write_does_not_use_up_the_id(
    service: Service,
    conversation: Conversation,
    request_id: str,
    method: str,
    failing: Callable[[str, str], Any],
    reason: str,
) -> None:
    """A refused write leaves no row, so its id is free for a better request."""
    call, before = getattr(service.stub, method), await rows(service)
    assert [(await problem(call(failing(conversation.id, request_id)))).reason for _ in range(2)] == [reason] * 2
    assert await rows(service) == before
    await call(WRITES[method](conversation.id, request_id))


async def test_a_replayed_append_keeps_its_expectation(stub: Any, conversation: Conversation, request_id: str) -> None:
    """An append that expected a place is answered again although the place has moved."""
    request = append(conversation.id, user_message("new"), expected_last_sequence=2, request_id=request_id)
    first = await stub.CreateItems(request)
    assert [item.sequence for item in first.items] == [3]
    assert await stub.CreateItems(request) == first
    await stub.CreateItems(append(conversation.id, user_message()))
    assert await stub.CreateItems(request) == first
    without = append(conversation.id, user_message("new"), request_id=request_id)
    assert (await problem(stub.CreateItems(without))).reason == "REQUEST_ID_REUSED"


async def test_a_replay_gives_chosen_ids_and_copies_again(
    stub: Any, conversation: Conversation, request_id: str
) -> None:
    """A replayed append with chosen ids and references is no clash with itself."""
    source = await stub.CreateConversation(create(user_message("source", id="msg_s")))
    items = [user_message("mine", id="msg_m"), copy_of(source.id, "msg_s"), user_message("minted")]
    request = append(conversation.id, *items, request_id=request_id)
    first = await stub.CreateItems(request)
    await stub.DeleteConversation(delete(source.id))
    again = await stub.CreateItems(request)
    assert again == first
    assert [text_of(item) for item in again.items] == ["mine", "source", "minted"]


async def test_a_replay_shows_the_present_state(stub: Any, request_id: str) -> None:
    """A repeated create or update answers the conversation as it is by then."""
    request = create(metadata={"a": "1"}, request_id=request_id)
    made = await stub.CreateConversation(request)
    changing = update(made.id, metadata={"a": "2"}, etag=made.etag, request_id=request_id)
    await stub.UpdateConversation(changing)
    latest = await stub.UpdateConversation(update(made.id, metadata={"a": "3"}))
    assert await stub.CreateConversation(request) == latest
    assert await stub.UpdateConversation(changing) == latest


async def test_a_replay_after_the_conversation_was_deleted(
    stub: Any, conversation: Conversation, request_id: str
) -> None:
    """Only the delete itself can be repeated once the conversation is gone."""
    replays = {
        method: WRITES[method](conversation.id, request_id)
        for method in ("UpdateConversation", "CreateItems", "DeleteItem", "DeleteConversation")
    }
    for method, request in replays.items():
        await getattr(stub, method)(request)
    assert await stub.DeleteConversation(replays.pop("DeleteConversation")) == Empty()
    for method, request in replays.items():
        failure = await problem(getattr(stub, method)(request))
        assert (failure.code, failure.reason) == ("NOT_FOUND", "CONVERSATION_NOT_FOUND")
        assert failure.metadata == {"conversationId": conversation.id}


async def test_a_replayed_create_after_a_delete(stub: Any, request_id: str) -> None:
    """Repeating the create of a deleted conversation does not make it anew."""
    request = create(request_id=request_id)
    made = await stub.CreateConversation(request)
    await stub.DeleteConversation(delete(made.id))
    assert (await problem(stub.CreateConversation(request))).metadata == {"conversationId": made.id}


async def test_a_replayed_append_after_an_item_was_deleted(
    stub: Any, conversation: Conversation, request_id: str
) -> None:
    """Repeating an append of which an item is gone does not append it again."""
    request = append(conversation.id, user_message(id="msg_a"), user_message(id="msg_b"), request_id=request_id)
    await stub.CreateItems(request)
    await stub.DeleteItem(delete_item(conversation.id, "msg_b"))
    failure = await problem(stub.CreateItems(request))
    assert (failure.reason, failure.metadata["itemId"]) == ("ITEM_NOT_FOUND", "msg_b")
    assert [item.id for item in (await stub.ListItems(list_items(conversation.id))).items] == [
        "msg_a",
        "msg_2",
        "msg_1",
    ]


@each_write
async def test_many_at_once_are_one_write(
    service: Service, conversation: Conversation, request_id: str, method: str
) -> None:
    """Of many equal calls at the same time one writes, and all get its answer."""
    call, request = getattr(service.stub, method), WRITES[method](conversation.id, request_id)
    answers = await asyncio.gather(*(call(request) for _ in range(8)))
    assert answers == answers[:1] * 8
    made = answers[0].id if method in ("CreateConversation", "ForkConversation") else conversation.id
    pool = service.database.pool
    count = "SELECT count(*) FROM requests WHERE conversation_id = $1"
    assert await pool.fetchval(count, made) == 1


async def test_concurrent_appends_are_dense(stub: Any, conversation: Conversation) -> None:
    """Appends at the same time give consecutive sequences, each request's together."""
    requests = [append(conversation.id, *(user_message() for _ in range(3))) for _ in range(20)]
    answers = await asyncio.gather(*(stub.CreateItems(request) for request in requests))
    placed = sorted([item.sequence for item in answer.items] for answer in answers)
    assert placed == [[n, n + 1, n + 2] for n in range(3, 63, 3)]
    newest = (await stub.ListItems(list_items(conversation.id, page_size=1))).items[0]
    assert (await stub.BatchGetItems(batch_get(conversation.id, newest.id))).items[0].sequence == 62


# --- a source that is gone


@pytest.mark.parametrize("gone", list(GONE))
async def test_a_create_is_repeated_without_its_source(
    stub: Any, conversation: Conversation, request_id: str, gone: str
) -> None:
    """A create with references answers with the conversation it made, also once an item it copied is gone."""
    request = create(copy_of(conversation.id, "msg_1"), request_id=request_id)
    made = await stub.CreateConversation(request)
    await getattr(stub, gone)(GONE[gone](conversation.id))
    assert made == await stub.CreateConversation(request)
    other = create(copy_of(conversation.id, "msg_1"), metadata={"a": "9"}, request_id=request_id)
    assert "REQUEST_ID_REUSED" == (await problem(stub.CreateConversation(other))).reason
    await stub.DeleteConversation(delete(made.id))
    assert "CONVERSATION_NOT_FOUND" == (await problem(stub.CreateConversation(request))).reason


async def test_a_create_without_its_source_is_refused(stub: Any, conversation: Conversation, request_id: str) -> None:
    """A create that never succeeded names the item that is gone."""
    await stub.DeleteItem(delete_item(conversation.id, "msg_1"))
    request = create(copy_of(conversation.id, "msg_1"), request_id=request_id)
    for _ in range(2):
        found = await problem(stub.CreateConversation(request))
        assert ("ITEM_NOT_FOUND", "msg_1") == (found.reason, found.metadata["itemId"])


@pytest.mark.parametrize("gone", list(GONE))
async def test_an_append_is_repeated_without_its_source(
    stub: Any, conversation: Conversation, request_id: str, gone: str
) -> None:
    """An append of references answers with the items it made, also once those it copied are gone."""
    target = await stub.CreateConversation(create())
    request = append(target.id, copy_of(conversation.id, "msg_1"), request_id=request_id)
    made = await stub.CreateItems(request)
    await getattr(stub, gone)(GONE[gone](conversation.id))
    assert made == await stub.CreateItems(request)
