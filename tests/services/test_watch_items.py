"""WatchItems: what happens in a conversation, in order, each once, also through resumes."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from typing import Any

import asyncpg
import grpc.aio
import pytest
from conversations.v1.conversations_service_pb2 import (
    ORDER_ASCENDING,
    ItemChange,
    WatchItemsRequest,
    WatchItemsResponse,
)
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub

from server.store import change_hub
from server.store.change_hub import ChangeHub
from server.store.connection.execution import Execute, Execution, Rows
from server.store.item_changes import LARGE_BYTES, PAGE_BYTES
from server.store.purge import purge
from tests.support.build import ahead, append, create, delete, delete_item, get, list_items, update, user_message
from tests.support.problems import problem_of
from tests.support.service import Service, intercepted, list_all_items, running_service
from tests.support.watching import TextWatch, watching


async def made(service: Service, *texts: str) -> str:
    """The id of a conversation with items of these texts."""
    return str((await service.stub.CreateConversation(create(*map(user_message, texts)))).id)


async def appended(service: Service, conversation_id: str, *texts: str) -> list[str]:
    """Appends items of these texts; their ids."""
    done = await service.stub.CreateItems(append(conversation_id, *map(user_message, texts)))
    return [item.id for item in done.items]


STARTS = {
    "from now on": ({}, []),
    "all": ({"after_sequence": 0}, ["1 a", "2 b", "3 c"]),
    "behind a place": ({"after_sequence": 2}, ["3 c"]),
    "behind the last": ({"after_sequence": 3}, []),
    "the newest": ({"newest": 2}, ["2 b", "3 c"]),
    "more than there are": ({"newest": 100}, ["1 a", "2 b", "3 c"]),
    "more than may be": ({"newest": 101}, ["1 a", "2 b", "3 c"]),
}


@pytest.mark.parametrize(("start", "items"), STARTS.values(), ids=STARTS)
async def test_the_start(service: Service, start: dict[str, Any], items: list[str]) -> None:
    """The conversation as it is, the items that were asked for, and then what happens."""
    name = await made(service, "a", "b", "c")
    async with watching(service, name, **start) as watch:
        assert await watch.next() == ["metadata {}", *items]
        assert watch.last is not None
        assert watch.last.HasField("watermark")
        await appended(service, name, "d")
        assert await watch.next() == ["4 d"]


async def test_everything_that_happens(service: Service) -> None:
    """Appends, deletions and updates come in the order of their commits, and the end of the conversation ends it."""
    name = await made(service)
    async with watching(service, name) as watch:
        assert await watch.next() == ["metadata {}"]
        first, _ = await appended(service, name, "a", "b")
        assert await watch.changes(2) == ["1 a", "2 b"]
        await service.stub.DeleteItem(delete_item(name, first))
        assert await watch.next() == ["1 is gone"]
        await service.stub.UpdateConversation(update(name, "metadata", metadata={"k": "v"}))
        assert await watch.next() == ["metadata {'k': 'v'}"]
        await service.stub.DeleteConversation(delete(name))
        assert await watch.next() == ["the conversation is gone"]
        assert await watch.next() == ["the end"]
        assert await watch.call.code() is grpc.StatusCode.OK


async def test_a_resume_goes_on_behind_the_token(service: Service) -> None:
    """What happened meanwhile is told once, what was made and deleted as a deletion, and nothing else again."""
    name = await made(service, "a", "b")
    async with watching(service, name, after_sequence=0) as watch:
        assert await watch.next() == ["metadata {}", "1 a", "2 b"]
        token = watch.token
    (gone,) = await appended(service, name, "c")
    await appended(service, name, "d")
    await service.stub.DeleteItem(delete_item(name, gone))
    async with watching(service, name, resume_token=token) as watch:
        assert await watch.next() == ["4 d", "3 is gone"]
        token = watch.token
    async with watching(service, name, resume_token=token) as watch:
        assert await watch.next() == []
        assert watch.last is not None
        assert watch.last.HasField("watermark")
        await appended(service, name, "e")
        assert await watch.next() == ["5 e"]


async def test_many_changes_come_in_several_messages(service: Service) -> None:
    """A message has a hundred changes at most, and each of its tokens is a place to go on."""
    name = await made(service)
    for first in range(0, 240, 20):
        await appended(service, name, *(f"i{number}" for number in range(first, first + 20)))
    found: list[str] = []
    token = ""
    for _ in range(4):
        start: dict[str, Any] = {"resume_token": token} if token else {"after_sequence": 0}
        async with watching(service, name, **start) as watch:
            changes = await watch.next()
            assert len(changes) <= 101
            found += changes
            token = watch.token
    assert found == ["metadata {}", *(f"{number + 1} i{number}" for number in range(240))]


async def test_many_deletions_come_in_several_messages(service: Service) -> None:
    """Each of them once, whichever message a caller resumes behind."""
    name, ids = await made(service), list[str]()
    for first in range(0, 120, 20):
        ids += await appended(service, name, *(f"i{number}" for number in range(first, first + 20)))
    async with watching(service, name) as watch:
        await watch.next()
        start: dict[str, Any] = {"resume_token": watch.token}
    for item_id in ids:
        await service.stub.DeleteItem(delete_item(name, item_id))
    found: list[list[str]] = []
    for _ in range(3):
        async with watching(service, name, **start) as watch:
            found.append(await watch.next())
            start = {"resume_token": watch.token}
    assert [len(changes) for changes in found] == [100, 20, 0]
    assert [change for changes in found for change in changes] == [f"{number + 1} is gone" for number in range(120)]


@pytest.fixture
async def unpolled(own_service: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    """A service that does not look for the writes of others."""
    monkeypatch.setattr(change_hub, "POLL_SECONDS", 3600.0)
    return own_service


async def test_writes_of_the_same_process_wake_at_once(unpolled: Service) -> None:
    """An append, alone, in a shared statement and over a stream, a deletion, and an update: without any poll."""
    name = await made(unpolled)
    async with watching(unpolled, name) as watch:
        await watch.next()
        first, *_ = await appended(unpolled, name, "a")
        assert await watch.next() == ["1 a"]
        await asyncio.gather(*(appended(unpolled, name, "b") for _ in range(8)))
        assert len(await watch.changes(8)) == 8
        await unpolled.stub.AppendItems(iter((ahead(name, user_message("c")),))).read()
        assert await watch.next() == ["10 c"]
        await unpolled.stub.DeleteItem(delete_item(name, first))
        assert await watch.next() == ["1 is gone"]
        await unpolled.stub.UpdateConversation(update(name, "metadata", metadata={"k": "v"}))
        assert await watch.next() == ["metadata {'k': 'v'}"]
        await unpolled.stub.DeleteConversation(delete(name))
        assert await watch.next() == ["the conversation is gone"]


async def test_a_write_during_a_read_is_told(unpolled: Service) -> None:
    """What is committed after a read has begun, and before the stream waits, is one more read."""
    name, texts = await made(unpolled), ["a", "b", "c"]

    async def write_meanwhile(execute: Execute, execution: Execution) -> Rows:
        rows = await execute(execution)
        if "purged_version" in execution.statement.text and texts:
            await appended(unpolled, name, texts.pop(0))
        return rows

    with intercepted(unpolled.database, write_meanwhile):
        async with watching(unpolled, name) as watch:
            assert await watch.next() == ["metadata {}"]
            assert await watch.changes(3) == ["1 a", "2 b", "3 c"]


async def test_deletions_from_before_the_start_are_not_told(service: Service) -> None:
    """Not even when the items that are there take several messages."""
    name = await made(service)
    ids = []
    for first in range(0, 140, 20):
        ids += await appended(service, name, *(f"i{number}" for number in range(first, first + 20)))
    for gone in (ids[0], ids[120]):
        await service.stub.DeleteItem(delete_item(name, gone))
    async with watching(service, name, after_sequence=0) as watch:
        found = await watch.changes(139)
        assert found == ["metadata {}", *(f"{n + 1} i{n}" for n in range(140) if n not in {0, 120})]


async def test_large_items(service: Service) -> None:
    """An item beyond 256 KiB is told by its place; up to that it comes, alone where a message would be too large."""
    name = await made(service)
    sizes = (PAGE_BYTES // 2, PAGE_BYTES // 2, LARGE_BYTES - 1000, LARGE_BYTES, 10)
    for size in sizes:
        await appended(service, name, "x" * size)
    async with watching(service, name, after_sequence=0) as watch:
        assert await watch.next() == ["metadata {}", "1 xxxxxxxxxx"]
        assert await watch.next() == ["2 xxxxxxxxxx"]
        assert await watch.next() == ["3 xxxxxxxxxx", "4 is large"]
        assert await watch.next() == ["5 xxxxxxxxxx"]


async def test_writes_of_another_process_are_told_soon(service: Service) -> None:
    """A poll finds them, and wakes all who follow."""
    name = await made(service)
    async with (
        running_service(service.url) as other,
        watching(service, name) as one,
        watching(service, name) as two,
    ):
        assert [await one.next(), await two.next()] == [["metadata {}"]] * 2
        await appended(other, name, "a")
        async with asyncio.timeout(1):
            assert [await one.next(), await two.next()] == [["1 a"]] * 2


BAD_TOKENS = {"none": "x", "of a list": "", "changed": "", "of another conversation": ""}


@pytest.mark.parametrize("kind", BAD_TOKENS)
async def test_bad_tokens(service: Service, kind: str) -> None:
    """They are refused, and nothing is told."""
    name, other = await made(service, "a", "b"), await made(service)
    token = "x"
    if kind == "of a list":
        token = (await service.stub.ListItems(list_items(name, page_size=1))).next_page_token
    elif kind != "none":
        async with watching(service, other if kind == "of another conversation" else name) as watch:
            await watch.next()
            token = watch.token
        if kind == "changed":
            token = token[:-2] + ("A" if token[-2] != "A" else "B") + token[-1]
    async with watching(service, name, resume_token=token) as watch:
        problem = await watch.problem()
    assert (problem.code, problem.reason) == ("INVALID_ARGUMENT", "RESUME_TOKEN_INVALID")


async def test_a_place_that_is_not_there(service: Service) -> None:
    """The caller has seen another history."""
    name = await made(service, "a")
    async with watching(service, name, after_sequence=2) as watch:
        problem = await watch.problem()
    assert (problem.code, problem.reason) == ("OUT_OF_RANGE", "RESUME_TOKEN_EXPIRED")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE conversations SET version = version - 1, last_sequence = last_sequence - 1 WHERE id = $1",
        "UPDATE items SET item_id = 'msg_other' WHERE conversation_id = $1 AND sequence = 2",
        "UPDATE conversations SET purged_version = version + 1, version = version + 2 WHERE id = $1",
    ],
    ids=["set back", "set back and written again", "purged"],
)
async def test_another_history(service: Service, change: str) -> None:
    """A token of what is no longer so is refused, also while the stream is open."""
    name = await made(service, "a", "b")
    async with watching(service, name) as watch:
        await watch.next()
        token = watch.token
        connection = await asyncpg.connect(service.url)
        await connection.execute(change, name)
        await connection.close()
        async with watching(service, name, resume_token=token) as resumed:
            problem = await resumed.problem()
    assert (problem.code, problem.reason) == ("OUT_OF_RANGE", "RESUME_TOKEN_EXPIRED")


async def test_the_purge_overtakes_a_token(own_service: Service) -> None:
    """Deletions that are gone are never passed over in silence; a token from behind them is as good as before."""
    name = await made(own_service, "a", "b", "c")
    first, second, _ = (await own_service.stub.ListItems(list_items(name, order=ORDER_ASCENDING))).items
    tokens = []
    async with watching(own_service, name) as watch:
        await watch.next()
        for item in (first, second):
            tokens.append(watch.token)
            await own_service.stub.DeleteItem(delete_item(name, item.id))
            assert await watch.next() == [f"{item.sequence} is gone"]
        tokens.append(watch.token)
        await purge(own_service.url, timedelta(0))
        await appended(own_service, name, "d")
        assert await watch.next() == ["4 d"]
    for token in tokens[:2]:
        async with watching(own_service, name, resume_token=token) as watch:
            problem = await watch.problem()
        assert (problem.code, problem.reason) == ("OUT_OF_RANGE", "RESUME_TOKEN_EXPIRED")
    async with watching(own_service, name, resume_token=tokens[2]) as watch:
        assert await watch.next() == ["4 d"]


async def test_a_stream_that_the_purge_overtakes(own_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends, although it was open all the time: it was held up, and has not told of the deletion."""
    name = await made(own_service, "a")
    (item,) = (await own_service.stub.ListItems(list_items(name))).items
    async with watching(own_service, name) as watch:
        await watch.next()
        monkeypatch.setattr(ChangeHub, "note_change", lambda *_: None)
        monkeypatch.setattr(ChangeHub, "note_version", lambda *_: None)
        await own_service.stub.DeleteItem(delete_item(name, item.id))
        await purge(own_service.url, timedelta(0))
        monkeypatch.undo()
        await appended(own_service, name, "b")
        problem = await watch.problem()
    assert (problem.code, problem.reason) == ("OUT_OF_RANGE", "RESUME_TOKEN_EXPIRED")


