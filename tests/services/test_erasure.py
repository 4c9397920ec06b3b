"""EraseSubject removes all that a person has, and nothing of anybody else; GetErasure keeps the receipt."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any, cast
from uuid import uuid4

import grpc
import grpc.aio
import pytest
from conversations.v1.conversations_service_pb2 import (
    ORDER_ASCENDING,
    ForkConversationRequest,
    ListConversationsRequest,
    WatchItemsRequest,
)
from conversations.v1.erasure_service_pb2 import EraseSubjectRequest, Erasure, GetErasureRequest
from conversations.v1.erasure_service_pb2_grpc import ErasureServiceStub
from structlog.testing import capture_logs

from server.app.service import run_service
from server.services import erasure as servicer
from server.settings.service import load
from server.store import erasing
from tests.support.access import ANN, BOB, EVE, OTHER_ANN, GuardedService, caller
from tests.support.build import append, copy_of, create, delete, delete_item, get, list_items, text_of, user_message
from tests.support.erasure import (
    ALL_ROWS,
    ERASURE_RULES,
    OPERATOR,
    counts,
    erase,
    get_erasure,
    messages,
    receipt,
    rest_of,
    until,
)
from tests.support.postgres import row_locked
from tests.support.problems import problem, problem_of
from tests.support.service import Service, running_service

IS_DELETED = "SELECT delete_time IS NOT NULL FROM conversations WHERE id = $1"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody follows a conversation, unless a test says so."""
    monkeypatch.setattr(erasing, "_WATCH_SECONDS", 0.0)
    monkeypatch.setattr(servicer, "_POLL_SECONDS", (0.02, 0.02))


@pytest.fixture
async def world(guarded: GuardedService) -> GuardedService:
    """A service in which everybody may do everything with conversations, and an operator may erase."""
    await guarded.connection.execute("TRUNCATE conversations, items, requests, conversation_attributes")
    guarded.obey(ERASURE_RULES)
    return guarded


async def fill(world: GuardedService) -> None:
    """Conversations of Bob, Eve and a namesake of Ann in another tenant, with request ids."""
    for who in (BOB, EVE, OTHER_ANN):
        request = create(user_message(f"of {who.id}"), request_id=str(uuid4()), metadata={"user": who.id})
        await world.by(who).CreateConversation(request)


async def test_a_principal(world: GuardedService) -> None:
    """Its conversations, items, copies of items and request ids go; everything else is as if it had never been."""
    ann, bob, eve = (world.by(each) for each in (ANN, BOB, EVE))
    await fill(world)
    bobs = (await bob.CreateConversation(create(user_message("first", id="msg_b")))).id
    before = await world.value(ALL_ROWS)

    own = await ann.CreateConversation(create(user_message(id="msg_a"), user_message(), request_id=str(uuid4())))
    await bob.CreateItems(append(own.id, user_message(), copy_of(bobs, "msg_b"), request_id=str(uuid4())))
    await ann.DeleteItem(delete_item(own.id, "msg_a", request_id=str(uuid4())))
    gone = await ann.CreateConversation(create(user_message(id="msg_c")))
    await ann.CreateItems(append(bobs, user_message(), user_message(id="msg_x"), request_id=str(uuid4())))
    await ann.DeleteItem(delete_item(bobs, "msg_x"))
    await bob.CreateItems(append(bobs, user_message("last"), copy_of(gone.id, "msg_c")))
    await eve.CreateItems(append(bobs, user_message("of eve", id="msg_e")))
    await ann.DeleteConversation(delete(gone.id))

    (counted,) = await messages(world, erase("ann", validate_only=True))
    request = erase("ann")
    *running, done = await messages(world, request)
    assert (2, 5, 3, 4) == counts(counted) == counts(done)
    assert [Erasure.STATE_RUNNING] == [each.state for each in running]
    assert (Erasure.STATE_DONE, "operator", request.request_id) == (done.state, done.requested_by, done.id)
    assert done.begin_time.ToDatetime() <= done.end_time.ToDatetime()
    assert done == await world.by(OPERATOR).GetErasure(get_erasure(request))
    assert Erasure.STATE_UNSPECIFIED == counted.state

    listed = (await bob.ListItems(list_items(bobs, order=ORDER_ASCENDING))).items
    assert [(1, "first"), (4, "last"), (6, "of eve")] == [(item.sequence, text_of(item)) for item in listed]
    assert "CONVERSATION_NOT_FOUND" == (await problem(ann.GetConversation(get(own.id)))).reason
    assert [] == list((await ann.ListConversations(ListConversationsRequest(filter='owner = "ann"'))).conversations)
    await world.connection.execute("DELETE FROM items WHERE conversation_id = $1 AND sequence > 1", bobs)
    await world.connection.execute("UPDATE conversations SET last_sequence = 1 WHERE id = $1", bobs)
    assert before == await world.value(ALL_ROWS)


