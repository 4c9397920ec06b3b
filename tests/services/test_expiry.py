"""Conversations that end by themselves: what callers send, when they are gone, and what the purge does."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import grpc.aio
import pytest
from conversations.v1.conversation_pb2 import Conversation
from conversations.v1.conversations_service_pb2 import ListConversationsRequest, WatchItemsRequest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Text, bindparam, select

from server.settings.retention import parse_retention
from server.store.purge import PurgeResult, purge
from server.store.retention import mark_all_expired
from server.store.sql.schema import conversations
from server.store.sql.statement import compile_statement
from server.store.sql.visibility import unexpired
from server.store.sql.watches import POLL
from tests.support.build import (
    ahead,
    append,
    batch_get,
    copy_of,
    create,
    delete,
    delete_item,
    get,
    get_item,
    list_items,
    sets,
    undelete,
    update,
    user_message,
)
from tests.support.postgres import fetch, fresh_database, row_locked
from tests.support.problems import problem
from tests.support.service import Service, running_service

DAY = timedelta(days=1)
LONGEST = timedelta(days=36_525)
SOON = timedelta(minutes=2)  # between two clocks, and for a slow machine


def duration(**of: float) -> Duration:
    """A duration, as of `timedelta`."""
    made = Duration()
    made.FromTimedelta(timedelta(**of))
    return made


def moment(after: timedelta) -> Timestamp:
    """A time so long from now."""
    made = Timestamp()
    made.FromDatetime(datetime.now(UTC) + after)
    return made


def ahead_of_now(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a conversation, whose `expire_time` is so long from now if it is a timedelta."""
    return {name: moment(value) if isinstance(value, timedelta) else value for name, value in fields.items()}


def left(conversation: Conversation) -> timedelta | None:
    """How long a conversation will live, to two minutes below; None for ever."""
    if not conversation.HasField("expire_time"):
        return None
    rest = conversation.expire_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)
    return timedelta(seconds=round((rest + SOON / 2) / SOON) * SOON.total_seconds())


async def expire(service: Service, conversation_id: str, when: str = "now()") -> None:
    """Lets a conversation end."""
    await fetch(service.url, f"UPDATE conversations SET expire_time = {when} WHERE id = '{conversation_id}'")


# --- what callers send

CREATES: list[tuple[str, dict[str, Any], timedelta | None, timedelta]] = [
    ("nothing", {}, None, timedelta()),
    ("ttl", {"ttl": duration(days=2)}, 2 * DAY, timedelta()),
    ("the shortest", {"ttl": duration(minutes=1)}, timedelta(minutes=1), timedelta()),
    ("the longest", {"ttl": duration(days=36_525)}, LONGEST, timedelta()),
    ("expire_time", {"expire_time": 3 * DAY}, 3 * DAY, timedelta()),
    ("idle_ttl", {"idle_ttl": duration(days=4)}, 4 * DAY, 4 * DAY),
    ("ttl and idle_ttl", {"ttl": duration(days=2), "idle_ttl": duration(days=1)}, 2 * DAY, DAY),
]


@pytest.mark.parametrize(("fields", "lives", "idle"), [pytest.param(*rest, id=name) for name, *rest in CREATES])
@pytest.mark.parametrize("request_id", [False, True], ids=["", "with request id"])
async def test_create(
    stub: Any, fields: dict[str, Any], lives: timedelta | None, idle: timedelta, *, request_id: bool
) -> None:
    """A conversation ends when its creator says, and every answer shows it."""
    made = await stub.CreateConversation(create(request_id=str(uuid4()) if request_id else "", **ahead_of_now(fields)))
    assert left(made) is None if lives is None else abs((left(made) or LONGEST) - lives) <= SOON
    assert made.idle_ttl.ToTimedelta() == idle
    assert made.HasField("idle_ttl") is bool(idle)
    assert await stub.GetConversation(get(made.id)) == made
    appended = await stub.CreateItems(append(made.id, user_message()))
    assert appended.items[0].sequence == 1


