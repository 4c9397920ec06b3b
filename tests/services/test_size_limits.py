"""What items may have together in bytes, also when they are copied from elsewhere."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from conversations.v1.conversations_service_pb2 import AppendItemsRequest, ListConversationsRequest
from google.rpc.error_details_pb2 import ErrorInfo

from tests.support.build import append, copy_of, create, delete_item, get, sets, user_message
from tests.support.postgres import fresh_database
from tests.support.problems import problem
from tests.support.service import Service, recorded_statements, running_service

MESSAGE_BYTES = 256 * 1024
LIMIT = MESSAGE_BYTES * 15 // 16  # of items together


@pytest.fixture(scope="module")
async def small(postgres: str, template: str) -> AsyncIterator[Service]:
    """A service with small messages."""
    async with (
        fresh_database(postgres, template) as url,
        running_service(url, max_message_bytes=MESSAGE_BYTES, max_item_bytes=128 * 1024) as served,
    ):
        yield served


async def sources(served: Service, sizes: list[int]) -> str:
    """A conversation with the items `msg_0` and so on, whose stored bodies have these sizes in bytes."""
    made = await served.stub.CreateConversation(create())
    for number, size in enumerate(sizes):
        await store_sized(served, made.id, f"msg_{number}", size)
    return str(made.id)


async def store_sized(served: Service, conversation_id: str, item_id: str, size: int) -> None:
    """Stores an item of this size; it is tried again where the time in it took more or fewer bytes."""
    query = "SELECT length(body) FROM items WHERE conversation_id = $1 AND item_id = $2 AND delete_time IS NULL"
    text = "x" * (size - 200)
    for _ in range(50):
        await served.stub.CreateItems(append(conversation_id, user_message(text, id=item_id)))
        missing = size - await served.database.pool.fetchval(query, conversation_id, item_id)
        if not missing:
            return
        await served.stub.DeleteItem(delete_item(conversation_id, item_id))
        text = "x" * (len(text) + missing)
    raise AssertionError(size)


def copies(source: str, count: int) -> list[Any]:
    """References to the first items of a conversation."""
    return [copy_of(source, f"msg_{number}") for number in range(count)]


@pytest.mark.parametrize("beyond", [0, 1])
async def test_references_together(small: Service, beyond: int) -> None:
    """Items that are copied may have as many bytes together as those that are sent: all are stored, or none."""
    source = await sources(small, [LIMIT // 3, LIMIT // 3, LIMIT - 2 * (LIMIT // 3) + beyond])
    target = await small.stub.CreateConversation(create())
    request = append(target.id, *copies(source, 3), request_id=str(uuid4()))
    if beyond:
        for _ in range(2):
            found = await problem(small.stub.CreateItems(request))
            assert ("INVALID_ARGUMENT", "LIMIT_EXCEEDED") == (found.code, found.reason)
            assert ({"items": "items.max_bytes"}, str(LIMIT)) == (found.fields, found.metadata["limit"])
    else:
        made = await small.stub.CreateItems(request)
        assert made == await small.stub.CreateItems(request)
    stored = (await small.stub.GetConversation(get(target.id))).last_sequence
    assert (0 if beyond else 3) == stored


@pytest.mark.parametrize("beyond", [0, 1])
async def test_references_in_a_create(small: Service, beyond: int) -> None:
    """A create with references has the same limit."""
    source = await sources(small, [LIMIT // 2, LIMIT - LIMIT // 2 + beyond])
    request = create(*copies(source, 2))
    if beyond:
        assert "LIMIT_EXCEEDED" == (await problem(small.stub.CreateConversation(request))).reason
    else:
        assert 2 == (await small.stub.CreateConversation(request)).last_sequence


async def test_references_beside_what_is_sent(small: Service) -> None:
    """What is sent and what is copied count together."""
    source = await sources(small, [LIMIT // 2, LIMIT // 2])
    sent = user_message("x" * 100)
    target = await small.stub.CreateConversation(create())
    assert "LIMIT_EXCEEDED" == (await problem(small.stub.CreateConversation(create(sent, *copies(source, 2))))).reason
    assert (
        "LIMIT_EXCEEDED" == (await problem(small.stub.CreateItems(append(target.id, sent, *copies(source, 2))))).reason
    )
    assert 2 == len((await small.stub.CreateItems(append(target.id, sent, *copies(source, 1)))).items)


async def test_a_missing_reference_is_told_first(small: Service) -> None:
    """Sizes are told of only to whoever may read all that is copied."""
    source = await sources(small, [LIMIT // 2, LIMIT // 2, LIMIT // 2])
    target = await small.stub.CreateConversation(create())
    request = append(target.id, *copies(source, 3), copy_of(source, "msg_none"))
    assert "ITEM_NOT_FOUND" == (await problem(small.stub.CreateItems(request))).reason


async def test_a_stream_reads_nothing_back(small: Service) -> None:
    """AppendItems answers with ids, so it reads no item: one statement, and for a repetition the ids."""
    source = await sources(small, [LIMIT // 3] * 3)
    target = await small.stub.CreateConversation(create())
    call = small.stub.AppendItems()
    request = AppendItemsRequest(conversation_id=target.id, items=copies(source, 3), request_id=str(uuid4()))
    with recorded_statements(small.database) as texts:
        await call.write(request)
        first = (await call.read()).appended
    assert 1 == len(texts)
    with recorded_statements(small.database) as texts:
        await call.write(request)
        again = (await call.read()).appended
    assert [] == [text for text in texts[1:] if "body" in text]
    assert first == again
    assert ["msg_0", "msg_1", "msg_2"] == first.item_ids
    over = AppendItemsRequest(items=[*copies(source, 3), user_message("x" * (LIMIT // 3))])
    await call.write(over)
    info = ErrorInfo()
    assert (await call.read()).error.details[0].Unpack(info)
    assert "LIMIT_EXCEEDED" == info.reason
    await call.done_writing()


async def test_a_repetition_beyond_the_limit(small: Service) -> None:
    """An append that was stored under a larger limit and is repeated under a smaller one is told so."""
    limits = {"max_message_bytes": 4 * MESSAGE_BYTES, "max_item_bytes": 2 * MESSAGE_BYTES}
    source = await sources(small, [LIMIT // 2] * 3)
    target = await small.stub.CreateConversation(create())
    request = append(target.id, *copies(source, 3), request_id=str(uuid4()))
    async with running_service(small.url, **limits) as large:
        await large.stub.CreateItems(request)
    found = await problem(small.stub.CreateItems(request))
    assert ("RESOURCE_EXHAUSTED", "LIMIT_EXCEEDED") == (found.code, found.reason)


# --- lists of conversations


async def test_a_page_of_large_conversations(small: Service) -> None:
    """A page of conversations ends where a message is full; by token all are listed, none twice."""
    values = [f"{number:03}" + "v" * 200 for number in range(100)]
    made = [
        (await small.stub.CreateConversation(create(metadata={"list": "large"}, attributes=sets(teams=values)))).id
        for _ in range(20)
    ]
    found: list[str] = []
    token, pages = "", 0
    while pages == 0 or token:
        request = ListConversationsRequest(filter='metadata.list = "large"', page_size=20, page_token=token)
        page = await small.stub.ListConversations(request)
        assert page.ByteSize() <= MESSAGE_BYTES
        assert page.conversations
        found += [each.id for each in page.conversations]
        token, pages = page.next_page_token, pages + 1
    assert made[::-1] == found
    assert 2 <= pages <= 3


@pytest.mark.parametrize("count", [9, 10, 11])
async def test_the_last_page_is_known(small: Service, count: int) -> None:
    """A page that holds the rest has no token, whether it is full by number or not."""
    for _ in range(count):
        await small.stub.CreateConversation(create(metadata={"last": f"{count}"}))
    request = ListConversationsRequest(filter=f'metadata.last = "{count}"', page_size=10)
    page = await small.stub.ListConversations(request)
    assert (min(count, 10), count > 10) == (len(page.conversations), bool(page.next_page_token))
