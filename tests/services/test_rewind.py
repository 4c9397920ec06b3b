"""RewindConversation: all items behind a place are gone at once, or none of them."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import grpc.aio
import pytest
from conversations.v1.conversation_pb2 import Conversation
from conversations.v1.conversations_service_pb2 import (
    ORDER_ASCENDING,
    RewindConversationRequest,
    WatchConversationsRequest,
)

from server.store import change_log
from server.store.sql.rewinds import MAX_ITEMS
from tests.support.access import ANN, BOB, EVERYTHING, GuardedService
from tests.support.build import (
    append,
    create,
    delete_item,
    get,
    get_item,
    list_items,
    rewind,
    text_of,
    user_message,
)
from tests.support.histories import grow, stored_items
from tests.support.problems import problem, problem_of
from tests.support.service import Service, list_all_items, recorded_statements, running_service
from tests.support.watching import KEEP, watching


async def made(stub: Any, count: int) -> Conversation:
    """A conversation with the items `msg_1` to `msg_<count>`."""
    conversation: Conversation = await stub.CreateConversation(
        create(*(user_message(str(number), id=f"msg_{number}") for number in range(1, count + 1)))
    )
    return conversation


async def texts(stub: Any, conversation_id: str) -> list[str]:
    """The texts of a conversation's items, oldest first."""
    return [text_of(item) for item in await list_all_items(stub, conversation_id, ORDER_ASCENDING)]