async def test_creates_that_share_a_statement(stub: Any) -> None:
    """Each of many creates at once gets its own end, or none."""
    asked: list[dict[str, Any]] = [{"ttl": duration(days=1 + n)} if n % 3 else {} for n in range(24)]
    made = await asyncio.gather(*(stub.CreateConversation(create(**fields)) for fields in asked))
    for number, conversation in enumerate(made):
        read = await stub.GetConversation(get(conversation.id))
        assert left(read) == ((1 + number) * DAY if number % 3 else None)


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("a time that is over", {"expire_time": -timedelta(seconds=1)}, "expire_time", "expire_time.range"),
    ("beyond 100 years", {"expire_time": LONGEST + DAY}, "expire_time", "expire_time.range"),
    ("no time of this calendar", {"expire_time": Timestamp(seconds=10**15)}, "expire_time", "expire_time.range"),
    ("59 seconds", {"ttl": Duration(seconds=59)}, "ttl", "duration.gte_lte"),
    ("just below a minute", {"ttl": Duration(seconds=59, nanos=999_999_999)}, "ttl", "duration.gte_lte"),
    ("100 years and a bit", {"ttl": Duration(seconds=3_155_760_000, nanos=1)}, "ttl", "duration.gte_lte"),
    ("an idle_ttl of nothing", {"idle_ttl": Duration()}, "idle_ttl", "duration.gte_lte"),
    ("a negative idle_ttl", {"idle_ttl": Duration(seconds=-60)}, "idle_ttl", "duration.gte_lte"),
    ("nanos of another sign", {"ttl": Duration(seconds=90, nanos=-1)}, "ttl", "duration"),
    ("too many nanos", {"ttl": Duration(seconds=90, nanos=2_000_000_000)}, "ttl", "duration"),
]


@pytest.mark.parametrize(("fields", "name", "rule"), [pytest.param(*rest, id=name) for name, *rest in REFUSED])
async def test_what_is_refused(stub: Any, fields: dict[str, Any], name: str, rule: str) -> None:
    """Times that cannot be are refused by create and update, with the field and the rule."""
    made = await stub.CreateConversation(create())
    for call in (
        stub.CreateConversation(create(**ahead_of_now(fields))),
        stub.UpdateConversation(update(made.id, "expire_time", "idle_ttl", **ahead_of_now(fields))),
    ):
        found = await problem(call)
        assert (found.code, found.reason, found.fields) == (
            "INVALID_ARGUMENT",
            "FIELD_INVALID",
            {f"conversation.{name}": rule},
        )


# Before, paths, sent, days left after, idle after.
UPDATES: list[tuple[str, dict[str, Any], tuple[str, ...], dict[str, Any], int | None, int]] = [
    ("ttl", {}, ("ttl",), {"ttl": duration(days=2)}, 2, 0),
    ("expire_time", {}, ("expire_time",), {"expire_time": 2 * DAY}, 2, 0),
    ("a path, and the other field", {}, ("expire_time",), {"ttl": duration(days=2)}, 2, 0),
    ("without a mask", {}, (), {"ttl": duration(days=2), "idle_ttl": duration(days=1)}, 2, 1),
    ("earlier", {"ttl": duration(days=5)}, ("ttl",), {"ttl": duration(days=2)}, 2, 0),
    ("idle_ttl alone begins now", {"ttl": duration(days=5)}, ("idle_ttl",), {"idle_ttl": duration(days=2)}, 2, 2),
    ("never", {"ttl": duration(days=5)}, ("ttl",), {}, None, 0),
    ("no idle_ttl", {"idle_ttl": duration(days=5)}, ("idle_ttl",), {}, 5, 0),
    ("everything is cleared", {"ttl": duration(days=5), "idle_ttl": duration(days=1)}, ("*",), {}, None, 0),
    ("metadata only", {"ttl": duration(days=5)}, ("metadata",), {"ttl": duration(days=1)}, 5, 0),
]


