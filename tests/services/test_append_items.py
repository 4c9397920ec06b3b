"""AppendItems: what is sent ahead is placed in order, and each message is answered for itself."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import grpc.aio
import pytest
from conversations.v1.conversations_service_pb2 import ORDER_ASCENDING, AppendItemsResponse
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from structlog.testing import capture_logs

from server.services.append_stream import MAX_PENDING
from server.services.new_items import BatchBuilder
from server.store.connection.database import Database
from tests.support.access import Caller, GuardedService, caller, guarded_service
from tests.support.batching import held_statement, outcome
from tests.support.build import ahead, append, copy_of, create, delete, get, text_of, user_message
from tests.support.problems import problem_of
from tests.support.service import Service, list_all_items, recorded_statements, running_service

ANN = caller("ann", teams="red")
MANY_MESSAGES = 10_000


async def answers(call: Any) -> tuple[list[Any], str]:
    """What a stream answers, and how it ends."""
    found = []
    try:
        while (answer := await call.read()) is not grpc.aio.EOF:
            found.append(answer)
    except grpc.aio.AioRpcError as error:
        failure = problem_of(error)
        return found, f"{failure.code} {failure.reason}"
    return found, "OK"


async def sent(stub: Any, *requests: Any) -> tuple[list[Any], str]:
    """Likewise, of a stream that sends all at once."""
    return await answers(stub.AppendItems(iter(requests)))


async def sent_first(database: Database, call: Any, *requests: Any, closes: bool = False) -> tuple[list[Any], str]:
    """Likewise, of a stream that has sent all before anything is placed: a client's send may not meet the end."""
    async with held_statement(database):
        for request in requests:
            await call.write(request)
        if closes:
            await call.done_writing()
    return await answers(call)


def firsts(found: Iterable[Any]) -> list[int | str]:
    """The first sequence of each answer, or the reason why there is none."""
    return [each.appended.first_sequence or reason_of(each.error) for each in found]


def reason_of(status: Status) -> str:
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return str(info.reason)


async def new(stub: Any, *items: Any) -> str:
    """A conversation with these items."""
    return str((await stub.CreateConversation(create(*items))).id)


@pytest.fixture
async def target(stub: Any) -> str:
    """A conversation with the item `msg_a`."""
    return await new(stub, user_message(id="msg_a"))


# --- what goes well


async def test_a_thousand_messages_sent_ahead(service: Service) -> None:
    """They lie in the order sent, are answered in that order, and share statements."""
    target = await new(service.stub)
    requests = [
        ahead("" if n else target, *(user_message(f"{n}/{place}") for place in range(n % 3 + 1))) for n in range(1000)
    ]
    with recorded_statements(service.database) as texts:
        found, end = await sent(service.stub, *requests)
    assert "OK" == end
    expected, place = [], 1
    for request in requests:
        expected.append(place)
        place += len(request.items)
    assert expected == firsts(found)
    items = await list_all_items(service.stub, target, ORDER_ASCENDING)
    assert [f"{n}/{place}" for n in range(1000) for place in range(n % 3 + 1)] == list(map(text_of, items))
    assert [item.id for item in items] == [each for answer in found for each in answer.appended.item_ids]
    assert list(range(1, place)) == [item.sequence for item in items]
    assert len(texts) < 500


async def test_a_message_at_a_time(service: Service, target: str) -> None:
    """Who waits for each answer gets it, with one statement for each."""
    call = service.stub.AppendItems()
    with recorded_statements(service.database) as texts:
        for n in range(5):
            await call.write(ahead(target if n in (0, 3) else "", user_message(id=f"msg_{n}")))
            answer = await call.read()
            assert ([f"msg_{n}"], 2 + n) == (list(answer.appended.item_ids), answer.appended.first_sequence)
    assert 5 == len(texts)
    await call.done_writing()
    assert call.code is not None
    assert grpc.aio.EOF is await call.read()
    assert grpc.StatusCode.OK is await call.code()


async def test_a_stream_without_messages(service: Service) -> None:
    """A stream that is closed at once ends well, and takes no statement."""
    with recorded_statements(service.database) as texts:
        assert ([], "OK") == await sent(service.stub)
    assert [] == texts