async def test_a_filter(world: GuardedService) -> None:
    """Conversations that match go, living or deleted, whoever owns them; in this tenant only."""
    await fill(world)
    before = await world.value(ALL_ROWS)
    for who in (ANN, BOB):
        made = await world.by(who).CreateConversation(create(user_message(), metadata={"user": "u1"}))
        await world.by(who).CreateItems(append(made.id, user_message(), request_id=str(uuid4())))
    await world.by(BOB).DeleteConversation(delete(made.id))
    theirs = await world.by(OTHER_ANN).CreateConversation(create(user_message(), metadata={"user": "u1"}))
    asked = {"filter": 'metadata.user = "u1"'}
    (counted,) = await messages(world, erase(**asked, validate_only=True))
    assert (2, 4, 0, 2) == counts(counted) == counts(await receipt(world, erase(**asked)))
    await world.by(OTHER_ANN).GetConversation(get(theirs.id))
    await world.connection.execute("DELETE FROM items WHERE conversation_id = $1", theirs.id)
    await world.connection.execute("DELETE FROM conversation_attributes WHERE conversation_id = $1", theirs.id)
    await world.connection.execute("DELETE FROM conversations WHERE id = $1", theirs.id)
    assert before == await world.value(ALL_ROWS)


async def test_forks(world: GuardedService) -> None:
    """A fork by somebody else loses the copies and forgets where it comes from; a filter by source takes forks only."""
    ann, bob = world.by(ANN), world.by(BOB)
    own = (await ann.CreateConversation(create(user_message("of ann")))).id
    await bob.CreateItems(append(own, user_message("of bob")))
    forks = [await bob.ForkConversation(ForkConversationRequest(conversation_id=own)) for _ in range(2)]
    assert (0, 0, 0, 0) == counts(await receipt(world, erase(filter='forked_from = "conv_none"')))
    await bob.DeleteConversation(delete(forks[1].id))
    assert (1, 2, 2, 0) == counts(await receipt(world, erase("ann")))
    left = await bob.GetConversation(get(forks[0].id))
    assert not left.HasField("forked_from")
    listed = (await bob.ListItems(list_items(left.id))).items
    assert [(2, "of bob")] == [(item.sequence, text_of(item)) for item in listed]
    assert 0 == await world.value("SELECT count(*) FROM conversations WHERE forked_from IS NOT NULL")
    again = await bob.ForkConversation(ForkConversationRequest(conversation_id=left.id))
    assert (1, 1, 0, 0) == counts(await receipt(world, erase(filter=f'forked_from = "{left.id}"')))
    assert "CONVERSATION_NOT_FOUND" == (await problem(bob.GetConversation(get(again.id)))).reason


async def test_nothing_to_erase(world: GuardedService) -> None:
    """A person that has nothing is erased as well, with a receipt of zeros."""
    await fill(world)
    before = await world.value(ALL_ROWS)
    assert (0, 0, 0, 0) == counts(await receipt(world, erase("nobody")))
    assert (0, 0, 0, 0) == counts(await receipt(world, erase(filter='metadata.user = "nobody"')))
    assert before == await world.value(ALL_ROWS)


# --- requests