class Follower:
    """Follows a conversation through many streams.

    Attributes:
        told: The places of the items that it was told of.
        gone: Those of the deletions.
    """

    def __init__(self, stub: Any, conversation_id: str, seconds: float) -> None:
        """``seconds``: how long each stream lasts."""
        self.told: list[int] = []
        self.gone: set[int] = set()
        self._stub = stub
        self._conversation_id = conversation_id
        self._timeout = 1 + seconds
        self._token = ""

    async def begin(self) -> None:
        """Takes the first message: deletions from before it would not be told."""
        call = self._stub.WatchItems(WatchItemsRequest(conversation_id=self._conversation_id, after_sequence=0))
        self._token = (await call.read()).resume_token
        call.cancel()

    async def follow(self, done: asyncio.Event) -> None:
        """Opens one stream after the other, until one that began when it was ``done`` has told everything."""
        is_last = has_all = False
        while not (is_last and has_all):
            is_last = done.is_set()
            request = WatchItemsRequest(conversation_id=self._conversation_id, resume_token=self._token)
            has_all = False
            with suppress(DeadlineExceeded):  # on a machine that has other work, the server ends it too late
                async for response in _responses(self._stub.WatchItems(request, timeout=self._timeout)):
                    for change in response.changes:
                        self._take(change)
                    self._token = response.resume_token
                    has_all = response.HasField("watermark")

    def _take(self, change: ItemChange) -> None:
        if change.HasField("item"):
            assert change.item.sequence > max(self.told, default=0)
            self.told.append(change.item.sequence)
        elif change.HasField("deleted_item"):
            assert change.deleted_item.sequence not in self.gone
            self.gone.add(change.deleted_item.sequence)