async def test_large_ones_and_references_keep_the_order(service: Service, target: str) -> None:
    """What cannot share a statement is placed where it was sent."""
    source = await new(service.stub, user_message("copied", id="msg_source"))
    items = [user_message(str(n)) for n in range(40)]
    items[7] = user_message("7" + "x" * 300_000)
    items[19] = copy_of(source, "msg_source")
    items[20] = user_message("20" + "x" * 300_000)
    found, end = await sent(service.stub, *(ahead(target, each) for each in items))
    assert ("OK", list(range(2, 42))) == (end, firsts(found))
    texts = [text_of(each) for each in await list_all_items(service.stub, target, ORDER_ASCENDING)]
    assert ["hi", *(("copied" if n == 19 else str(n)) for n in range(40))] == [each[:6].rstrip("x") for each in texts]


# --- messages that fail


BAD: dict[str, dict[str, Any]] = {
    "clash": {"items": [user_message(id="msg_a")]},
    "clash with itself": {"items": [user_message(id="msg_b"), user_message(id="msg_b")]},
    "no item": {"items": []},
    "too many items": {"items": [user_message()] * 21},
    "wrong prefix": {"items": [user_message(), user_message(id="fc_1")]},
    "two violations": {"items": [user_message(id="fc_1"), user_message(id="fc_2")], "expected_last_sequence": 1},
    "no request id": {"items": [user_message()], "request_id": "x"},
    "unexpected": {"items": [user_message()], "expected_last_sequence": 7},
    "impossible": {"items": [user_message()], "expected_last_sequence": -1},
    "missing reference": {"items": [copy_of("conv_x", "msg_x")]},
}


@pytest.mark.parametrize("name", list(BAD))
async def test_a_bad_message_does_not_end_the_stream(stub: Any, target: str, name: str) -> None:
    """It is answered with the status that CreateItems gives, and those around it are appended."""
    items, fields = BAD[name]["items"], {key: value for key, value in BAD[name].items() if key != "items"}
    failure = await outcome(stub.CreateItems(append(target, *items, **fields)))
    good = ahead("", user_message())
    found, end = await sent(stub, ahead(target, user_message()), good, ahead("", *items, **fields), good, good)
    assert "OK" == end
    assert [2, 3, failure.reason, 4, 5] == firsts(found)
    alone = await outcome(stub.CreateItems(append(target, *items, **fields)))  # by now the conversation is longer
    status = found[2].error
    bad = error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(bad)
    assert alone.code == grpc_name(status.code)
    assert (alone.message, alone.fields) == (status.message, {each.field: each.reason for each in bad.field_violations})
    assert alone.details == tuple(detail.type_url.rpartition(".")[2] for detail in status.details)


def grpc_name(number: int) -> str:
    return next(code.name for code in grpc.StatusCode if code.value[0] == number)


async def test_a_taken_request_id(stub: Any, target: str) -> None:
    """Another message under a used id is answered so, the same one with its first answer."""
    rid = str(uuid4())
    one = ahead(target, user_message("one"), request_id=rid)
    found, end = await sent(stub, one, ahead("", user_message("other"), request_id=rid), one, ahead("", user_message()))
    assert ("OK", [2, "REQUEST_ID_REUSED", 2, 3]) == (end, firsts(found))
    assert found[0] == found[2]


# --- what ends a stream


ENDS: dict[str, tuple[list[str], str]] = {
    "no conversation": ([""], "INVALID_ARGUMENT FIELD_INVALID"),
    "another conversation": (["target", "", "target", "conv_other", ""], "INVALID_ARGUMENT FIELD_INVALID"),
    "missing": (["conv_missing"], "NOT_FOUND CONVERSATION_NOT_FOUND"),
    "missing, sent ahead": (["conv_missing"] * 9, "NOT_FOUND CONVERSATION_NOT_FOUND"),
}