UUID = "7d0d4a0e-9c4e-4f0a-8f7e-1f4f4b7c0a11"
WRONG: dict[str, tuple[EraseSubjectRequest, set[str]]] = {
    "nothing": (EraseSubjectRequest(), {"subject", "request_id"}),
    "no subject": (EraseSubjectRequest(request_id=UUID), {"subject"}),
    "no request id": (EraseSubjectRequest(principal="ann"), {"request_id"}),
    "empty principal": (EraseSubjectRequest(principal="", request_id="x"), {"principal", "request_id"}),
    "257 bytes": (erase("ä" * 128 + "x"), {"principal"}),
    "U+0000": (erase("a\0"), {"principal"}),
    "empty filter": (erase(filter=""), {"filter"}),
    "blank filter": (erase(filter=" \n"), {"filter"}),
    "no filter": (erase(filter="everything"), {"filter"}),
    "field of items": (erase(filter='role = "user"'), {"filter"}),
    "2,049 characters": (erase(filter=f'owner = "{"x" * 2_039}"'), {"filter"}),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("validate_only", [False, True])
async def test_a_wrong_request(world: GuardedService, name: str, validate_only: bool) -> None:  # noqa: FBT001
    """Whatever is wrong is told at once by its fields, and nothing is stored."""
    request, fields = WRONG[name]
    sent = EraseSubjectRequest()
    sent.CopyFrom(request)
    sent.validate_only = validate_only
    before = await world.value("SELECT count(*) FROM erasures")
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await messages(world, sent)
    found = problem_of(ended.value)
    assert ("INVALID_ARGUMENT", fields) == (found.code, set(found.fields))
    assert before == await world.value("SELECT count(*) FROM erasures")


@pytest.mark.parametrize("principal", ["ä" * 128, "'; DROP TABLE items; --", "x\x01\u2028", "%", "\\"])
async def test_a_strange_principal(world: GuardedService, principal: str) -> None:
    """A principal of as many bytes as may be, or of bytes that mean something elsewhere, is only that one."""
    await fill(world)
    before = await world.value(ALL_ROWS)
    await world.row(principal)
    done = await receipt(world, erase(principal))
    assert (1, 2, 0, 0) == counts(done)
    assert before == await world.value(ALL_ROWS)


async def test_a_long_filter(world: GuardedService) -> None:
    """A filter of 2,048 characters is taken."""
    assert (0, 0, 0, 0) == counts(await receipt(world, erase(filter=f'owner = "{"x" * 2_038}"')))


async def test_a_request_id(world: GuardedService) -> None:
    """The same request joins the erasure, in either case; one for another subject is refused; a tenant has its own."""
    await world.row("ann")
    request = erase("ann")
    done = await receipt(world, request)
    await world.row("ann")
    assert done == await receipt(world, request)
    assert done == await receipt(world, erase("ann", request_id=request.request_id.upper()))
    upper = GetErasureRequest(erasure_id=request.request_id.upper())
    assert done == await world.by(OPERATOR).GetErasure(upper)
    for other in (erase("bob", request_id=request.request_id), erase(filter='owner = "ann"', request_id=done.id)):
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await messages(world, other)
        assert ("FAILED_PRECONDITION", "REQUEST_ID_REUSED") == (
            problem_of(ended.value).code,
            problem_of(ended.value).reason,
        )
    theirs = caller("operator", "umbrella")
    missing = await problem(world.by(theirs).GetErasure(get_erasure(request)))
    assert ("NOT_FOUND", "ERASURE_NOT_FOUND", done.id) == (missing.code, missing.reason, missing.metadata["erasureId"])
    assert (0, 0, 0, 0) == counts((await messages(world, erase("bob", request_id=done.id), theirs))[-1])
    assert 1 == await world.value("SELECT count(*) FROM conversations")


async def test_an_erasure_that_nobody_asked_for(world: GuardedService) -> None:
    """An id that is none is refused as such, and one that was never used is not found."""
    missing = await problem(world.by(OPERATOR).GetErasure(GetErasureRequest(erasure_id=UUID)))
    assert ("NOT_FOUND", ("ErrorInfo", "ResourceInfo")) == (missing.code, missing.details)
    wrong = await problem(world.by(OPERATOR).GetErasure(GetErasureRequest(erasure_id="x")))
    assert ("INVALID_ARGUMENT", {"erasure_id"}) == (wrong.code, set(wrong.fields))


async def test_receipts_are_kept_for_90_days(world: GuardedService) -> None:
    """A receipt that is older is not found, and the purge removes it; a subject is forgotten at once."""
    request = erase("ann")
    await receipt(world, request)
    forgotten = "SELECT principal || filter FROM erasures WHERE id = $1"
    assert "" == await world.value(forgotten, request.request_id)
    await world.connection.execute(
        "UPDATE erasures SET begin_time = begin_time - interval '91 days', end_time = end_time - interval '91 days'"
        " WHERE id = $1",
        request.request_id,
    )
    missing = await problem(world.by(OPERATOR).GetErasure(get_erasure(request)))
    assert "ERASURE_NOT_FOUND" == missing.reason
    await erasing.purge_erasures(world.connection)
    assert await world.value(forgotten, request.request_id) is None


# --- who may


WHO: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "default": ([], []),
    "a named principal": ([{"permit": {"principal": "ann", "actions": "erase", "resource": "tenant::*"}}], ["ann"]),
    "a role": ([{"permit": {"actions": "erase"}, "when": "user with dpo in roles"}], ["dora"]),
    "everything else": ([{"permit": {"actions": ["create", "read", "update", "delete", "share", "explain"]}}], []),
    "forbidden first": (
        [{"forbid": {"actions": "erase"}, "when": "user with blue in teams"}, {"permit": {"actions": "erase"}}],
        ["ann", "dora"],
    ),
    "owners": ([{"permit": {"actions": "erase"}, "when": "user is owner"}], []),
}


