"""Each call is one SQL statement, and the lists read an index, whatever the size of the tables."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from conversations.v1.conversation_pb2 import Conversation
from conversations.v1.conversations_service_pb2 import (
    ORDER_ASCENDING,
    ListConversationsRequest,
    WatchConversationsRequest,
    WatchItemsRequest,
)
from google.protobuf.duration_pb2 import Duration

from server.store import change_log
from server.store.connection.execution import Execute, Execution, Rows
from server.store.sql.changes import MAX_SCANNED
from server.store.sql.watches import POLL
from tests.support.build import (
    append,
    batch_get,
    copy_of,
    create,
    delete,
    delete_item,
    delete_many,
    fork,
    get,
    get_item,
    list_items,
    rewind,
    sets,
    update,
    user_message,
)
from tests.support.plans import nodes
from tests.support.service import Service, intercepted, recorded_statements, shared_service

ROWS = 20_000
BIG = "conv_big"
RID = {"request_id": "7d0d4a0e-9c4e-4f0a-8f7e-1f4f4b7c0a11"}


@pytest.fixture
async def conversation(stub: Any) -> Conversation:
    """A conversation with the items `msg_0` to `msg_4`."""
    made: Conversation = await stub.CreateConversation(create(*(user_message(id=f"msg_{n}") for n in range(5))))
    return made


CALLS: list[tuple[str, str, Any]] = [
    ("create", "CreateConversation", lambda _: create()),
    ("create with all", "CreateConversation", lambda _: create(metadata={"a": "1"}, attributes=sets(a=["1"]))),
    ("create with items", "CreateConversation", lambda _: create(user_message(), user_message())),
    ("create with id", "CreateConversation", lambda _: create(request_id=str(uuid4()))),
    ("create with items and id", "CreateConversation", lambda _: create(user_message(), request_id=str(uuid4()))),
    ("create with an end", "CreateConversation", lambda _: create(user_message(), ttl=Duration(seconds=90))),
    ("create with a reference", "CreateConversation", lambda target: create(copy_of(target, "msg_0"))),
    ("get", "GetConversation", get),
    ("update", "UpdateConversation", lambda target: update(target, metadata={"a": "1"})),
    ("update by key", "UpdateConversation", lambda target: update(target, "metadata.a", metadata={"a": "1"})),
    ("update with etag", "UpdateConversation", lambda target: update(target, etag='"1"', metadata={"a": "1"})),
    ("update of the end", "UpdateConversation", lambda target: update(target, ttl=Duration(seconds=90))),
    ("update with id", "UpdateConversation", lambda target: update(target, metadata={"a": "1"}, **RID)),
    ("append", "CreateItems", lambda target: append(target, user_message())),
    ("append twenty", "CreateItems", lambda target: append(target, *(user_message() for _ in range(20)))),
    ("append with id", "CreateItems", lambda target: append(target, user_message(), **RID)),
    ("append expecting", "CreateItems", lambda target: append(target, user_message(), expected_last_sequence=5)),
    (
        "append expecting with id",
        "CreateItems",
        lambda target: append(target, user_message(), expected_last_sequence=5, **RID),
    ),
    ("list", "ListItems", list_items),
    ("list ascending", "ListItems", lambda target: list_items(target, order=ORDER_ASCENDING)),
    ("list after", "ListItems", lambda target: list_items(target, after="msg_2")),
    ("list filtered", "ListItems", lambda target: list_items(target, filter='type = "message"')),
    ("get item", "GetItem", lambda target: get_item(target, "msg_2")),
    ("batch get", "BatchGetItems", lambda target: batch_get(target, "msg_2", "msg_0", "msg_2")),
    ("delete item", "DeleteItem", lambda target: delete_item(target, "msg_2")),
    ("delete item with id", "DeleteItem", lambda target: delete_item(target, "msg_2", **RID)),
    ("fork", "ForkConversation", fork),
    ("fork through an item", "ForkConversation", lambda target: fork(target, through_item_id="msg_2")),
    ("fork with id", "ForkConversation", lambda target: fork(target, str(uuid4()), through_sequence=2)),
    ("rewind", "RewindConversation", lambda target: rewind(target, 2)),
    ("rewind of nothing", "RewindConversation", lambda target: rewind(target, 5)),
    (
        "rewind expecting with id",
        "RewindConversation",
        lambda target: rewind(target, 2, expected_last_sequence=5, **RID),
    ),
    ("delete", "DeleteConversation", delete),
    ("delete with etag and id", "DeleteConversation", lambda target: delete(target, etag='"1"', **RID)),
    ("delete many", "DeleteConversations", lambda _: delete_many('metadata.topic = "none"')),
    ("count many", "DeleteConversations", lambda _: delete_many('metadata.topic = "none"', validate_only=True)),
    ("list conversations", "ListConversations", lambda _: ListConversationsRequest()),
    ("list conversations filtered", "ListConversations", lambda _: ListConversationsRequest(filter='metadata.a = "1"')),
]


@pytest.mark.parametrize(("method", "build"), [pytest.param(m, b, id=name) for name, m, b in CALLS])
async def test_one_statement(service: Service, conversation: Conversation, method: str, build: Any) -> None:
    """A call that succeeds is one round trip."""
    request = build(conversation.id)
    with recorded_statements(service.database) as texts:
        await getattr(service.stub, method)(request)
    assert len(texts) == 1, texts


async def test_a_page_by_token_is_one_statement(service: Service, conversation: Conversation) -> None:
    """Going on by token is one round trip, for items and for conversations."""
    items = await service.stub.ListItems(list_items(conversation.id, page_size=2))
    await service.stub.CreateConversation(create())
    chats = await service.stub.ListConversations(ListConversationsRequest(page_size=1))
    with recorded_statements(service.database) as texts:
        await service.stub.ListItems(list_items(conversation.id, page_size=2, page_token=items.next_page_token))
        await service.stub.ListConversations(ListConversationsRequest(page_size=1, page_token=chats.next_page_token))
    assert len(texts) == 2, texts


async def test_one_text_for_every_length(service: Service, conversation: Conversation) -> None:
    """The number of items or ids changes no statement, so that each is prepared once."""
    stub = service.stub
    with recorded_statements(service.database) as appended:
        for count in (1, 2, 20):
            await stub.CreateItems(append(conversation.id, *(user_message() for _ in range(count))))
    with recorded_statements(service.database) as fetched:
        for count in (1, 2, 100):
            await stub.BatchGetItems(batch_get(conversation.id, *["msg_1"] * count))
    assert (len(set(appended)), len(set(fetched))) == (1, 1)


async def test_values_are_never_in_the_text(service: Service, conversation: Conversation) -> None:
    """What a caller sends travels beside a statement, not in it."""
    value = "needle"
    with recorded_statements(service.database) as texts:
        await service.stub.UpdateConversation(update(conversation.id, f"metadata.{value}", metadata={value: value}))
        await service.stub.ListConversations(ListConversationsRequest(filter=f'metadata.{value} = "{value}"'))
        await service.stub.ListItems(list_items(conversation.id, filter=f'type = "{value}" AND role != "{value}"'))
        await service.stub.CreateItems(append(conversation.id, user_message(value, id=f"msg_{value}")))
    assert [text for text in texts if value in text] == []


# Plans


@pytest.fixture(scope="module")
async def large(postgres: str, template: str) -> AsyncIterator[Service]:
    """A service with 20,000 conversations, and 20,000 items in one of them, that the planner knows of."""
    async with shared_service(postgres, template) as served:
        seed = (await served.stub.CreateConversation(create(user_message(id="msg_1")))).id
        pool = served.database.pool
        columns = "tenant, owner, attributes, metadata, last_sequence, version, revision, update_time"
        await pool.execute(
            f"""INSERT INTO conversations (id, create_time, {columns})
            SELECT CASE n WHEN 1 THEN '{BIG}' ELSE 'conv_' || n END, create_time + n * interval '1 ms', {columns}
            FROM conversations, generate_series(1, {ROWS}) AS n WHERE id = $1""",
            seed,
        )
        columns = "version, type, role, status, create_time, body"
        for target in (f"'{BIG}'", "'conv_' || (2 + n % 2000)"):
            await pool.execute(
                f"""INSERT INTO items (conversation_id, sequence, item_id, {columns})
                SELECT {target}, n, 'msg_' || n, {columns}
                FROM items, generate_series(1, {ROWS}) AS n WHERE conversation_id = $1""",
                seed,
            )
        await pool.execute("ANALYZE")
        yield served


LISTS: list[tuple[str, str, Any]] = [
    ("delete many", "DeleteConversations", delete_many('forked_from = "conv_1"')),
    ("delete many by owner", "DeleteConversations", delete_many('owner = "nobody"')),
    ("items", "ListItems", list_items(BIG)),
    ("items ascending", "ListItems", list_items(BIG, order=ORDER_ASCENDING, page_size=100)),
    ("items after", "ListItems", list_items(BIG, after="msg_10000")),
    ("items after ascending", "ListItems", list_items(BIG, after="msg_10000", order=ORDER_ASCENDING)),
    ("items by type", "ListItems", list_items(BIG, filter='type = "message"')),
    ("items by time", "ListItems", list_items(BIG, filter='create_time > "2020-01-01T00:00:00Z"')),
    ("item", "GetItem", get_item(BIG, "msg_77")),
    ("batch", "BatchGetItems", batch_get(BIG, *(f"msg_{n * 199}" for n in range(1, 101)))),
    ("conversation", "GetConversation", get(BIG)),
    ("conversations", "ListConversations", ListConversationsRequest()),
    ("conversations ascending", "ListConversations", ListConversationsRequest(order_by="create_time", page_size=100)),
    ("conversations by owner", "ListConversations", ListConversationsRequest(filter='owner = "local"')),
    ("conversations by source", "ListConversations", ListConversationsRequest(filter='forked_from = "conv_1"')),
    (
        "conversations by time",
        "ListConversations",
        ListConversationsRequest(filter='create_time < "2100-01-01T00:00:00Z"'),
    ),
]


def faults(plan: dict[str, Any]) -> list[str]:
    """What grows with the tables: whole scans, and sorts of more than a page."""
    wrong = [f"{node['Node Type']} on {node['Relation Name']}" for node in nodes(plan) if is_whole_scan(node)]
    sorts = [node for node in nodes(plan) if node["Node Type"] in ("Sort", "Incremental Sort")]
    return wrong + ["sort of a table" for node in sorts if not is_of_a_page(node)]


def is_whole_scan(node: dict[str, Any]) -> bool:
    return node.get("Relation Name") in ("items", "conversations", "changes") and node["Node Type"] in (
        "Seq Scan",
        "Bitmap Heap Scan",
    )


def is_of_a_page(node: dict[str, Any]) -> bool:
    return any(child["Node Type"] in ("Limit", "Function Scan", "CTE Scan") for child in nodes(node))


async def ran(served: Service, method: str, request: Any) -> tuple[str, tuple[Any, ...]]:
    """The one statement that a call ran, and its arguments."""
    seen: list[tuple[str, tuple[Any, ...]]] = []

    async def keep(execute: Execute, execution: Execution) -> Rows:
        seen.append((execution.statement.text, execution.arguments[0]))
        return await execute(execution)

    with intercepted(served.database, keep):
        await getattr(served.stub, method)(request)
    ((text, arguments),) = seen
    return text, arguments


@pytest.mark.parametrize(("method", "request_"), [pytest.param(m, r, id=name) for name, m, r in LISTS])
async def test_reads_use_an_index(large: Service, method: str, request_: Any) -> None:
    """A page is read from an index, and no more of it than the page needs."""
    text, arguments = await ran(large, method, request_)
    async with large.database.pool.acquire() as connection, connection.transaction():
        found = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {text}", *arguments)
    plan = json.loads(found)[0]["Plan"]
    assert faults(plan) == []
    assert (
        max(node["Actual Rows"] * node["Actual Loops"] for node in nodes(plan)) <= 103
    )  # a page, one more to know of others, and one the window looks ahead


@pytest.mark.parametrize(("method", "request_"), [pytest.param(m, r, id=name) for name, m, r in LISTS])
async def test_generic_plans_use_an_index(large: Service, method: str, request_: Any) -> None:
    """The plan that a prepared statement keeps, made without knowing its values, reads an index too."""
    text, _ = await ran(large, method, request_)
    assert faults(await generic_plan(large, text)) == []


async def watched(served: Service, **start: Any) -> list[tuple[str, tuple[Any, ...]]]:
    """The statements, with their arguments, up to the first message of a watch."""
    seen: list[tuple[str, tuple[Any, ...]]] = []

    async def keep(execute: Execute, execution: Execution) -> Rows:
        seen.append((execution.statement.text, execution.arguments[0]))
        return await execute(execution)

    call = served.stub.WatchItems(WatchItemsRequest(conversation_id=BIG, **start))
    with intercepted(served.database, keep):
        await call.read()
    call.cancel()
    return seen


@pytest.mark.parametrize("start", [{"newest": 100}, {"after_sequence": 0}], ids=["newest", "all"])
async def test_watches_use_an_index(large: Service, start: dict[str, Any]) -> None:
    """Both statements read ranges of an index, of which they need a page, with values and without."""
    await large.database.pool.execute("UPDATE conversations SET last_sequence = $1 WHERE id = $2", ROWS, BIG)
    statements = (await watched(large, **start))[:2]
    assert len(statements) == 2
    async with large.database.pool.acquire() as pooled:
        for text, arguments in statements:
            found = await pooled.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {text}", *arguments)
            plan = json.loads(found)[0]["Plan"]
            assert faults(plan) == []
            assert max(node["Actual Rows"] * node["Actual Loops"] for node in nodes(plan)) <= 103


async def test_generic_plans_of_watches_use_an_index(large: Service) -> None:
    """Deletions have an index of their own, in the order in which they are told."""
    await large.database.pool.execute("UPDATE conversations SET last_sequence = $1 WHERE id = $2", ROWS, BIG)
    (start, _), (changes, _), *_ = await watched(large, newest=100)
    generic = [await generic_plan(large, text) for text in (start, changes)]
    assert [faults(plan) for plan in generic] == [[], []]
    assert "items_deletions" in str(generic[1])


@pytest.mark.parametrize("analyzed", [False, True], ids=["statistics of an empty log", "statistics of a large one"])
async def test_the_log_of_changes_uses_its_index(large: Service, *, analyzed: bool) -> None:
    """A read looks at a bounded part of the log, and at the conversations and items that it tells of, by their keys."""
    await change_log.turn_on(large.url, timedelta(hours=1))
    first = large.stub.WatchConversations(WatchConversationsRequest(include_items=True))
    token = (await first.read()).resume_token
    first.cancel()
    pool = large.database.pool
    await pool.execute("UPDATE conversations SET version = version + 1, last_sequence = last_sequence + 1")
    if analyzed:
        await pool.execute("ANALYZE changes")
    seen: list[tuple[str, tuple[Any, ...]]] = []

    async def keep(execute: Execute, execution: Execution) -> Rows:
        seen.append((execution.statement.text, execution.arguments[0]))
        return await execute(execution)

    call = large.stub.WatchConversations(WatchConversationsRequest(include_items=True, resume_token=token))
    with intercepted(large.database, keep):
        assert len((await call.read()).changes) == 100
    call.cancel()
    assert len(seen) >= 2
    for text, arguments in seen:
        found = json.loads(await pool.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {text}", *arguments))[0]["Plan"]
        assert faults(found) == []
        assert max(node["Actual Rows"] * node["Actual Loops"] for node in nodes(found)) <= MAX_SCANNED
        assert faults(await generic_plan(large, text, **large.database.bounds.session())) == []


async def generic_plan(served: Service, text: str, **settings: str) -> dict[str, Any]:
    """The plan that a prepared statement keeps, made without knowing its values, in a session with these settings."""
    settings["plan_cache_mode"] = "force_generic_plan"
    connection = await asyncpg.connect(served.url, server_settings=settings)
    try:
        await connection.execute(f"PREPARE kept AS {text}")
        parameters = await connection.fetchval(
            "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = 'kept'"
        )
        found = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE kept({', '.join(['NULL'] * parameters)})")
    finally:
        await connection.close()
    plan: dict[str, Any] = json.loads(found)[0]["Plan"]
    return plan


async def test_the_poll_uses_an_index(large: Service) -> None:
    """It looks each conversation up by its key."""
    assert faults(await generic_plan(large, POLL.text)) == []