async def outcome(call: Awaitable[Any]) -> Any:
    """The answer of a call, or the code and the reason of its refusal."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        told = problem_of(error)
        return f"{told.code} {told.reason}"


def reason_of(ended: Any) -> str:
    """How an `outcome` ended, without the answer."""
    return ended if isinstance(ended, str) else "OK"


# --- what it does


@pytest.mark.parametrize("sequence", [0, 1, 2, 4, 5, 6, 2**63 - 1])
async def test_every_cut(service: Service, sequence: int) -> None:
    """What stands behind the place is gone, what stands before it is as it was, and the log goes on behind both."""
    stub, kept = service.stub, min(sequence, 5)
    before = await made(stub, 5)
    items = await stored_items(service.database.pool, before.id)
    assert await stub.RewindConversation(rewind(before.id, sequence)) == before  # etag and last_sequence too
    assert await stored_items(service.database.pool, before.id) == {n: items[n] for n in range(1, kept + 1)}
    assert await stub.GetConversation(get(before.id)) == before
    for gone in range(kept + 1, 6):
        assert (await problem(stub.GetItem(get_item(before.id, f"msg_{gone}")))).reason == "ITEM_NOT_FOUND"
    again = await stub.CreateItems(append(before.id, user_message("again", id="msg_5" if kept < 5 else "msg_6")))
    assert [item.sequence for item in again.items] == [6]
    assert await texts(stub, before.id) == [*map(str, range(1, kept + 1)), "again"]


async def test_the_content_is_gone(service: Service) -> None:
    """Of an item that was deleted nothing remains that somebody wrote."""
    name = (await made(service.stub, 3)).id
    await service.stub.RewindConversation(rewind(name, 1))
    rows = await service.database.pool.fetch(
        "SELECT body, delete_time, version FROM items WHERE conversation_id = $1 AND sequence > 1", name
    )
    assert [b"", b""] == [row["body"] for row in rows]
    assert 1 == len({(row["delete_time"], row["version"]) for row in rows})


async def test_gaps_stay_gaps(stub: Any) -> None:
    """Items that were deleted before do not count, and a list goes on behind an item that a rewind deleted."""
    name = (await made(stub, 5)).id
    await stub.DeleteItem(delete_item(name, "msg_4"))
    await stub.RewindConversation(rewind(name, 2))
    assert await texts(stub, name) == ["1", "2"]
    await stub.CreateItems(append(name, user_message("new")))
    page = await stub.ListItems(list_items(name, order=ORDER_ASCENDING, after="msg_3"))
    assert [item.sequence for item in page.items] == [6]


async def test_one_statement(service: Service) -> None:
    """A rewind is one round trip, whether something is behind the place or not."""
    name = (await made(service.stub, 3)).id
    for _ in range(2):
        with recorded_statements(service.database) as statements:
            await service.stub.RewindConversation(rewind(name, 1, request_id=str(uuid4())))
        assert len(statements) == 1


async def test_nothing_behind_the_place(service: Service) -> None:
    """A rewind that deletes nothing changes nothing, so that nobody is told of it."""
    name = (await made(service.stub, 2)).id
    version = "SELECT version FROM conversations WHERE id = $1"
    before = await service.database.pool.fetchval(version, name)
    await service.stub.RewindConversation(rewind(name, 2))
    assert await service.database.pool.fetchval(version, name) == before
    await service.stub.RewindConversation(rewind(name, 1))
    assert await service.database.pool.fetchval(version, name) == before + 1


# --- bounds and preconditions


async def test_only_so_many_at_once(service: Service) -> None:
    """A thousand items can be deleted at once; of one more the call says how far it may go, and deletes none."""
    stub, pool = service.stub, service.database.pool
    name = (await made(stub, 3)).id
    await grow(pool, name, MAX_ITEMS + 3)
    await stub.DeleteItem(delete_item(name, "msg_3"))  # does not count
    told = await problem(stub.RewindConversation(rewind(name, 0)))
    assert ("INVALID_ARGUMENT", "LIMIT_EXCEEDED") == (told.code, told.reason)
    assert told.metadata == {"limit": str(MAX_ITEMS), "sequence": "2"}
    assert told.fields == {"sequence": "sequence.max_items"}
    told = await problem(stub.RewindConversation(rewind(name, 1)))
    assert told.metadata["sequence"] == "2"
    assert len(await stored_items(pool, name)) == MAX_ITEMS + 2
    await stub.RewindConversation(rewind(name, 2))
    assert [*await stored_items(pool, name)] == [1, 2]


INVALID: dict[str, tuple[RewindConversationRequest, dict[str, str]]] = {
    "no place": (RewindConversationRequest(conversation_id="conv_a"), {"sequence": "required"}),
    "negative": (rewind("conv_a", -1), {"sequence": "int64.gte"}),
    "everything": (
        RewindConversationRequest(conversation_id="x", expected_last_sequence=-1, request_id="x"),
        {
            "conversation_id": "string.pattern",
            "sequence": "required",
            "expected_last_sequence": "int64.gte",
            "request_id": "string.uuid",
        },
    ),
}


@pytest.mark.parametrize(("request_", "fields"), INVALID.values(), ids=INVALID)
async def test_what_is_invalid(stub: Any, request_: RewindConversationRequest, fields: dict[str, str]) -> None:
    """An unset place is not 0, and every violation is told at once."""
    told = await problem(stub.RewindConversation(request_))
    assert ("INVALID_ARGUMENT", "FIELD_INVALID", fields) == (told.code, told.reason, told.fields)


async def test_what_somebody_appended_is_not_deleted_unseen(stub: Any) -> None:
    """With the last sequence that the caller knows, a rewind leaves later items to another decision."""
    name = (await made(stub, 3)).id
    await stub.CreateItems(append(name, user_message("new")))
    told = await problem(stub.RewindConversation(rewind(name, 1, expected_last_sequence=3)))
    assert ("ABORTED", "SEQUENCE_MISMATCH", {"lastSequence": "4"}) == (told.code, told.reason, told.metadata)
    assert await texts(stub, name) == ["1", "2", "3", "new"]
    await stub.RewindConversation(rewind(name, 1, expected_last_sequence=4))
    assert await texts(stub, name) == ["1"]


async def test_a_repeated_call_deletes_nothing_more(stub: Any) -> None:
    """What was appended after a rewind is not touched by its retry."""
    name = (await made(stub, 3)).id
    request = rewind(name, 1, request_id=str(uuid4()), expected_last_sequence=3)
    await stub.RewindConversation(request)
    await stub.CreateItems(append(name, user_message("new")))
    again = await stub.RewindConversation(request)
    assert (again.last_sequence, await texts(stub, name)) == (4, ["1", "new"])
    empty = rewind(name, 4, request_id=str(uuid4()))
    await stub.RewindConversation(empty)
    await stub.CreateItems(append(name, user_message("newer")))
    await stub.RewindConversation(empty)
    assert await texts(stub, name) == ["1", "new", "newer"]


# --- the policy

SOME_ITEMS = "regex:item::msg_[2468]"
REFUSING = {
    f"{action} of some": (
        [{"forbid": {"actions": [action], "resource": SOME_ITEMS}, "unless": "user is owner"}],
        action,
    )
    for action in ("delete", "read")
}


@pytest.mark.parametrize(("rules", "action"), REFUSING.values(), ids=REFUSING)
async def test_one_item_refuses_all(guarded: GuardedService, rules: list[Any], action: str) -> None:
    """Who may not delete one of the items, or not even see it, deletes none of them."""
    name = (await made(guarded.by(ANN), 5)).id
    guarded.obey([*rules, {"permit": {"actions": EVERYTHING}}])
    told = await problem(guarded.by(BOB).RewindConversation(rewind(name, 1)))
    assert ("PERMISSION_DENIED", {"resource": "item", "action": action}) == (told.code, told.metadata)
    assert await texts(guarded.by(ANN), name) == ["1", "2", "3", "4", "5"]
    await guarded.by(BOB).RewindConversation(rewind(name, 4))  # `msg_5` is not among them
    assert await texts(guarded.by(ANN), name) == ["1", "2", "3", "4"]
    request = rewind(name, 1, request_id=str(uuid4()))
    await guarded.by(ANN).RewindConversation(request)
    assert await texts(guarded.by(ANN), name) == ["1"]


async def test_the_policy_is_asked_when_nothing_is_behind(guarded: GuardedService) -> None:
    """A caller who may only read is refused, whether there is something to delete or not."""
    name = (await made(guarded.by(ANN), 1)).id
    guarded.obey([{"permit": {"actions": EVERYTHING}, "when": "user is owner"}, {"permit": {"actions": ["read"]}}])
    assert "PERMISSION_DENIED" == (await problem(guarded.by(BOB).RewindConversation(rewind(name, 1)))).code
    count = await guarded.value("SELECT count(*) FROM requests WHERE conversation_id = $1", name)
    assert count == 0


async def test_a_repeated_call_is_authorized_by_what_it_deleted(guarded: GuardedService) -> None:
    """Rules on the ids of items are asked about those that are gone."""
    name = (await made(guarded.by(ANN), 4)).id
    request = rewind(name, 1, request_id=str(uuid4()))
    guarded.obey([{"permit": {"actions": EVERYTHING}}])
    await guarded.by(BOB).RewindConversation(request)
    await guarded.by(BOB).RewindConversation(request)
    guarded.obey([*REFUSING["delete of some"][0], {"permit": {"actions": EVERYTHING}}])
    assert "PERMISSION_DENIED" == (await problem(guarded.by(BOB).RewindConversation(request))).code


# --- watches


async def test_watches_see_deletes(service: Service) -> None:
    """Each item is told as deleted, once, also to a watch that resumes in the middle of them."""
    stub, count = service.stub, 250
    name = (await made(stub, 1)).id
    await grow(service.database.pool, name, count)
    gone = [f"{sequence} is gone" for sequence in range(2, count + 1) if sequence != 10]
    async with watching(service, name) as watch:
        await watch.next()
        await stub.DeleteItem(delete_item(name, "msg_10"))
        assert await watch.next() == ["10 is gone"]
        await stub.RewindConversation(rewind(name, 1))
        first = await watch.next()
        token = watch.token
        assert first + await watch.changes(len(gone) - len(first)) == gone
        assert await watch.is_quiet()
    async with watching(service, name, resume_token=token) as watch:
        assert await watch.changes(len(gone) - len(first)) == gone[len(first) :]


async def test_watches_of_all_conversations_see_deletes(own_service: Service) -> None:
    """The log tells of them with the change of their conversation, in as many messages as it takes."""
    await change_log.turn_on(own_service.url, KEEP)
    stub, count = own_service.stub, 250
    name = (await made(stub, 1)).id
    await grow(own_service.database.pool, name, count)
    call = stub.WatchConversations(WatchConversationsRequest(include_items=True), timeout=30)
    await call.read()
    await stub.RewindConversation(rewind(name, 1))
    found: list[int] = []
    while len(found) < count - 1:
        for change in (await call.read()).changes:
            assert change.conversation.id == name
            found += [each.deleted_item.sequence for each in change.items]
    call.cancel()
    assert found == [*range(2, count + 1)]


# --- races


@asynccontextmanager
async def uncommitted_append(service: Service, conversation_id: str) -> AsyncIterator[None]:
    """Another process appends an item, which is committed at the end."""
    connection = await asyncpg.connect(service.url)
    try:
        async with connection.transaction():
            await connection.execute(
                "UPDATE conversations SET last_sequence = last_sequence + 1, version = version + 1 WHERE id = $1",
                conversation_id,
            )
            await connection.execute(
                """INSERT INTO items
                   SELECT id, last_sequence, 'msg_late', version, 'message', 'user', '', now(), NULL, ''
                   FROM conversations WHERE id = $1""",
                conversation_id,
            )
            yield
    finally:
        await connection.close()


@pytest.mark.parametrize("expected", [None, 3])
async def test_an_append_that_commits_meanwhile(service: Service, expected: int | None) -> None:
    """An item that is committed before the rewind is behind the place too, although the snapshot does not have it."""
    name = (await made(service.stub, 3)).id
    async with uncommitted_append(service, name):
        request = rewind(name, 1, **({} if expected is None else {"expected_last_sequence": expected}))
        task = asyncio.ensure_future(outcome(service.stub.RewindConversation(request)))
        await asyncio.sleep(0.1)
    reason = reason_of(await task)
    left = [*await stored_items(service.database.pool, name)]
    assert (reason, left) == (("OK", [1]) if expected is None else ("ABORTED SEQUENCE_MISMATCH", [1, 2, 3, 4]))


async def race(services: tuple[Service, Service], runs: int) -> Counter[str]:
    """Rewinds beside an append and a delete of an item in another process; how often which of them was first."""
    seen: Counter[str] = Counter()
    here, there = (service.stub for service in services)
    for _ in range(runs):
        name = (await made(here, 4)).id
        rewound, appended, removed = await asyncio.gather(
            delayed(here.RewindConversation, rewind(name, 2)),
            delayed(there.CreateItems, append(name, user_message("new"))),
            delayed(there.DeleteItem, delete_item(name, "msg_3")),
        )
        assert [item.sequence for item in appended.items] == [5]
        # Either the append came first, and the rewind tells of its place and deleted it, or it came second.
        assert (rewound.last_sequence, await texts(here, name)) in ((5, ["1", "2"]), (4, ["1", "2", "new"]))
        assert reason_of(removed) in ("OK", "NOT_FOUND ITEM_NOT_FOUND")
        seen[f"{rewound.last_sequence} {reason_of(removed).split()[0]}"] += 1
    return seen


async def delayed(method: Any, request: Any) -> Any:
    """The outcome of a call that begins a moment later, or not."""
    await asyncio.sleep(random.choice((0, 0, 0.001, 0.002)))
    return await outcome(method(request))


@pytest.fixture
async def processes(service: Service) -> AsyncIterator[tuple[Service, Service]]:
    """Two services on one database, which know nothing of each other's locks."""
    async with running_service(service.url) as other:
        yield service, other