@pytest.mark.parametrize("name", list(ENDS))
async def test_what_ends_a_stream(service: Service, target: str, name: str) -> None:
    """Messages before the one that ends it are appended and answered, those behind it are not."""
    targets, code = ENDS[name]
    requests = [ahead(target if each == "target" else each, user_message()) for each in targets]
    found, end = await sent_first(service.database, service.stub.AppendItems(), *requests)
    expected = [2, 3, 4] if "target" in targets else []
    assert (code, expected) == (end, firsts(found))
    assert 1 + len(expected) == (await service.stub.GetConversation(get(target))).last_sequence


@pytest.mark.parametrize("place", [0, 1, 5])
async def test_malformed_bytes(service: Service, target: str, place: int) -> None:
    """What is no message ends the stream, after the answers of those before it."""
    bodies = [*[ahead(target, user_message()).SerializeToString()] * place, b"\xff"]
    method: Any = service.channel.stream_stream("/conversations.v1.ConversationsService/AppendItems")
    found, end = await sent_first(service.database, method(), *bodies)
    assert "INVALID_ARGUMENT FIELD_INVALID" == end
    assert list(range(2, 2 + place)) == firsts(map(AppendItemsResponse.FromString, found))
    assert 1 + place == (await service.stub.GetConversation(get(target))).last_sequence


async def test_the_conversation_is_deleted_meanwhile(stub: Any, target: str) -> None:
    """The next message ends the stream."""
    call = stub.AppendItems()
    await call.write(ahead(target, user_message()))
    assert [2] == firsts([await call.read()])
    await stub.DeleteConversation(delete(target))
    await call.write(ahead("", user_message()))
    assert ([], "NOT_FOUND CONVERSATION_NOT_FOUND") == await answers(call)