class DeadlineExceeded(Exception):
    """The deadline of a stream came before its end."""


async def _responses(call: Any) -> AsyncIterator[WatchItemsResponse]:
    try:
        async for response in call:
            yield response
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            raise
        raise DeadlineExceeded from error


async def write(service: Service, name: str, writer: int) -> None:
    """Appends items, and deletes some of its own."""
    generator, own = random.Random(writer), list[str]()
    for number in range(25):
        own += await appended(service, name, *(f"{writer}.{number}" for _ in range(generator.randrange(1, 4))))
        if generator.random() < 0.4:
            await service.stub.DeleteItem(delete_item(name, own.pop(generator.randrange(len(own)))))


async def test_changes_are_told_once_under_many_writers(service: Service) -> None:
    """Streams that are resumed all the time tell what the tables hold in the end, each change once and in order."""
    name, done = await made(service), asyncio.Event()
    followers = [Follower(service.stub, name, seconds) for seconds in (0.02, 0.1, 1.0)]
    await asyncio.gather(*(follower.begin() for follower in followers))
    following = [asyncio.create_task(follower.follow(done)) for follower in followers]
    await asyncio.gather(*(write(service, name, writer) for writer in range(8)))
    done.set()
    await asyncio.gather(*following)
    living = {item.sequence for item in await list_all_items(service.stub, name, ORDER_ASCENDING)}
    last = (await service.stub.GetConversation(get(name))).last_sequence
    for follower in followers:
        assert set(follower.told) - follower.gone == living
        assert set(follower.told) | follower.gone == set(range(1, last + 1))