async def test_a_rewind_has_a_place_among_other_writes(processes: tuple[Service, Service]) -> None:
    """Beside an append and a delete of another process it comes before or after each of them, never in between."""
    assert (await race(processes, 30)).total() == 30


@pytest.mark.slow
async def test_many_races(processes: tuple[Service, Service]) -> None:
    """The same, a thousand times, in which every order happens."""
    seen = await race(processes, 1000)
    assert set(seen) == {"4 OK", "4 NOT_FOUND", "5 OK", "5 NOT_FOUND"}, seen


async def test_a_conversation_that_never_rests(service: Service) -> None:
    """When others change the conversation at every try, the caller is told to try again, and nothing is deleted."""
    name = (await made(service.stub, 3)).id
    pool, ending = service.database.pool, asyncio.Event()

    async def disturb() -> None:
        connection = await asyncpg.connect(service.url)
        try:
            while not ending.is_set():
                async with connection.transaction():
                    await connection.execute("UPDATE conversations SET version = version + 1 WHERE id = $1", name)
                    await asyncio.sleep(0.03)
        finally:
            await connection.close()

    task = asyncio.create_task(disturb())
    await asyncio.sleep(0.01)
    reasons = {reason_of(await outcome(service.stub.RewindConversation(rewind(name, 1)))) for _ in range(3)}
    ending.set()
    await task
    assert reasons <= {"OK", "ABORTED CONFLICT"}
    assert len(await stored_items(pool, name)) == (1 if "OK" in reasons else 3)
