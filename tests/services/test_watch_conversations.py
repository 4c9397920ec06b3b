"""WatchConversations: what happens to all conversations of a caller, in order within each, through resumes."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from conversations.v1.conversations_service_pb2 import (
    ConversationChange,
    ItemChange,
    WatchConversationsRequest,
    WatchConversationsResponse,
    WatchItemsRequest,
)

from server.errors import StoreUnavailable
from server.services import watch_stream
from server.store import change_log, change_log_poller, poller
from server.store.connection.execution import Execute, Execution, Rows
from server.store.item_changes import LARGE_BYTES, PAGE_BYTES
from server.store.purge import purge
from tests.support.access import ANN, BOB, EVE, OTHER_ANN, READERS, Caller, GuardedService, guarded_service
from tests.support.build import append, create, delete, delete_item, sets, update, user_message
from tests.support.service import Service, intercepted, running_service, shared_service
from tests.support.watching import KEEP, Watch

_APPEND = "UPDATE conversations SET version = version + 1, last_sequence = last_sequence + 1 WHERE id = $1"


class ConversationWatch(Watch):
    """A call of WatchConversations, in words.

    Attributes:
        last: The last message.
    """

    last: WatchConversationsResponse

    def __init__(self, stub: Any, who: Caller | None = None, **request: Any) -> None:
        metadata = who.metadata if who else ()
        call = stub.WatchConversations(WatchConversationsRequest(**request), metadata=metadata, timeout=60)
        super().__init__(call)

    async def next(self) -> list[str]:
        """The changes of the next message."""
        self.last = await self.read()
        assert self.last is not None
        return [word for change in self.last.changes for word in _words(change)]


def _words(change: ConversationChange) -> list[str]:
    if change.removed_id:
        return [f"{change.removed_id} is gone"]
    conversation = change.conversation
    return [f"{conversation.id} at {conversation.last_sequence}", *map(_item_words, change.items)]


def _item_words(change: ItemChange) -> str:
    match change.WhichOneof("change"):
        case "item":
            return f"{change.item.sequence} {change.item.message.content[0].input_text.text[:5]}"
        case "large_item":
            return f"{change.large_item.sequence} is large"
    return f"{change.deleted_item.sequence} is gone"


@pytest.fixture(scope="module")
async def logged(postgres: str, template: str) -> AsyncIterator[Service]:
    """A service with a database of its own, which keeps changes."""
    async with shared_service(postgres, template) as served:
        await change_log.turn_on(served.url, KEEP)
        yield served


@asynccontextmanager
async def watching(service: Service, *, items: bool = True, token: str = "") -> AsyncIterator[ConversationWatch]:
    """A watch that is cancelled at the end; without a token it has told its first message."""
    watch = ConversationWatch(service.stub, include_items=items, resume_token=token)
    try:
        if not token:
            assert await watch.next() == []
        yield watch
    finally:
        watch.call.cancel()


async def made(service: Service, *texts: str) -> str:
    """The id of a conversation with items of these texts."""
    return str((await service.stub.CreateConversation(create(*map(user_message, texts)))).id)


async def appended(service: Service, conversation_id: str, *texts: str) -> list[str]:
    """Appends items of these texts; their ids."""
    done = await service.stub.CreateItems(append(conversation_id, *map(user_message, texts)))
    return [item.id for item in done.items]


async def test_everything_that_happens(logged: Service) -> None:
    """Creates, appends, updates and deletions are told in order, with what happened to the items."""
    async with watching(logged) as watch, watching(logged, items=False) as plain:
        name = await made(logged, "a", "b")
        assert await watch.next() == [f"{name} at 2", "1 a", "2 b"]
        first, _ = await appended(logged, name, "c", "d")
        assert await watch.next() == [f"{name} at 4", "3 c", "4 d"]
        await logged.stub.DeleteItem(delete_item(name, first))
        assert await watch.next() == [f"{name} at 4", "3 is gone"]
        await logged.stub.UpdateConversation(update(name, "metadata", metadata={"k": "v"}))
        assert await watch.next() == [f"{name} at 4"]
        assert watch.last.changes[0].conversation.metadata == {"k": "v"}
        assert watch.last.HasField("watermark")
        await logged.stub.DeleteConversation(delete(name))
        assert await watch.next() == [f"{name} is gone"]
        told: list[str] = []
        while f"{name} is gone" not in told:
            told += await plain.next()
        assert set(told) <= {f"{name} at 2", f"{name} at 4", f"{name} is gone"}


async def test_a_resume_goes_on_behind_the_token(logged: Service) -> None:
    """What happened meanwhile is told once, one message for each conversation, and nothing again."""
    async with watching(logged) as watch:
        one = await made(logged, "a")
        assert await watch.next() == [f"{one} at 1", "1 a"]
        token = watch.token
    other = await made(logged, "x")
    (gone,) = await appended(logged, one, "b")
    await appended(logged, one, "c")
    await logged.stub.DeleteItem(delete_item(one, gone))
    async with watching(logged, token=token) as watch:
        told = await watch.next()
        assert told == [f"{other} at 1", "1 x", f"{one} at 3", "3 c", "2 is gone"]
        token = watch.token
    async with watching(logged, token=token) as watch:
        assert await watch.next() == []
        await appended(logged, one, "d")
        assert await watch.next() == [f"{one} at 4", "4 d"]


async def test_many_changes_come_in_several_messages(logged: Service) -> None:
    """A message has a hundred conversations at most, and each of its tokens is a place to go on."""
    async with watching(logged) as watch:
        token = watch.token
    names = [await made(logged) for _ in range(130)]
    found: list[list[str]] = []
    for _ in range(3):
        async with watching(logged, token=token) as watch:
            found.append(await watch.next())
            token = watch.token
    assert [len(each) for each in found] == [100, 30, 0]
    assert [word for each in found for word in each] == [f"{name} at 0" for name in names]


async def test_the_items_of_one_change_come_in_several_messages(logged: Service) -> None:
    """A token within a change goes on with its next item, and large items are told by their place."""
    async with watching(logged) as watch:
        token = watch.token
    sizes = (PAGE_BYTES // 2, PAGE_BYTES // 2, LARGE_BYTES - 1000, LARGE_BYTES, 10)
    name = await made(logged, *("x" * size for size in sizes))
    found = []
    for _ in range(4):
        async with watching(logged, token=token) as watch:
            found.append(await watch.next())
            token = watch.token
    head = f"{name} at 5"
    assert found == [
        [head, "1 xxxxx"],
        [head, "2 xxxxx"],
        [head, "3 xxxxx", "4 is large"],
        [head, "5 xxxxx"],
    ]
    async with watching(logged, token=token) as watch:
        assert await watch.next() == []


async def test_many_items_come_in_several_messages(logged: Service) -> None:
    """A message has a hundred items at most, over however many changes; none is left out or told twice."""
    async with watching(logged) as watch:
        token = watch.token
    name = await made(logged)
    for first in range(0, 240, 20):
        await appended(logged, name, *(f"i{number}" for number in range(first, first + 20)))
    found: list[str] = []
    async with watching(logged, token=token) as watch:
        while len(found) < 240:
            told = await watch.next()
            assert len(told) <= 101
            found += told[1:]
    assert found == [f"{number + 1} i{number}" for number in range(240)]


async def test_writes_of_the_same_process_wake_soon(logged: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of write is told without waiting for the next poll."""
    monkeypatch.setattr(change_log_poller, "POLL_SECONDS", 3600.0)
    async with watching(logged) as watch:
        name = await made(logged)
        assert await watch.next() == [f"{name} at 0"]
        (gone,) = await appended(logged, name, "a")
        assert await watch.next() == [f"{name} at 1", "1 a"]
        await logged.stub.DeleteItem(delete_item(name, gone))
        assert await watch.next() == [f"{name} at 1", "1 is gone"]
        await logged.stub.DeleteConversation(delete(name))
        assert await watch.next() == [f"{name} is gone"]


