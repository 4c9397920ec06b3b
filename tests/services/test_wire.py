"""The wire: whatever bytes arrive, callers get documented answers and learn nothing else."""

import asyncio
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from time import monotonic, time
from typing import Any

import asyncpg
import grpc
import pytest
from conversations.v1 import conversations_service_pb2 as pb
from conversations.v1.content_pb2 import Opaque
from conversations.v1.error_reason_pb2 import ErrorReason
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from structlog.testing import capture_logs

from server import errors
from server.store.conversations import ConversationStore
from tests.support.build import (
    append,
    batch_get,
    copy_of,
    create,
    delete,
    get,
    get_item,
    list_items,
    new_item,
    request_of_each_method,
    sets,
    text_of,
    update,
    user_message,
)
from tests.support.postgres import row_locked
from tests.support.problems import Problem, problem, problem_of
from tests.support.service import Service, running_service

SERVICE = pb.DESCRIPTOR.services_by_name["ConversationsService"]
# Those that end when they have answered; tests/services/test_watch_items.py has the other one.
METHODS = [method.name for method in SERVICE.methods if method.client_streaming or not method.server_streaming]
MIB = 1024 * 1024
REQUEST_ID = "7d0d4a0e-9c4e-4f0a-8f7e-1f4f4b7c0a11"


def raw(channel: grpc.aio.Channel, method: str) -> Callable[[bytes], Any]:
    """The method of the service with bytes for messages."""
    call: Any = channel.unary_unary(f"/{SERVICE.full_name}/{method}")
    return call  # type: ignore[no-any-return]


def bodies(generator: random.Random, conversation_id: str, count: int) -> Iterator[tuple[str, bytes]]:
    """Random bytes, and valid requests with a few bytes changed, over all methods."""
    requests = {
        method: request.SerializeToString() for method, request in request_of_each_method(conversation_id).items()
    }
    for number in range(count):
        method = METHODS[number % len(METHODS)]
        if generator.random() < 0.2:
            yield method, generator.randbytes(generator.randrange(80))
            continue
        body = bytearray(requests[method])
        for _ in range(generator.choice((1, 1, 1, 2, 4))):
            at = generator.randrange(len(body))
            match generator.randrange(4):
                case 0:
                    body[at] = generator.randrange(256)
                case 1:
                    body[at] ^= 1 << generator.randrange(8)
                case 2:
                    body[at:at] = generator.randbytes(generator.randint(1, 4))
                case _ if len(body) > 1:
                    del body[at]
        yield method, bytes(body)


async def code_of(call: Any) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


async def test_random_bodies(service: Service) -> None:
    """No body at all is answered with anything but success, INVALID_ARGUMENT or NOT_FOUND."""
    made = await service.stub.CreateConversation(create(user_message(id="msg_1")))
    calls = {method: raw(service.channel, method) for method in METHODS}
    seen: Counter[str] = Counter()
    odd: list[tuple[str, str, bytes]] = []
    batch: list[tuple[str, bytes]] = []
    for method, body in bodies(random.Random(1), made.id, 3000):
        batch.append((method, body))
        if len(batch) == 20:
            for (name, sent), code in zip(
                batch, await asyncio.gather(*(code_of(calls[name](sent)) for name, sent in batch)), strict=True
            ):
                seen[code] += 1
                odd += [(code, name, sent)] if code not in ("OK", "INVALID_ARGUMENT", "NOT_FOUND") else []
            batch.clear()
    assert odd == []
    assert sum(seen.values()) == 3000
    assert min(seen[code] for code in ("OK", "INVALID_ARGUMENT", "NOT_FOUND")) > 30, seen


@pytest.mark.parametrize("method", METHODS)
async def test_malformed_bodies(service: Service, method: str) -> None:
    """A body that is no message of its type is an invalid argument, with nothing of the parser in the text."""
    for body in (b"\xff", b"\x0a\xff", b"\x0a\x03conv"[:4], b"\x0b" * 200, b"\x00" * 9):
        failure = await problem(raw(service.channel, method)(body))
        assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "FIELD_INVALID")
        assert failure.message == "Invalid request: the request is not a message of its type."