@pytest.mark.parametrize(
    ("before", "paths", "sent", "days", "idle"), [pytest.param(*rest, id=name) for name, *rest in UPDATES]
)
async def test_update(
    stub: Any, before: dict[str, Any], paths: tuple[str, ...], sent: dict[str, Any], days: int | None, idle: int
) -> None:
    """The mask says what changes; the etag moves."""
    made = await stub.CreateConversation(create(metadata={"a": "1"}, **before))
    changed = await stub.UpdateConversation(update(made.id, *paths, **ahead_of_now(sent)))
    assert left(changed) == (None if days is None else days * DAY)
    assert changed.idle_ttl.ToTimedelta() == idle * DAY
    assert changed.etag != made.etag
    assert await stub.GetConversation(get(made.id)) == changed


async def test_what_was_read_can_be_sent_back(stub: Any) -> None:
    """A conversation with an end that was read and is sent back unchanged keeps it."""
    made = await stub.CreateConversation(create(ttl=duration(days=5), idle_ttl=duration(days=1)))
    again = update(made.id, "*")
    again.conversation.CopyFrom(made)
    changed = await stub.UpdateConversation(again)
    assert (changed.expire_time, changed.idle_ttl) == (made.expire_time, made.idle_ttl)


# --- appends move the end


async def test_an_append_moves_the_end(service: Service) -> None:
    """An append moves the end to idle_ttl after it, never to an earlier time, and a read does not."""
    stub = service.stub
    made = await stub.CreateConversation(create(idle_ttl=duration(days=2)))
    await expire(service, made.id, "now() + interval '1 day'")
    assert left(await stub.GetConversation(get(made.id))) == DAY
    await stub.CreateItems(append(made.id, user_message()))
    assert left(await stub.GetConversation(get(made.id))) == 2 * DAY
    await expire(service, made.id, "now() + interval '9 days'")
    await stub.CreateItems(append(made.id, user_message(), expected_last_sequence=1, request_id=str(uuid4())))
    assert left(await stub.GetConversation(get(made.id))) == 9 * DAY


async def test_an_append_does_not_move_the_end_beyond_the_limit(service: Service) -> None:
    """The limit of the tenant holds for appends too."""
    made = await service.stub.CreateConversation(create(idle_ttl=duration(days=5)))
    await fetch(
        service.url,
        "UPDATE conversations SET limit_time = now() + interval '3 days', expire_time = now() + interval '1 day'"
        f" WHERE id = '{made.id}'",
    )
    await service.stub.CreateItems(append(made.id, user_message()))
    assert left(await service.stub.GetConversation(get(made.id))) == 3 * DAY


async def test_shared_appends_move_the_end(service: Service) -> None:
    """So do appends that share a statement, and those of a stream."""
    stub = service.stub
    made = await stub.CreateConversation(create(idle_ttl=duration(days=2)))
    await expire(service, made.id, "now() + interval '1 day'")
    await asyncio.gather(*(stub.CreateItems(append(made.id, user_message())) for _ in range(20)))
    assert left(await stub.GetConversation(get(made.id))) == 2 * DAY
    await expire(service, made.id, "now() + interval '1 day'")
    stream = stub.AppendItems()
    await stream.write(ahead(made.id, user_message()))
    await stream.done_writing()
    assert [_ async for _ in stream]
    assert left(await stub.GetConversation(get(made.id))) == 2 * DAY