async def test_an_unexpected_error(service: Service, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw ends the stream as INTERNAL, after the answers before it."""
    batch = BatchBuilder.build

    def broken(admission: BatchBuilder, new: Any, *more: Any) -> Any:
        if text_of(new[0].item) == "bad":
            raise RuntimeError("secret")
        return batch(admission, new, *more)

    monkeypatch.setattr(BatchBuilder, "build", broken)
    async with asyncio.timeout(20):
        requests = [ahead(target, user_message(text)) for text in ("a", "b", "bad", "c")]
        found, end = await sent_first(service.database, service.stub.AppendItems(), *requests)
    assert ("INTERNAL INTERNAL", [2, 3]) == (end, firsts(found))


# --- who may


RULES = [
    {"permit": {"actions": ["create", "read", "update", "delete"]}, "when": "user is owner"},
    {"permit": {"actions": ["read"]}, "when": "user in owners teams"},
]


@pytest.fixture(scope="module")
async def guarded(postgres: str, template: str) -> AsyncIterator[GuardedService]:
    """A service behind a proxy."""
    async with guarded_service(postgres, template) as served:
        yield served


ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "own": ({"owner": "ann"}, "OK"),
    "only read": ({"owner": "bob", "attributes": {"teams": ["red"]}}, "PERMISSION_DENIED ACTION_DENIED"),
    "hidden": ({"owner": "bob"}, "NOT_FOUND CONVERSATION_NOT_FOUND"),
    "deleted": ({"owner": "ann", "deleted": True}, "NOT_FOUND CONVERSATION_NOT_FOUND"),
    "of another tenant": ({"owner": "ann", "tenant": "umbrella"}, "NOT_FOUND CONVERSATION_NOT_FOUND"),
}


@pytest.mark.parametrize("name", list(ROWS))
async def test_who_may_append(guarded: GuardedService, name: str) -> None:
    """A stream is held to the same rules as a call, and a refused one leaves a line in the audit."""
    guarded.obey(RULES)
    fields, expected = ROWS[name]
    row = await guarded.row(**fields)
    with capture_logs() as logs:
        call = guarded.stubs[0].AppendItems(metadata=ANN.metadata)
        found, end = await sent_first(
            guarded.database, call, *[ahead(row, user_message())] * 3, closes=expected == "OK"
        )
    assert (expected, [3, 4, 5] if expected == "OK" else []) == (end, firsts(found))
    lines = [(line["outcome"], line["conversation_id"]) for line in logs if line.get("log") == "audit"]
    assert ([] if expected == "OK" else [(expected.split()[1], row)]) == lines


async def test_the_policy_changes_meanwhile(guarded: GuardedService) -> None:
    """Each message is decided by the policy in force: who loses a right is told at the next one."""
    guarded.obey(RULES)
    row = await guarded.row("ann")
    call = guarded.stubs[0].AppendItems(metadata=ANN.metadata)
    await call.write(ahead(row, user_message()))
    assert [3] == firsts([await call.read()])
    guarded.obey([{"permit": {"actions": ["read"]}}])
    await call.write(ahead("", user_message()))
    assert ([], "PERMISSION_DENIED ACTION_DENIED") == await answers(call)
    assert 2 + 1 == await guarded.value("SELECT last_sequence FROM conversations WHERE id = $1", row)


NOBODY: list[tuple[str, Any, str]] = [
    ("no credentials", [], "UNAUTHENTICATED CREDENTIALS_MISSING"),
    ("never", Caller("eve").metadata, "PERMISSION_DENIED ACTION_DENIED"),
]


@pytest.mark.parametrize("metadata, code", [pytest.param(m, code, id=name) for name, m, code in NOBODY])
async def test_who_may_never_is_refused_unread(guarded: GuardedService, metadata: Any, code: str) -> None:
    """Without identity, or when no row could permit it, a stream ends before it has sent anything."""
    guarded.obey([{"permit": {"actions": ["create", "read"], "principal": "ann"}}])
    async with asyncio.timeout(20):
        assert ([], code) == await answers(guarded.stubs[0].AppendItems(metadata=metadata))


# --- streams that break


async def test_request_ids_over_a_broken_stream(service: Service, target: str) -> None:
    """Messages sent again on another stream, at other places in it, give the same ids and write nothing."""
    requests = [ahead("", user_message(str(n)), user_message(), request_id=str(uuid4())) for n in range(20)]
    requests[0].conversation_id = target
    before, end = await sent(service.stub, *requests)
    assert "OK" == end
    again = [ahead(target, user_message("new")), *reversed(requests[5:]), *requests[:5]]
    found, end = await sent(service.stub, *again)
    assert ("OK", 42) == (end, found[0].appended.first_sequence)
    assert [*reversed(before[5:]), *before[:5]] == found[1:]
    assert 42 == (await service.stub.GetConversation(get(target))).last_sequence


@pytest.mark.parametrize("by", ["request_id", "expected_last_sequence"])
async def test_exactly_once_over_broken_streams(service: Service, by: str) -> None:
    """Streams are cut again and again; what is sent again until it is answered is there once, in order."""
    target, texts = await new(service.stub), [str(n) for n in range(120)]
    fields: list[dict[str, Any]] = [{by: str(uuid4()) if by == "request_id" else place} for place in range(len(texts))]
    done = 0
    for cut in (0.0, 0.003, 0.01, 0.02, 0.04, None):
        call = service.stub.AppendItems(
            iter([ahead(target, user_message(texts[n]), **fields[n]) for n in range(done, len(texts))])
        )
        cutting = asyncio.get_running_loop().call_later(cut, call.cancel) if cut is not None else None
        try:
            async for answer in call:
                assert firsts([answer])[0] in (done + 1, "SEQUENCE_MISMATCH")
                done += 1
        except asyncio.CancelledError:
            assert cutting
    assert len(texts) == done
    items = await list_all_items(service.stub, target, ORDER_ASCENDING)
    assert texts == list(map(text_of, items))


async def test_a_cancelled_stream_is_left_out_whole(service: Service, target: str) -> None:
    """At no moment is an append out of line while one behind it is in: a statement might begin then."""
    other = await new(service.stub)
    call = service.stub.AppendItems()
    async with held_statement(service.database) as line:
        holding = asyncio.ensure_future(service.stub.CreateItems(append(other, user_message("holds the line"))))
        await line.started.wait()
        for n in range(5):
            await call.write(ahead(target, user_message(str(n))))
        await line.until(lambda: len(line.writes) == 5)
        call.cancel()
        left: list[bool] = []
        async with asyncio.timeout(10):
            while not all(left) or not left:
                left = [each.answer.done() for each in line.writes]
                assert len(set(left)) == 1
                await asyncio.sleep(0)
    await holding
    assert 1 == (await service.stub.GetConversation(get(target))).last_sequence


async def test_a_cancelled_stream(service: Service, target: str) -> None:
    """What was not begun is not appended, and the server goes on."""
    call = service.stub.AppendItems()
    async with held_statement(service.database) as line:
        await call.write(ahead(target, user_message("begun")))
        await line.started.wait()
        for n in range(20):
            await call.write(ahead("", user_message(str(n))))
        await line.until(lambda: len(line.writes) == 20)
        call.cancel()
        await line.until(lambda: all(each.answer.done() for each in line.writes))
    await service.stub.CreateItems(append(target, user_message("after")))
    texts = [text_of(each) for each in await list_all_items(service.stub, target, ORDER_ASCENDING)]
    assert texts in (["hi", "begun", "after"], ["hi", "after"])


async def test_a_caller_that_does_not_read(service: Service, target: str) -> None:
    """It is stopped from sending, while other calls go on; when it reads, it gets every answer."""
    enough = asyncio.Event()
    request, written = ahead(target, user_message("x" * 4096), expected_last_sequence=10**6), 0

    async def write(call: Any) -> None:
        nonlocal written
        while not enough.is_set():
            await call.write(request)
            written += 1

    options = [("grpc.http2.bdp_probe", 0)]  # or the client would keep megabytes of answers
    async with grpc.aio.insecure_channel(service.address, options=options) as channel:
        call = ConversationsServiceStub(channel).AppendItems()
        writer, before = asyncio.create_task(write(call)), -1
        while before != written < MANY_MESSAGES:  # until it stands still
            before = written
            for _ in range(30):
                await service.stub.GetConversation(get(target))
                await asyncio.sleep(0.01)
        assert MAX_PENDING < written < MANY_MESSAGES
        enough.set()
        found = [await call.read() for _ in range(written)]
        await writer
        await call.done_writing()
        more, end = await answers(call)
    assert ("OK", ["SEQUENCE_MISMATCH"] * written) == (end, firsts([*found, *more]))
    assert 1 == (await service.stub.GetConversation(get(target))).last_sequence


async def test_no_default_deadline(service: Service, target: str) -> None:
    """The server's own deadlines are for calls: a stream may stay open as long as its caller wants."""
    async with running_service(service.url, default_deadline_seconds=0.2, max_deadline_seconds=0.2) as served:
        call = served.stub.AppendItems()
        for n in range(4):
            await call.write(ahead(target, user_message()))
            assert [2 + n] == firsts([await call.read()])
            await asyncio.sleep(0.15)
        await call.done_writing()
        assert ([], "OK") == await answers(call)


# --- the end of the server


@pytest.mark.parametrize(
    "count", [None, 0, 1, 40, MAX_PENDING + 60], ids=["nothing sent", "all answered", "one", "some", "many"]
)
async def test_a_drain(service: Service, target: str, count: int | None) -> None:
    """What was taken is answered, then the stream is told to go elsewhere; nobody waits for the grace."""
    stub = service.stub
    async with asyncio.timeout(30), AsyncExitStack() as clients, AsyncExitStack() as server:
        served = await server.enter_async_context(running_service(service.url, grace_seconds=3600))
        channel = await clients.enter_async_context(grpc.aio.insecure_channel(served.address))
        call = ConversationsServiceStub(channel).AppendItems()
        async with held_statement(served.database) as line:
            if not count:
                line.release.set()
            for _ in range(count if count is not None else 0):
                await call.write(ahead(target, user_message()))
            if count:
                await line.started.wait()
                await line.until(lambda: len(line.writes) >= min(count, MAX_PENDING) - 1)
            elif count == 0:
                await call.write(ahead(target, user_message()))
                assert [2] == firsts([await call.read()])
            else:
                await call.wait_for_connection()
            draining = asyncio.create_task(server.aclose())
            await asyncio.sleep(0.1)  # whatever it does meanwhile, it may not forget what waits
            line.release.set()
            found, end = await answers(call)
            await draining
    assert "UNAVAILABLE SHUTTING_DOWN" == end
    last = (await stub.GetConversation(get(target))).last_sequence
    assert list(range(2 if count else last + 1, last + 1)) == firsts(found)
    assert last > min(count or 0, MAX_PENDING)