async def test_a_conversation_that_is_gone(service: Service) -> None:
    """Nobody may begin to watch it; who resumes is told."""
    name = await made(service, "a")
    async with watching(service, name) as watch:
        await watch.next()
        token = watch.token
    await service.stub.DeleteConversation(delete(name))
    async with watching(service, name) as watch:
        assert (await watch.problem()).reason == "CONVERSATION_NOT_FOUND"
    async with watching(service, name, resume_token=token) as watch:
        assert await watch.next() == ["the conversation is gone"]
        assert await watch.next() == ["the end"]


async def test_a_stream_ends_in_time(service: Service) -> None:
    """With OK after `watch_seconds`, and a second before the caller's deadline."""
    name = await made(service)
    async with running_service(service.url, watch_seconds=0.5) as served, watching(served, name) as watch:
        assert await watch.next() == ["metadata {}"]
        assert await watch.next() == ["the end"]
    call = service.stub.WatchItems(WatchItemsRequest(conversation_id=name), timeout=1.5)
    async with asyncio.timeout(1.4):
        assert len([response async for response in call]) == 1
    assert await call.code() is grpc.StatusCode.OK


async def test_the_drain_ends_it(service: Service) -> None:
    """As UNAVAILABLE, with a time after which to resume elsewhere."""
    name = await made(service)
    async with AsyncExitStack() as until_then:
        async with running_service(service.url, grace_seconds=5) as served:
            channel = await until_then.enter_async_context(grpc.aio.insecure_channel(served.address))
            watch = TextWatch(ConversationsServiceStub(channel), name)
            assert await watch.next() == ["metadata {}"]
            problem, began = asyncio.create_task(watch.problem()), time.monotonic()
        assert time.monotonic() - began < 2
        found = await problem
    assert (found.code, found.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
    assert "RetryInfo" in found.details


@pytest.mark.parametrize(
    "limits", [{"max_watches": 2}, {"max_watches_per_principal": 2, "max_watches": 9}], ids=["all", "of one"]
)
async def test_watches_at_once(service: Service, limits: dict[str, int]) -> None:
    """As many as may be; one more is refused, streams of appends are counted apart, and a free place is given."""
    name = await made(service)
    async with running_service(service.url, **limits) as served:
        watches = [TextWatch(served.stub, name) for _ in range(2)]
        for each in watches:
            await each.next()
        problem = await TextWatch(served.stub, name).problem()
        assert (problem.code, problem.reason) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
        watches[0].call.cancel()
        await asyncio.sleep(0.2)
        async with watching(served, name) as watch:
            assert await watch.next() == ["metadata {}"]
        watches[1].call.cancel()


async def test_streams_of_appends_take_no_place_of_watches(service: Service) -> None:
    """Nor the other way round: each kind has its own limit."""
    name = await made(service)
    async with running_service(service.url, max_watches=1, max_streams=1) as served:
        stream = served.stub.AppendItems()
        await stream.write(ahead(name, user_message("a")))
        assert (await stream.read()).HasField("appended")
        async with watching(served, name, after_sequence=0) as watch:
            assert await watch.next() == ["metadata {}", "1 a"]
        stream.cancel()


async def test_random_requests(service: Service) -> None:
    """Whatever comes as a request ends with a code that is told, and never as a defect."""
    generator = random.Random(1)
    valid = WatchItemsRequest(conversation_id=await made(service, "a"), newest=2).SerializeToString()
    call: Any = service.channel.unary_stream("/conversations.v1.ConversationsService/WatchItems")
    codes = set()
    for _ in range(100):
        body = bytearray(valid)
        for _ in range(generator.randrange(4)):
            body[generator.randrange(len(body))] = generator.randrange(256)
        stream = call(bytes(body), timeout=1.05)
        with suppress(grpc.aio.AioRpcError):
            async for _ in stream:
                pass
        codes.add((await stream.code()).name)
    assert codes <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED", "OUT_OF_RANGE"}
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND"} <= codes


async def test_a_request_of_nothing(service: Service) -> None:
    """The fields are checked before anything is read."""
    for request in (WatchItemsRequest(), WatchItemsRequest(conversation_id="conv_a", newest=-1)):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await service.stub.WatchItems(request).read()
        assert problem_of(refused.value).reason == "FIELD_INVALID"
    assert (await service.stub.GetConversation(get(await made(service)))).id