_END_BACKENDS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid != pg_backend_pid()"""


async def test_appends_stay_heap_only(own_service: Service) -> None:
    """Appends that move the end change no index: 99.9 % of their updates of the conversation are heap-only."""
    made = await own_service.stub.CreateConversation(create(idle_ttl=duration(days=2)))
    count = 1_000
    for _ in range(count // 50):
        await asyncio.gather(
            *(own_service.stub.CreateItems(append(made.id, user_message(), request_id=str(uuid4()))) for _ in range(50))
        )
    await fetch(own_service.url, _END_BACKENDS)  # one that is idle reports its counts after ten seconds only
    query = "SELECT n_tup_upd AS all, n_tup_hot_upd AS hot FROM pg_stat_user_tables WHERE relname = 'conversations'"
    async with asyncio.timeout(15):
        while (row := (await fetch(own_service.url, query))[0])["all"] < 20:  # noqa: ASYNC110 - they end soon
            await asyncio.sleep(0.05)
    assert row["hot"] >= 0.999 * row["all"]


# --- gone at the instant


async def stream_of(stub: Any, request: Any) -> Any:
    """The first answer of a stream of appends."""
    stream = stub.AppendItems()
    await stream.write(request)
    return await stream.read()


METHODS: list[tuple[str, Any]] = [
    ("GetConversation", lambda stub, row: stub.GetConversation(get(row))),
    ("UpdateConversation", lambda stub, row: stub.UpdateConversation(update(row, metadata={"a": "b"}))),
    ("UpdateConversation of its end", lambda stub, row: stub.UpdateConversation(update(row, "ttl"))),
    ("DeleteConversation", lambda stub, row: stub.DeleteConversation(delete(row))),
    ("UndeleteConversation", lambda stub, row: stub.UndeleteConversation(undelete(row))),
    ("CreateItems", lambda stub, row: stub.CreateItems(append(row, user_message()))),
    ("AppendItems", lambda stub, row: stream_of(stub, ahead(row, user_message()))),
    ("GetItem", lambda stub, row: stub.GetItem(get_item(row, "msg_1"))),
    ("BatchGetItems", lambda stub, row: stub.BatchGetItems(batch_get(row, "msg_1"))),
    ("ListItems", lambda stub, row: stub.ListItems(list_items(row))),
    ("DeleteItem", lambda stub, row: stub.DeleteItem(delete_item(row, "msg_1"))),
    ("WatchItems", lambda stub, row: stub.WatchItems(WatchItemsRequest(conversation_id=row)).read()),
    ("a reference to its item", lambda stub, row: stub.CreateConversation(create(copy_of(row, "msg_1")))),
]


@pytest.fixture(scope="module")
async def expired(service: Service) -> str:
    """A conversation with the item `msg_1` that expired a microsecond ago, and that nobody has marked."""
    made = await service.stub.CreateConversation(create(user_message(id="msg_1"), ttl=duration(days=1)))
    await expire(service, made.id)
    return str(made.id)


@pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in METHODS])
async def test_an_expired_conversation_is_not_found(service: Service, expired: str, call: Any) -> None:
    """Every method answers as for one that never was, although its rows are there."""
    found = await problem(call(service.stub, expired))
    assert found.code == "NOT_FOUND"
    assert found.reason in {"CONVERSATION_NOT_FOUND", "ITEM_NOT_FOUND"}
    assert await fetch(service.url, f"SELECT FROM conversations WHERE id = '{expired}' AND delete_time IS NULL")


async def test_an_expired_conversation_is_not_listed(service: Service) -> None:
    """It is in no list, filtered or not."""
    made = await service.stub.CreateConversation(create(metadata={"list": str(uuid4())}, ttl=duration(days=1)))
    query = f'metadata.list = "{made.metadata["list"]}"'
    for newest_first in ("create_time desc", "create_time"):
        request = ListConversationsRequest(filter=query, order_by=newest_first)
        await expire(service, made.id, "now() + interval '1 hour'")
        assert [each.id for each in (await service.stub.ListConversations(request)).conversations] == [made.id]
        await expire(service, made.id)
        assert not (await service.stub.ListConversations(request)).conversations
    assert made.id not in [
        each.id
        for each in (await service.stub.ListConversations(ListConversationsRequest(page_size=100))).conversations
    ]


async def test_repeated_writes_after_the_end(service: Service) -> None:
    """A request id from before the end finds nothing after it: the create makes no second conversation."""
    stub, rids = service.stub, [str(uuid4()) for _ in range(4)]
    made = await stub.CreateConversation(create(user_message(id="msg_1"), request_id=rids[0], ttl=duration(days=1)))
    repeats = [
        lambda: stub.CreateConversation(create(user_message(id="msg_1"), request_id=rids[0], ttl=duration(days=1))),
        lambda: stub.CreateItems(append(made.id, user_message(id="msg_2"), request_id=rids[1])),
        lambda: stub.UpdateConversation(update(made.id, metadata={"a": "1"}, request_id=rids[2])),
        lambda: stub.DeleteConversation(delete(made.id, request_id=rids[3])),
    ]
    for repeat in repeats:
        await repeat()
    await fetch(service.url, f"UPDATE conversations SET expire_time = now() WHERE id = '{made.id}'")
    for repeat in repeats:
        assert (await problem(repeat())).code == "NOT_FOUND"


@pytest.mark.parametrize(("microseconds", "is_there"), [(0, False), (1, True)])
async def test_the_instant(service: Service, microseconds: int, *, is_there: bool) -> None:
    """It is there until the microsecond before its end, by the clock of the database, and not at it."""
    made = await service.stub.CreateConversation(create())
    columns = conversations.c
    statement = compile_statement(
        select(columns.id).where(columns.id == bindparam("id", type_=Text), unexpired()), "read"
    )
    connection = await asyncpg.connect(service.url)
    try:
        async with connection.transaction():  # in which now() stands still
            await connection.execute(
                "UPDATE conversations SET expire_time = now() + $1 WHERE id = $2",
                timedelta(microseconds=microseconds),
                made.id,
            )
            found = await connection.fetch(statement.text, made.id)
    finally:
        await connection.close()
    assert bool(found) is is_there


async def test_a_watch_ends(service: Service) -> None:
    """A watch that is open at the end tells, within a poll, that the conversation is gone, and is done."""
    made = await service.stub.CreateConversation(create(user_message(), ttl=duration(days=1)))
    asked = {"ids": [made.id], "versions": [1]}
    assert not await service.database.fetch(POLL, asked)
    watch = service.stub.WatchItems(WatchItemsRequest(conversation_id=made.id), timeout=10)
    await watch.read()
    await expire(service, made.id)
    (change,) = (await watch.read()).changes
    assert change.WhichOneof("change") == "conversation_deleted"
    assert await watch.read() is grpc.aio.EOF
    assert [tuple(row) for row in await service.database.fetch(POLL, asked)] == [(made.id, None)]


# --- marked and removed


async def rows_of(url: str, conversation_id: str) -> list[int]:
    """How many rows of a conversation there are: itself, items, attributes, timers."""
    keys = {"conversations": "id", "items": "conversation_id", "conversation_attributes": "conversation_id"}
    keys["expirations"] = "conversation_id"
    parts = [f"(SELECT count(*) FROM {table} WHERE {key} = '{conversation_id}')" for table, key in keys.items()]
    ((row,),) = [await fetch(url, f"SELECT {', '.join(f'{part} AS c{n}' for n, part in enumerate(parts))}")]
    return list(row.values())


async def make_due(service: Service, conversation_id: str, after: str = "0 s") -> None:
    """Lets the purge look at a conversation now, which ends after an interval."""
    await expire(service, conversation_id, f"now() + interval '{after}'")
    await fetch(service.url, f"UPDATE expirations SET check_time = now() WHERE conversation_id = '{conversation_id}'")


async def test_the_purge_removes_what_has_expired(own_service: Service) -> None:
    """It does not wait as long as for what was deleted, and takes what was deleted before the end as well."""
    stub, url = own_service.stub, own_service.url
    fields: dict[str, Any] = {"ttl": duration(days=1), "attributes": sets(teams=["a"])}
    gone, deleted, living, never = [
        await stub.CreateConversation(create(user_message(), user_message(), **each))
        for each in (fields, fields, fields, {})
    ]
    await stub.DeleteConversation(delete(deleted.id))
    await make_due(own_service, gone.id)
    await make_due(own_service, deleted.id)
    await make_due(own_service, living.id, "1 hour")
    done = await purge(url, timedelta(days=30))
    assert done == PurgeResult(conversations=2, items=4, expired=2)
    for each, rows in ((gone, [0, 0, 0, 0]), (deleted, [0, 0, 0, 0]), (living, [1, 2, 1, 1]), (never, [1, 2, 0, 0])):
        assert await rows_of(url, each.id) == rows
    assert await purge(url, timedelta(days=30)) == PurgeResult()
    (timer,) = await fetch(url, "SELECT check_time > now() + interval '50 min' AS is_moved FROM expirations")
    assert timer["is_moved"]


async def test_a_timer_is_never_later_than_the_end(service: Service) -> None:
    """Whatever sets an end or brings it forward, the purge looks in time."""
    made = await service.stub.CreateConversation(create(ttl=duration(days=9)))
    changes: list[dict[str, Any]] = [{"ttl": duration(days=5)}, {"ttl": duration(days=7)}, {"ttl": duration(days=2)}]
    for fields in changes:
        await service.stub.UpdateConversation(update(made.id, "ttl", **fields))
        (row,) = await fetch(
            service.url,
            "SELECT check_time <= expire_time AS is_early FROM expirations JOIN conversations ON id = conversation_id"
            f" WHERE id = '{made.id}'",
        )
        assert row["is_early"]
    later = await service.stub.CreateConversation(create())
    await service.stub.UpdateConversation(update(later.id, "ttl", ttl=duration(days=1)))
    assert await fetch(service.url, f"SELECT FROM expirations WHERE conversation_id = '{later.id}'")


async def test_a_locked_conversation_is_marked_later(own_service: Service) -> None:
    """Nobody waits for it; the others are marked."""
    stub, url = own_service.stub, own_service.url
    locked, free = [await stub.CreateConversation(create(ttl=duration(days=1))) for _ in range(2)]
    for each in (locked, free):
        await make_due(own_service, each.id)
    async with row_locked(url, locked.id):
        assert await mark_all_expired(url) == 1
    assert await mark_all_expired(url) == 1
    assert await mark_all_expired(url) == 0


async def test_more_than_one_step_is_marked(own_service: Service) -> None:
    """More conversations than one statement takes are marked in one run; timers of removed ones are forgotten."""
    await fetch(
        own_service.url,
        "INSERT INTO conversations SELECT 'conv_' || n, '', 'local', '{}', '{}', 0, 1, 1, now(), now(), NULL, 0, NULL,"
        " now() FROM generate_series(1, 1100) AS n",
        "INSERT INTO expirations SELECT 'conv_' || n, now() FROM generate_series(1, 1700) AS n",
    )
    assert await mark_all_expired(own_service.url) == 1_100
    assert not await fetch(own_service.url, "SELECT FROM expirations")


async def test_an_append_and_the_mark_race(own_service: Service) -> None:
    """Whichever comes first decides: an append before the end keeps the conversation, one after it is refused."""
    stub, url = own_service.stub, own_service.url
    for _ in range(30):
        made = await stub.CreateConversation(create(idle_ttl=duration(days=1)))
        await make_due(own_service, made.id, "3 ms")
        appending = asyncio.ensure_future(stub.CreateItems(append(made.id, user_message())))
        marking = [asyncio.ensure_future(mark_all_expired(url)) for _ in range(2)]
        answer: Any = (await asyncio.gather(appending, return_exceptions=True))[0]
        marked = sum(await asyncio.gather(*marking))
        if isinstance(answer, grpc.aio.AioRpcError):
            assert answer.code() is grpc.StatusCode.NOT_FOUND
            assert (await problem(stub.GetConversation(get(made.id)))).code == "NOT_FOUND"
        else:
            assert marked == 0
            assert (await stub.GetConversation(get(made.id))).last_sequence == 1
            assert left(await stub.GetConversation(get(made.id))) == DAY


# --- the retention file


@pytest.fixture
async def ruled(postgres: str, template: str, tmp_path: Path) -> AsyncIterator[tuple[Service, Path]]:
    """A service with a retention file that holds for the tenant of tests."""
    path = tmp_path / "retention.yaml"
    path.write_text('"*": {ttl: 90d, at_most: 365d}')
    async with fresh_database(postgres, template) as url, running_service(url, retention_file=path) as served:
        yield served, path


async def test_defaults_and_limit(ruled: tuple[Service, Path]) -> None:
    """A caller who says nothing gets the default; what is beyond the limit is lowered, and the answer shows it."""
    stub = ruled[0].stub
    cases: list[tuple[dict[str, Any], int]] = [
        ({}, 90),
        ({"ttl": duration(days=3)}, 3),
        ({"idle_ttl": duration(days=3)}, 3),
        ({"ttl": duration(days=366)}, 365),
        ({"idle_ttl": duration(days=400)}, 365),
    ]
    for fields, days in cases:
        assert left(await stub.CreateConversation(create(**fields))) == days * DAY
    made = await stub.CreateConversation(create())
    assert left(await stub.UpdateConversation(update(made.id, "ttl", ttl=duration(days=900)))) == 365 * DAY
    assert left(await stub.UpdateConversation(update(made.id, "ttl"))) == 365 * DAY  # never


async def test_a_changed_file(ruled: tuple[Service, Path]) -> None:
    """A new file is in force within seconds, a broken one changes nothing."""
    path, stub = ruled[1], ruled[0].stub
    path.write_text('"*": {ttl: never}')
    await asyncio.sleep(1.1)
    assert left(await stub.CreateConversation(create())) == 90 * DAY
    path.write_text('"": {idle_ttl: 2d}')
    await asyncio.sleep(1.1)
    made = await stub.CreateConversation(create())
    assert (left(made), made.idle_ttl.ToTimedelta()) == (2 * DAY, 2 * DAY)


async def test_a_lower_limit_reaches_older_conversations(own_service: Service) -> None:
    """The purge lowers the end of those that are beyond it, once; those of other tenants stay."""
    stub, url = own_service.stub, own_service.url
    asked: list[dict[str, Any]] = [{}, {"ttl": duration(days=9)}, {}]
    made = [await stub.CreateConversation(create(**each)) for each in asked]
    await fetch(url, f"UPDATE conversations SET create_time = now() - interval '3 days' WHERE id = '{made[2].id}'")
    other = await stub.CreateConversation(create())
    await fetch(url, f"UPDATE conversations SET tenant = 'other' WHERE id = '{other.id}'")
    rules = parse_retention(b'{"*": {at_most: 2d}, other: {at_most: 90d}, nobody: {ttl: 1d}}')
    done = await purge(url, timedelta(days=30), retention=rules)
    assert done == PurgeResult(conversations=1, expired=1)
    assert "NOT_FOUND" == (await problem(stub.GetConversation(get(made[2].id)))).code
    for each in made[:2]:
        lowered = await stub.GetConversation(get(each.id))
        assert (left(lowered), lowered.etag) == (2 * DAY, '"2"')
    (row,) = await fetch(url, f"SELECT limit_time - create_time AS most FROM conversations WHERE id = '{other.id}'")
    assert row["most"] == 90 * DAY
    await purge(url, timedelta(days=30), retention=rules)
    assert (await stub.GetConversation(get(made[0].id))).etag == '"2"'
    await purge(url, timedelta(days=30), retention=parse_retention(b'"*": {at_most: 3d}'))  # raised: no promise broken
    assert left(await stub.GetConversation(get(made[0].id))) == 2 * DAY


async def test_a_limit_reaches_a_locked_conversation_later(own_service: Service) -> None:
    """Nobody waits for it, and it is not forgotten."""
    made = await own_service.stub.CreateConversation(create())
    await fetch(own_service.url, "UPDATE conversations SET create_time = now() - interval '1 day'")
    rules = parse_retention(b'"*": {at_most: 3d}')
    async with row_locked(own_service.url, made.id):
        await purge(own_service.url, timedelta(days=30), retention=rules)
    assert left(await own_service.stub.GetConversation(get(made.id))) is None
    await purge(own_service.url, timedelta(days=30), retention=rules)
    assert left(await own_service.stub.GetConversation(get(made.id))) == 2 * DAY