async def test_a_poll_that_does_not_come(logged: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stream reads unasked from time to time, so a defect in waking costs no more than that."""
    monkeypatch.setattr(change_log_poller, "POLL_SECONDS", 3600.0)
    monkeypatch.setattr(watch_stream, "BOOKMARK_SECONDS", 0.3)
    name = await made(logged)
    async with watching(logged, items=False) as watch:
        await logged.database.pool.execute(_APPEND, name)
        assert await watch.changes(1) == [f"{name} at 1"]


async def test_a_database_that_is_gone_for_a_while(logged: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads that fail are tried again, and what was written meanwhile is told."""
    monkeypatch.setattr(watch_stream, "_RETRY_SECONDS", (0.02, 0.05))
    monkeypatch.setattr(poller, "_RETRY_SECONDS", (0.02, 0.05))
    fails = True

    async def fail(execute: Execute, execution: Execution) -> Rows:
        if fails and execution.statement.kind == "read":
            raise StoreUnavailable
        return await execute(execution)

    async with watching(logged, items=False) as watch:
        with intercepted(logged.database, fail):
            name = await made(logged)
            assert await watch.is_quiet()
            fails = False
            assert await watch.next() == [f"{name} at 0"]


async def test_streams_that_have_ended_leave_nothing(own_service: Service) -> None:
    """Neither in the poller, nor of their places; both kinds of watches have one limit."""
    await change_log.turn_on(own_service.url, KEEP)
    name = await made(own_service)
    async with running_service(own_service.url, max_watches=2) as service:
        for _ in range(20):
            async with watching(service), watching(service):
                pass
            await asyncio.sleep(0.01)
        async with watching(service):
            items = service.stub.WatchItems(WatchItemsRequest(conversation_id=name))
            assert len((await items.read()).changes) == 1
            assert await ConversationWatch(service.stub).end() == "RESOURCE_EXHAUSTED RATE_LIMITED"
            items.cancel()


@asynccontextmanager
async def transaction(service: Service) -> AsyncIterator[asyncpg.Connection]:
    """A transaction of another program, which has an id from its begin."""
    connection = await asyncpg.connect(service.url)
    try:
        async with connection.transaction():
            await connection.fetchval("SELECT pg_current_xact_id()")
            yield connection
    finally:
        await connection.close()


async def test_two_transactions_that_are_turned_around(logged: Service) -> None:
    """The one that began first writes last: both are told, in the order of their commits, and not before both ended."""
    name = await made(logged)
    async with watching(logged, items=False) as watch:
        async with transaction(logged) as early:
            async with transaction(logged) as late:
                await late.execute(_APPEND, name)
            assert await watch.is_quiet()
            await early.execute(_APPEND, name)
        assert await watch.next() == [f"{name} at 2"]
        keys = "SELECT version FROM changes WHERE conversation_id = $1 ORDER BY position, conversation_id, version"
        assert [row["version"] for row in await logged.database.pool.fetch(keys, name)] == [1, 2, 3]
        token = watch.token
    async with watching(logged, items=False, token=token) as watch:
        assert await watch.next() == []


async def test_a_transaction_that_was_behind_a_page(logged: Service) -> None:
    """What commits late is not missed by a watch that has told of later ones."""
    async with watching(logged, items=False) as watch:
        async with transaction(logged) as early:
            other = await made(logged)
            await early.execute(
                "INSERT INTO conversations SELECT 'conv_early' || id, tenant, owner, attributes, metadata, 0, 1, 1, "
                "create_time, update_time FROM conversations WHERE id = $1",
                other,
            )
        assert sorted(await watch.changes(2)) == sorted([f"{other} at 0", f"conv_early{other} at 0"])


async def test_purged_changes_expire_the_tokens_before_them(logged: Service) -> None:
    """A token from before what the purge removed is out of range; one from behind it goes on."""
    async with watching(logged, items=False) as watch:
        old = watch.token
        name = await made(logged)
        assert await watch.next() == [f"{name} at 0"]
        await made(logged)
        await watch.next()
        new = watch.token
    await logged.database.pool.execute(
        "UPDATE changes SET change_time = change_time - interval '2 hours' "
        "WHERE position <= (SELECT position FROM changes WHERE conversation_id = $1)",
        name,
    )
    assert (await purge(logged.url, timedelta(days=1))).changes >= 1  # type: ignore[union-attr]
    async with watching(logged, items=False, token=old) as watch:
        assert await watch.end() == "OUT_OF_RANGE RESUME_TOKEN_EXPIRED"
    async with watching(logged, items=False, token=new) as watch:
        assert await watch.next() == []


async def test_deletions_that_were_purged_expire_the_tokens_before_them(logged: Service) -> None:
    """Changes may be kept for longer than deleted items: what cannot be told is no silence."""
    async with watching(logged) as watch:
        token = watch.token
    name = await made(logged)
    (gone,) = await appended(logged, name, "a")
    await logged.stub.DeleteItem(delete_item(name, gone))
    await purge(logged.url, timedelta(0))
    async with watching(logged, token=token) as watch:
        assert await watch.end() == "OUT_OF_RANGE RESUME_TOKEN_EXPIRED"


async def test_another_history(logged: Service) -> None:
    """A token whose last change is not in the log is from a database that lost commits."""
    async with watching(logged) as watch:
        name = await made(logged)
        await watch.next()
        token = watch.token
    await logged.database.pool.execute("DELETE FROM changes WHERE conversation_id = $1", name)
    async with watching(logged, token=token) as watch:
        assert await watch.end() == "OUT_OF_RANGE RESUME_TOKEN_EXPIRED"


async def test_tokens_that_were_made_for_something_else(logged: Service) -> None:
    """A token of a request without items, a cut one and a changed one are refused, with the name of the field."""
    async with watching(logged, items=False) as watch:
        token = watch.token
    raw = base64.urlsafe_b64decode(token + "==")
    turned = base64.urlsafe_b64encode(raw[:-1] + bytes([raw[-1] ^ 1])).decode().rstrip("=")
    for bad, items in ((token, True), (token[:-4], False), (turned, False), ("x", False)):
        async with watching(logged, items=items, token=bad) as watch:
            assert await watch.end() == "INVALID_ARGUMENT RESUME_TOKEN_INVALID"


async def test_many_changes_of_others(guarded: GuardedService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever others do in between, a caller's own change is found, and nothing is told before."""
    guarded.obey(READERS)
    watch = ConversationWatch(guarded.stubs[0], EVE)
    assert await watch.next() == []
    watch.call.cancel()
    await guarded.connection.execute(
        "INSERT INTO conversations SELECT 'conv_' || n, 'acme', 'ann', '{}', '{}', 0, 1, 1, now(), now() "
        "FROM generate_series(1, 4500) AS n"
    )
    own = await guarded.row("eve")
    resumed = ConversationWatch(guarded.stubs[0], EVE, resume_token=watch.token)
    assert await resumed.changes(1) == [f"{own} at 2"]
    resumed.call.cancel()


@pytest.fixture
async def guarded(postgres: str, template: str) -> AsyncIterator[GuardedService]:
    """A service behind a proxy that keeps changes, with a policy file of its own."""
    async with guarded_service(postgres, template) as served:
        await change_log.turn_on(served.url, KEEP)
        yield served


async def test_who_is_told_what(guarded: GuardedService) -> None:
    """Each caller is told of what it may read, and of what it could read before; not of what it never could."""
    guarded.obey(READERS)
    watches = {who.id + who.tenant: ConversationWatch(guarded.stubs[0], who) for who in (ANN, BOB, EVE, OTHER_ANN)}
    for watch in watches.values():
        assert await watch.next() == []
    ann, bob, eve, other = watches.values()
    client = guarded.by(ANN)
    shared = (await client.CreateConversation(create(attributes=sets(teams=["red"])))).id
    assert [await ann.next(), await bob.next()] == [[f"{shared} at 0"]] * 2
    await client.UpdateConversation(update(shared, "attributes", attributes={}))
    assert [await ann.next(), await bob.next()] == [[f"{shared} at 0"], [f"{shared} is gone"]]
    await client.CreateItems(append(shared, user_message("not for bob")))
    assert await ann.next() == [f"{shared} at 1"]
    await client.UpdateConversation(update(shared, "attributes", attributes=sets(teams=["red"])))
    assert [await ann.next(), await bob.next()] == [[f"{shared} at 1"]] * 2
    await client.DeleteConversation(delete(shared))
    assert [await ann.next(), await bob.next()] == [[f"{shared} is gone"]] * 2
    await guarded.row("emma")
    await guarded.row("emma", deleted=True)
    assert await asyncio.gather(*(each.is_quiet() for each in (bob, eve, other))) == [True] * 3


async def test_items_that_a_policy_hides(guarded: GuardedService) -> None:
    """Neither such an item nor its deletion is told."""
    guarded.obey(
        [{"forbid": {"actions": ["read"], "resource": "item::msg_secret"}, "unless": "user is owner"}, *READERS]
    )
    watch = ConversationWatch(guarded.stubs[0], BOB, include_items=True)
    assert await watch.next() == []
    name = await guarded.row("ann", {"teams": ["red"]})
    assert await watch.next() == [f"{name} at 2", "1 hi"]
    await guarded.by(ANN).DeleteItem(delete_item(name, "msg_secret"))
    assert await watch.next() == [f"{name} at 2"]
    watch.call.cancel()


async def test_a_policy_that_lets_the_caller_read_others(guarded: GuardedService) -> None:
    """The log does not tell of that: the stream ends, and its token has expired."""
    guarded.obey(READERS)
    watch = ConversationWatch(guarded.stubs[0], BOB)
    assert await watch.next() == []
    guarded.obey([*READERS, {"permit": {"actions": ["read"]}, "when": "resource is unowned"}])
    await guarded.row("bob")
    assert await watch.end() == "OUT_OF_RANGE RESUME_TOKEN_EXPIRED"
    assert (
        await ConversationWatch(guarded.stubs[0], BOB, resume_token=watch.token).end()
        == "OUT_OF_RANGE RESUME_TOKEN_EXPIRED"
    )
    assert (
        await ConversationWatch(guarded.stubs[0], ANN, resume_token=watch.token).end()
        == "INVALID_ARGUMENT RESUME_TOKEN_INVALID"
    )


async def test_who_may_read_nothing(guarded: GuardedService) -> None:
    """It is refused at once, and so is a caller who may read no item when items are asked for."""
    guarded.obey([{"permit": {"actions": ["read"], "resource": "conversation::*"}, "when": "user is owner"}])
    assert await ConversationWatch(guarded.stubs[0], ANN, include_items=True).end() == "PERMISSION_DENIED ACTION_DENIED"
    guarded.obey([])
    watch = ConversationWatch(guarded.stubs[0], ANN)
    assert await watch.next() == []
    guarded.obey([{"forbid": {"actions": ["read"]}}])
    await guarded.row("ann")
    assert await watch.end() == "PERMISSION_DENIED ACTION_DENIED"
    assert await ConversationWatch(guarded.stubs[0], ANN).end() == "PERMISSION_DENIED ACTION_DENIED"


async def test_access_that_is_lost_between_two_statements(guarded: GuardedService) -> None:
    """What was read while the conversation could be read is not told with its items afterwards."""
    guarded.obey(READERS)
    watch = ConversationWatch(guarded.stubs[0], BOB, include_items=True)
    assert await watch.next() == []

    async def withdraw(execute: Execute, execution: Execution) -> Rows:
        if "change_number" in execution.statement.text:
            await guarded.connection.execute("UPDATE conversations SET attributes = '{}', version = version + 1")
        return await execute(execution)

    with intercepted(guarded.database, withdraw):
        name = await guarded.row("ann", {"teams": ["red"]})
        assert await watch.next() == [f"{name} is gone"]
    watch.call.cancel()


async def test_the_log_is_off(own_service: Service) -> None:
    """There is nothing to follow, until it is turned on; turned off, it ends every stream and expires every token."""
    service, url = own_service, own_service.url
    assert await ConversationWatch(service.stub).end() == "FAILED_PRECONDITION CHANGES_NOT_KEPT"
    assert await change_log.turn_on(url, KEEP)
    assert not await change_log.turn_on(url, 2 * KEEP)
    watch = ConversationWatch(service.stub)
    assert await watch.next() == []
    name = await made(service)
    assert await watch.next() == [f"{name} at 0"]
    assert await change_log.turn_off(url)
    assert await watch.end() == "FAILED_PRECONDITION CHANGES_NOT_KEPT"
    await made(service)
    assert await change_log.turn_on(url, KEEP)
    assert await ConversationWatch(service.stub, resume_token=watch.token).end() == "OUT_OF_RANGE RESUME_TOKEN_EXPIRED"


async def test_the_log_of_another_database(own_service: Service) -> None:
    """A dump that was restored where transactions have lower ids is not followed until it is turned on again."""
    service, url = own_service, own_service.url
    await change_log.turn_on(url, KEEP)
    name = await made(service)
    for table in ("changes", "conversations"):
        await service.database.pool.execute(f"UPDATE {table} SET position = position + 1000000000")
    assert (await change_log.read_status(url)).is_foreign
    assert await ConversationWatch(service.stub).end() == "FAILED_PRECONDITION CHANGES_NOT_KEPT"
    assert await change_log.turn_on(url, KEEP)
    watch = ConversationWatch(service.stub)
    assert await watch.next() == []
    await appended(service, name, "a")
    assert await watch.next() == [f"{name} at 1"]
    watch.call.cancel()