@pytest.mark.parametrize(
    "bad", [b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xff", b"\xc0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82"]
)
async def test_strings_are_utf_8(service: Service, bad: bytes) -> None:
    """A lone surrogate, an overlong form or a cut character in any string is an invalid argument."""
    for method, request in {**request_of_each_method("conv_1"), "GetConversation": get("conv_1234")}.items():
        sample = request.SerializeToString()
        text = next(word for word in (b"conv", b"demo", b"create_time", b"metadata") if word in sample)
        body = sample.replace(text, bad + text[len(bad) :], 1)
        assert len(body) == len(sample)
        failure = await problem(raw(service.channel, method)(body))
        assert (method, failure.code, failure.reason) == (method, "INVALID_ARGUMENT", "FIELD_INVALID")


# U+0000, which PostgreSQL cannot store in text

NUL: list[tuple[str, str, Callable[[str], Any]]] = [
    ("metadata value", "CreateConversation", lambda _: create(metadata={"a": "b\0"})),
    ("metadata key", "CreateConversation", lambda _: create(metadata={"a\0": "b"})),
    ("metadata update", "UpdateConversation", lambda target: update(target, "metadata.a", metadata={"a": "\0"})),
    ("mask", "UpdateConversation", lambda target: update(target, "metadata\0")),
    ("key in a mask", "UpdateConversation", lambda target: update(target, "metadata.`a\0b`")),
    ("name in a mask", "UpdateConversation", lambda target: update(target, "attributes.`a\0b`")),
    ("attribute value", "CreateConversation", lambda _: create(attributes=sets(a=["\0"]))),
    ("attribute name", "CreateConversation", lambda _: create(attributes=sets(**{"a\0": ["b"]}))),
    ("conversation id", "GetConversation", lambda _: get("conv_\0")),
    ("updated id", "UpdateConversation", lambda _: update("conv_\0", metadata={})),
    ("item id", "GetItem", lambda target: get_item(target, "msg_\0")),
    ("new item id", "CreateItems", lambda target: append(target, user_message(id="msg_\0"))),
    ("after", "ListItems", lambda target: list_items(target, after="msg_\0")),
    ("page token", "ListItems", lambda target: list_items(target, page_token="\0")),
    ("request id", "CreateItems", lambda target: append(target, user_message(), request_id="\0")),
    ("filter value", "ListConversations", lambda _: pb.ListConversationsRequest(filter='metadata.a = "\0"')),
    ("filter key", "ListConversations", lambda _: pb.ListConversationsRequest(filter='metadata.`\0` = "a"')),
    ("filter name", "ListConversations", lambda _: pb.ListConversationsRequest(filter='owner\0 = "a"')),
    ("filter of items", "ListItems", lambda target: list_items(target, filter='type = "\0"')),
    ("order", "ListConversations", lambda _: pb.ListConversationsRequest(order_by="create_time\0")),
    (
        "conversation of a reference",
        "CreateItems",
        lambda target: append(target, copy_of("conv_\0", "msg_1")),
    ),
    (
        "type of an unknown item",
        "CreateItems",
        lambda target: append(target, new_item(unknown=Opaque(type="a\0", json=b'{"type":"a\\u0000"}'))),
    ),
]


@pytest.mark.parametrize(("method", "build"), [pytest.param(m, b, id=name) for name, m, b in NUL])
async def test_u_0000_is_refused(stub: Any, method: str, build: Callable[[str], Any]) -> None:
    """U+0000 where the database would choke on it is an invalid argument."""
    made = await stub.CreateConversation(create())
    failure = await problem(getattr(stub, method)(build(made.id)))
    assert failure.code == "INVALID_ARGUMENT", failure
    assert await stub.GetConversation(get(made.id)) == made


async def test_an_etag_with_u_0000_is_another_etag(stub: Any) -> None:
    """An etag is compared, never stored, so that U+0000 in it is just wrong."""
    made = await stub.CreateConversation(create())
    assert (await problem(stub.DeleteConversation(delete(made.id, etag='"1\0"')))).reason == "ETAG_MISMATCH"


HOSTILE = [
    "%_\\\"'",
    "'; DROP TABLE items; --",
    "\u202eright to left\u202c שלום",
    "👩‍👩‍👧‍👦 e\u0301 \U0010ffff",
    "\ufffe\uffff\ufdd0",
    "\ufeffbom",
    "\r\n\t\x01\x1b[31m\x7f",
    '{"a": "\\u0000"}',
    "\\u0000",
    "$1 %s {} ${jndi:ldap://x}",
    " ",
]


@pytest.mark.parametrize("text", [*HOSTILE, "\0", "a\0b", ""])
async def test_any_text_of_a_message_comes_back(stub: Any, text: str) -> None:
    """The text of a message is stored and read back as sent, U+0000 included."""
    made = await stub.CreateConversation(create())
    item = (await stub.CreateItems(append(made.id, user_message(text)))).items[0]
    assert text_of(item) == text
    assert await stub.GetItem(get_item(made.id, item.id)) == item


@pytest.mark.parametrize("text", HOSTILE)
async def test_any_metadata_comes_back(stub: Any, text: str) -> None:
    """Metadata is stored as sent, set and removed by key, and found by a filter on it."""
    made = await stub.CreateConversation(create(metadata={text: text, "other": "x"}))
    assert await stub.GetConversation(get(made.id)) == made
    assert dict(made.metadata) == {text: text, "other": "x"}
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    found = await stub.ListConversations(pb.ListConversationsRequest(filter=f'metadata.`{text}` = "{escaped}"'))
    assert made.id in [conversation.id for conversation in found.conversations]
    removed = await stub.UpdateConversation(update(made.id, f"metadata.`{text}`"))
    assert dict(removed.metadata) == {"other": "x"}


@pytest.mark.parametrize("text", HOSTILE)
async def test_any_attribute_comes_back(stub: Any, text: str) -> None:
    """Values of attributes are stored as sent and found by a filter on them."""
    made = await stub.CreateConversation(create(attributes=sets(a=[text])))
    assert list(made.attributes["a"].values) == [text]
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    found = await stub.ListConversations(pb.ListConversationsRequest(filter=f'attributes.a = "{escaped}"'))
    assert made.id in [conversation.id for conversation in found.conversations]


# Sizes


async def test_a_message_beyond_the_limit(service: Service) -> None:
    """A request that is too big is refused before anything reads it."""
    assert (await problem(raw(service.channel, "GetConversation")(bytes(16 * MIB + 1)))).code == "RESOURCE_EXHAUSTED"
    assert (await problem(raw(service.channel, "GetConversation")(bytes(16 * MIB)))).code == "INVALID_ARGUMENT"


async def sized(stub: Any, size: int) -> Any:
    """A message that is ``size`` bytes when stored, or one less: the time takes another number of bytes."""
    made = await stub.CreateConversation(create(user_message("x" * (size // 2))))
    item = stored((await stub.ListItems(list_items(made.id))).items[0])
    item.create_time.nanos = 999_999_999
    assert 256 < size // 2 < size < 2**21, "the lengths inside would take another number of bytes"
    return user_message("x" * (size // 2 + size - item.ByteSize()))


def stored(item: Any) -> Any:
    """An item as it lies in the database."""
    item.ClearField("sequence")
    return item


async def _after(seconds: float, call: Any) -> Any:
    """The answer, not before ``seconds`` have passed since the last one."""
    await asyncio.sleep(seconds)
    return await call


async def test_item_size(service: Service) -> None:
    """Items of up to the limit are stored, one of a byte more is not."""
    async with running_service(service.url, max_item_bytes=2048) as served:
        item = await sized(served.stub, 2048)
        made = await served.stub.CreateConversation(create())
        # A time below 0.27 of a second takes a byte less, and one below 0.002 two: try for longer than that.
        longest = Timestamp(seconds=int(time()), nanos=999_999_999).ByteSize()
        answers = [await _after(0.02, served.stub.CreateItems(append(made.id, item))) for _ in range(30)]
        assert max(stored(answer.items[0]).ByteSize() for answer in answers) == 2048
        item.item.message.content[0].input_text.text += "x"
        refused = 0
        for _ in range(30):
            try:
                answer = await _after(0.02, served.stub.CreateItems(append(made.id, user_message(), item)))
            except grpc.aio.AioRpcError as error:
                assert problem_of(error).fields == {"items[1].item": "item.max_bytes"}  # noqa: PT017
                refused += 1
            else:
                kept = stored(answer.items[1])
                assert kept.ByteSize() == 2049 - (longest - kept.create_time.ByteSize()) < 2049
        assert refused > 0
        assert (await served.stub.GetConversation(get(made.id))).last_sequence == 30 + 2 * (30 - refused)


async def test_an_append_is_answered_or_not_made(service: Service) -> None:
    """Items whose answer would not fit into a message are refused before they are written."""
    async with running_service(service.url, max_item_bytes=32 * 1024, max_message_bytes=64 * 1024) as served:
        item = await sized(served.stub, 32 * 1024)
        made = await served.stub.CreateConversation(create())
        failure = await problem(served.stub.CreateItems(append(made.id, item, item)))
        last_sequence = (await served.stub.GetConversation(get(made.id))).last_sequence
        assert (failure.code, failure.fields, last_sequence) == ("INVALID_ARGUMENT", {"items": "items.max_bytes"}, 0)


async def filled(stub: Any, sizes: list[int]) -> str:
    """A conversation with messages of these sizes, `msg_0` first."""
    made = await stub.CreateConversation(create())
    for number, size in enumerate(sizes):
        await stub.CreateItems(append(made.id, user_message("é" * (size // 2), id=f"msg_{number}")))
    return str(made.id)


async def read_through(stub: Any, conversation_id: str) -> list[list[str]]:
    """The ids on each page of up to 100 items."""
    found: list[list[str]] = []
    token = ""
    while True:
        page = await stub.ListItems(list_items(conversation_id, page_size=100, page_token=token))
        found.append([item.id for item in page.items])
        assert (page.has_more, page.last_id) == (page.next_page_token != "", found[-1][-1])
        token = page.next_page_token
        if not token:
            return found


async def test_a_page_ends_before_it_is_too_big(service: Service) -> None:
    """Fifteen items of 1 MiB come in two pages that miss none, and are too many for one batch."""
    conversation_id = await filled(service.stub, [MIB] * 15)
    found = await read_through(service.stub, conversation_id)
    assert list(chain(*found)) == [f"msg_{number}" for number in reversed(range(15))]
    assert len(found) == 2
    assert len(found[0]) > len(found[1])
    failure = await problem(service.stub.BatchGetItems(batch_get(conversation_id, *(f"msg_{n}" for n in range(15)))))
    assert (failure.code, failure.reason, set(failure.metadata)) == ("RESOURCE_EXHAUSTED", "LIMIT_EXCEEDED", {"limit"})
    some = await service.stub.BatchGetItems(batch_get(conversation_id, *(f"msg_{n}" for n in range(10))))
    assert len(some.items) == 10


async def test_a_page_of_items_of_any_size_can_be_sent(service: Service) -> None:
    """Large items after smaller ones do not make a page that is bigger than a message may be."""
    conversation_id = await filled(service.stub, [12 * MIB - 1024, 6 * MIB, 11 * MIB])
    assert list(chain(*await read_through(service.stub, conversation_id))) == ["msg_2", "msg_1", "msg_0"]
    failure = await problem(service.stub.BatchGetItems(batch_get(conversation_id, "msg_2", "msg_1", "msg_0")))
    assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "LIMIT_EXCEEDED")


async def test_a_page_fits_the_configured_message(service: Service) -> None:
    """Where messages are set to be smaller, pages are too."""
    async with running_service(service.url, max_message_bytes=256 * 1024, max_item_bytes=128 * 1024) as served:
        conversation_id = await filled(served.stub, [100 * 1024] * 5)
        found = await read_through(served.stub, conversation_id)
        assert list(chain(*found)) == ["msg_4", "msg_3", "msg_2", "msg_1", "msg_0"]


# Errors


@pytest.mark.parametrize("path", [f"/{SERVICE.full_name}/Nope", "/x.Y/Nope", "/", f"/{SERVICE.full_name}/"])
async def test_an_unknown_method(service: Service, path: str) -> None:
    """A method that does not exist is not implemented."""
    call: Any = service.channel.unary_unary(path)
    assert (await problem(call(b""))).code == "UNIMPLEMENTED"


async def test_a_bug_tells_nothing(
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An unexpected exception is INTERNAL with an incident that the log has too, and its text is in neither."""

    async def broken(*_: Any) -> None:
        raise ValueError("secret")

    monkeypatch.setattr(ConversationStore, "get", broken)
    with capture_logs() as lines, pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.stub.GetConversation(get("conv_1"))
    failure, written = problem_of(caught.value), capfd.readouterr()
    assert (failure.code, failure.reason, failure.message) == ("INTERNAL", "INTERNAL", "Internal error.")
    assert [line["incident"] for line in lines if "incident" in line] == [failure.metadata["incident"]]
    assert set(failure.metadata) == {"incident"}
    told = [
        str(caught.value),
        repr(caught.value.trailing_metadata()),
        repr(lines),
        written.out,
        written.err,
        caplog.text,
    ]
    assert [text for text in told if "secret" in text] == []


async def info_of(call: Any) -> ErrorInfo:
    """The ErrorInfo of a failed call, the first of its details."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = Status.FromString(dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"])
    assert (status.code, status.message) == (caught.value.code().value[0], caught.value.details())
    names = [detail.type_url for detail in status.details]
    assert len(names) == len(set(names))
    info = ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


REASONS: list[tuple[str, str, Callable[[str], Any]]] = [
    ("CONVERSATION_NOT_FOUND", "GetConversation", lambda _: get("conv_nothing")),
    ("ITEM_NOT_FOUND", "GetItem", lambda target: get_item(target, "msg_nothing")),
    ("FIELD_INVALID", "GetConversation", lambda _: get("x")),
    ("LIMIT_EXCEEDED", "UpdateConversation", lambda target: update(target, "metadata.x", metadata={"x": "1"})),
    ("PAGE_TOKEN_INVALID", "ListItems", lambda target: list_items(target, page_token="x")),
    ("FILTER_INVALID", "ListItems", lambda target: list_items(target, filter="x")),
    ("ITEM_EXISTS", "CreateItems", lambda target: append(target, user_message(id="msg_1"))),
    ("REQUEST_ID_REUSED", "CreateItems", lambda target: append(target, user_message("b"), request_id=REQUEST_ID)),
    ("ETAG_MISMATCH", "DeleteConversation", lambda target: delete(target, etag='"9"')),
    ("SEQUENCE_MISMATCH", "CreateItems", lambda target: append(target, user_message(), expected_last_sequence=9)),
]


@pytest.mark.parametrize(("reason", "method", "build"), REASONS)
async def test_every_error_has_its_reason(stub: Any, reason: str, method: str, build: Callable[[str], Any]) -> None:
    """An error's first detail is an ErrorInfo in our domain with a documented reason."""
    made = await stub.CreateConversation(create(user_message(id="msg_1"), metadata={f"k{n}": "" for n in range(16)}))
    await stub.CreateItems(append(made.id, user_message("a"), request_id=REQUEST_ID))
    info = await info_of(getattr(stub, method)(build(made.id)))
    assert (info.domain, info.reason) == ("conversations.v1", reason)
    assert f"ERROR_REASON_{reason}" in ErrorReason.keys()  # noqa: SIM118 - a wrapper, not a mapping


def classes(base: type[errors.ServiceError]) -> Iterator[type[errors.ServiceError]]:
    yield base
    for child in base.__subclasses__():
        yield from classes(child)


def test_every_reason_is_documented() -> None:
    """Each class of error has a reason of error_reason.proto; only shared parents have that of Failure."""
    reasons = {each.__name__: f"ERROR_REASON_{each.reason}" for each in classes(errors.ServiceError)}
    assert set(reasons.values()) <= set(ErrorReason.keys())
    own = {name: reason for name, reason in reasons.items() if reason == "ERROR_REASON_INTERNAL"}
    assert set(own) == {"ServiceError", "Internal", "_NotFound", "_BadRequest", "Unauthenticated"}


# Time, and a database that goes away


@pytest.mark.parametrize("settings", [{"max_deadline_seconds": 0.3}, {"default_deadline_seconds": 0.3}])
async def test_the_server_has_a_deadline_of_its_own(service: Service, settings: dict[str, float]) -> None:
    """A call that waits longer than the server allows ends with its reason, and writes nothing later."""
    made = await service.stub.CreateConversation(create())
    async with running_service(service.url, **settings) as served:
        async with row_locked(service.url, made.id):
            began = monotonic()
            failure: Problem = await problem(served.stub.UpdateConversation(update(made.id, metadata={"a": "1"})))
            assert (failure.code, failure.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
            assert 0.25 < monotonic() - began < 1.5
        assert await served.stub.GetConversation(get(made.id)) == made


async def test_a_statement_has_a_limit(service: Service) -> None:
    """A statement that takes longer than its own limit ends the call."""
    made = await service.stub.CreateConversation(create())
    async with running_service(service.url, statement_timeout_seconds=0.3) as served, row_locked(service.url, made.id):
        failure = await problem(served.stub.CreateItems(append(made.id, user_message())))
        assert (failure.code, failure.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")


async def test_a_caller_that_leaves_stops_its_statement(service: Service) -> None:
    """When the caller's deadline passes, nothing is left waiting in the database, and nothing is written."""
    made = await service.stub.CreateConversation(create())
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with row_locked(service.url, made.id):
        call = service.stub.UpdateConversation(update(made.id, metadata={"a": "1"}), timeout=0.2)
        assert await code_of(call) == "DEADLINE_EXCEEDED"
        for _ in range(100):
            if not (left := await service.database.pool.fetchval(waiting)):
                break
            await asyncio.sleep(0.02)
        assert left == 0
    assert await service.stub.GetConversation(get(made.id)) == made


async def end_connections(service: Service) -> None:
    """Ends every connection to the database, several of which are open.

    Those of the last time may be renewed just then, which closes them: then it is done again.
    """
    connection = await asyncpg.connect(service.url)
    try:
        async with asyncio.timeout(20):
            ended: list[asyncpg.Record] = []
            while len(ended) <= 1:
                pool = service.database.pool
                await asyncio.gather(*(pool.fetchval("SELECT pg_sleep(0.1)") for _ in range(4)))  # on a connection each
                ended = await connection.fetch(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND application_name = 'conversations'"
                )
    finally:
        await connection.close()


async def test_lost_connections_are_replaced(own_service: Service) -> None:
    """After the database has ended every connection the next calls succeed, reads and writes."""
    stub = own_service.stub
    made = await stub.CreateConversation(create(user_message()))
    for _ in range(3):
        await end_connections(own_service)
        assert await stub.GetConversation(get(made.id)) == made
        assert await asyncio.gather(*(stub.GetConversation(get(made.id)) for _ in range(20))) == [made] * 20
        await stub.CreateConversation(create(request_id=REQUEST_ID))


async def test_connections_lost_in_the_middle(own_service: Service) -> None:
    """Reads that meet the end of their connection are run again; no caller sees more than UNAVAILABLE."""
    stub = own_service.stub
    made = await stub.CreateConversation(create(user_message()))
    connection = await asyncpg.connect(own_service.url)
    seen: Counter[str] = Counter()
    try:
        for _ in range(10):
            calls = [code_of(stub.GetConversation(get(made.id))) for _ in range(30)]
            ending = connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'conversations'"
                " AND query NOT LIKE '%pg_is_in_recovery%'"  # not those of probes: an outage refuses calls
            )
            *codes, _ = await asyncio.gather(*calls, ending)
            seen.update(codes)
    finally:
        await connection.close()
    assert set(seen) <= {"OK", "UNAVAILABLE"}
    assert seen["OK"] > 200
    assert await stub.GetConversation(get(made.id)) == made


def test_the_sample_requests_cover_the_service() -> None:
    """The requests that are mutated above are one of each method."""
    assert sorted(request_of_each_method("conv_1")) == sorted(METHODS)
    assert re.fullmatch(r"[\w.]+", SERVICE.full_name)