@pytest.mark.parametrize("policy", WHO)
async def test_who_may_erase(world: GuardedService, policy: str) -> None:
    """Nobody but whom a rule permits it gets further than PERMISSION_DENIED, whatever else they may do."""
    rules, allowed = WHO[policy]
    world.obey(rules)
    row = await world.row("nobody")
    for who in (ANN, EVE, caller("dora", roles="dpo")):
        for call in (
            messages(world, erase("nobody", validate_only=True), who),
            messages(world, erase("someone"), who),
            world.by(who).GetErasure(GetErasureRequest(erasure_id=UUID)),
        ):
            try:
                await call
                code = "OK"
            except grpc.aio.AioRpcError as error:
                code = problem_of(error).reason
            assert (who.id in allowed) == (code in ("OK", "ERASURE_NOT_FOUND")), (who, code)
            assert code in ("OK", "ERASURE_NOT_FOUND", "ACTION_DENIED")
    assert 1 == await world.value("SELECT count(*) FROM conversations WHERE id = $1", row)


async def test_without_identity(own_service: Service) -> None:
    """The one user of a service without identity may erase, itself too."""
    service, stub = own_service, cast("Any", ErasureServiceStub(own_service.channel))
    made = await service.stub.CreateConversation(create(user_message()))
    done = [each async for each in stub.EraseSubject(erase("local"))][-1]
    assert done.conversation_count >= 1
    assert "" == done.requested_by  # it was erased
    assert "CONVERSATION_NOT_FOUND" == (await problem(service.stub.GetConversation(get(made.id)))).reason


# --- the stream


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.Event]:
    """Keeps erasures from removing rows until it is set."""
    may_go_on = asyncio.Event()
    hide_all = erasing._Erasure._hide_all

    async def hide_and_wait(self: Any) -> None:
        await hide_all(self)
        await may_go_on.wait()

    monkeypatch.setattr(erasing._Erasure, "_hide_all", hide_and_wait)
    yield may_go_on
    may_go_on.set()


async def until_done(world: GuardedService, request: EraseSubjectRequest) -> Erasure:
    """The receipt, once there is one."""
    found = Erasure()

    async def is_done() -> bool:
        found.CopyFrom(await world.by(OPERATOR).GetErasure(get_erasure(request)))
        return bool(found.HasField("end_time"))

    await until(is_done)
    return found


async def test_a_caller_that_goes(world: GuardedService, slow: asyncio.Event) -> None:
    """An erasure is carried on without its caller, whose conversations are hidden from the first step on."""
    row = await world.row("ann")
    request = erase("ann")
    call = world.by(OPERATOR).EraseSubject(request)
    assert Erasure.STATE_RUNNING == (await call.read()).state
    await until(lambda: world.value(IS_DELETED, row))
    assert "CONVERSATION_NOT_FOUND" == (await problem(world.by(ANN).GetConversation(get(row)))).reason
    call.cancel()
    slow.set()
    assert (1, 2, 0, 0) == counts(await until_done(world, request))


async def test_progress_is_told(world: GuardedService, slow: asyncio.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message comes at once, and again and again until the receipt."""
    monkeypatch.setattr(servicer, "TELL_SECONDS", 0.05)
    await world.row("ann")
    call = world.by(OPERATOR).EraseSubject(erase("ann"))
    told = [await call.read() for _ in range(4)]
    assert {Erasure.STATE_RUNNING} == {each.state for each in told}
    slow.set()
    assert Erasure.STATE_DONE == (await rest_of(call))[-1].state


async def test_a_permission_that_is_taken_away(
    world: GuardedService, slow: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream ends when its caller may erase no more; the erasure was begun, and goes on."""
    monkeypatch.setattr(servicer, "TELL_SECONDS", 0.05)
    request = erase("ann")
    call = world.by(OPERATOR).EraseSubject(request)
    await call.read()
    world.obey(ERASURE_RULES[1:])
    with capture_logs() as lines, pytest.raises(grpc.aio.AioRpcError) as ended:
        await rest_of(call)
    assert ("PERMISSION_DENIED", "ACTION_DENIED") == (problem_of(ended.value).code, problem_of(ended.value).reason)
    refusals = [(line["event"], line["action"]) for line in lines if line.get("log") == "audit"]
    assert [("refused", "erase")] == refusals
    slow.set()
    world.obey(ERASURE_RULES)
    await until_done(world, request)


async def test_one_of_a_tenant_at_a_time(world: GuardedService, slow: asyncio.Event) -> None:
    """A second one waits for the first; one of another tenant does not."""
    for owner, tenant in (("ann", "acme"), ("bob", "acme"), ("ann", "umbrella")):
        await world.row(owner, tenant=tenant)
    hidden = "SELECT count(*) FROM conversations WHERE delete_time = '-infinity' AND tenant = $1"
    requests = [erase("ann"), erase("bob")]
    calls = [world.by(OPERATOR).EraseSubject(each) for each in requests]
    for call in calls:
        await call.read()
    theirs = asyncio.create_task(messages(world, erase("ann"), caller("operator", "umbrella")))
    await until(lambda: world.value(hidden, "umbrella"))
    assert 1 == await world.value(hidden, "acme")
    slow.set()
    assert [(1, 2, 0, 0)] * 2 == [counts(await until_done(world, each)) for each in requests]
    assert (1, 2, 0, 0) == counts((await theirs)[-1])


async def test_watches_are_told(world: GuardedService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who follows a conversation is told of the items that go from it, and of the end of one that is erased."""
    monkeypatch.setattr(erasing, "_WATCH_SECONDS", 1.0)
    bobs = (await world.by(BOB).CreateConversation(create(user_message(id="msg_b")))).id
    await world.by(ANN).CreateItems(append(bobs, user_message(id="msg_a")))
    watch = world.by(BOB).WatchItems(WatchItemsRequest(conversation_id=bobs, after_sequence=2))
    await watch.read()
    await receipt(world, erase("ann"))
    await world.by(BOB).CreateItems(append(bobs, user_message(id="msg_c")))
    told = [change for _ in range(2) for change in (await watch.read()).changes]
    assert ["deleted_item", "item"] == [change.WhichOneof("change") for change in told]
    assert [2, 3] == [told[0].deleted_item.sequence, told[1].item.sequence]
    await receipt(world, erase("bob"))
    assert [True] == [change.HasField("conversation_deleted") for change in (await watch.read()).changes]


async def test_a_drain(own_service: Service, slow: asyncio.Event) -> None:
    """A stream ends when the server drains; the next process carries the erasure on, without being asked."""
    service = own_service
    await service.stub.CreateConversation(create(user_message()))
    request = erase("local")
    async with AsyncExitStack() as stack:
        values = {"listen": "127.0.0.1:0", "database_url": service.url, "purge_every_minutes": 0, "grace_seconds": 5}
        first = await stack.enter_async_context(AsyncExitStack())
        served = await first.enter_async_context(run_service(load(**values)))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(served.address))
        stub: Any = ErasureServiceStub(channel)
        call = stub.EraseSubject(request)
        await call.read()
        draining = asyncio.create_task(first.aclose())
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await rest_of(call)
        await draining
    assert ("UNAVAILABLE", "SHUTTING_DOWN") == (problem_of(ended.value).code, problem_of(ended.value).reason)
    slow.set()
    async with running_service(service.url) as second:
        again: Any = ErasureServiceStub(second.channel)

        async def is_done() -> bool:
            return bool((await again.GetErasure(get_erasure(request))).HasField("end_time"))

        await until(is_done)


async def test_what_is_logged(world: GuardedService) -> None:
    """One line tells of an erasure, with what has gone and without whose it was."""
    await world.row("secret-name")
    with capture_logs() as lines:
        request = erase("secret-name")
        await receipt(world, request)

        async def is_told() -> bool:
            return any(line.get("log") == "audit" for line in lines)

        await until(is_told)  # the receipt is committed a moment before
        (told,) = [line for line in lines if line.get("log") == "audit"]
    expected = {
        "event": "erased",
        "principal": "operator",
        "tenant": "acme",
        "resource": "tenant",
        "action": "erase",
        "erasure_id": request.request_id,
        "conversations": 1,
        "items": 2,
        "foreign_items": 0,
        "requests": 0,
    }
    assert expected == {key: told[key] for key in expected}
    assert "secret-name" not in repr(lines)


async def test_a_locked_conversation_delays_only_the_erasure(world: GuardedService) -> None:
    """The erasure waits for the lock of nobody, so nobody waits behind it."""
    held, free = await world.row("ann"), await world.row("ann")
    bobs = await world.row("bob")
    await world.by(ANN).CreateItems(append(bobs, user_message()))
    request = erase("ann")
    async with row_locked(world.url, held):
        call = world.by(OPERATOR).EraseSubject(request)
        await call.read()
        await until(lambda: world.value(IS_DELETED, free))
        async with asyncio.timeout(1):
            await world.by(BOB).CreateItems(append(bobs, user_message()))
        assert not await world.value(IS_DELETED, held)
    done = (await rest_of(call))[-1]
    assert (2, 4, 1, 0) == counts(done)
