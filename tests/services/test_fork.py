"""ForkConversation: the beginning of a conversation, copied into one that is the caller's own."""

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import grpc.aio
import pytest
from conversations.v1.conversation_pb2 import Conversation
from conversations.v1.conversations_service_pb2 import (
    ForkConversationRequest,
    ListConversationsRequest,
    WatchConversationsRequest,
)
from google.protobuf.duration_pb2 import Duration

from server.store import change_log, forks
from server.store.connection.execution import Execute, Execution, Rows
from tests.support.access import ANN, BOB, EMMA, EVE, EVERYTHING, OTHER_ANN, Caller, GuardedService, caller
from tests.support.build import (
    append,
    create,
    delete,
    delete_item,
    fork,
    get,
    list_items,
    plain,
    rewind,
    sets,
    update,
    user_message,
)
from tests.support.histories import grow, stored_items
from tests.support.plans import nodes
from tests.support.problems import problem, problem_of
from tests.support.proxied import Proxied, proxied_service, unknown
from tests.support.service import Service, intercepted, recorded_statements
from tests.support.watching import KEEP

ITEMS = 6
DELETED = 3  # a place of every source


async def made(stub: Any, count: int = ITEMS, **fields: Any) -> Conversation:
    """A conversation with the items `msg_1` to `msg_<count>`, of which one is deleted."""
    new = (user_message(str(number), id=f"msg_{number}") for number in range(1, count + 1))
    conversation: Conversation = await stub.CreateConversation(create(*new, **fields))
    if count >= DELETED:
        await stub.DeleteItem(delete_item(conversation.id, f"msg_{DELETED}"))
    return conversation


def prefix(items: dict[int, Any], last: int) -> dict[int, Any]:
    """The items up to a place."""
    return {sequence: item for sequence, item in items.items() if sequence <= last}


# --- what is copied

CUTS: dict[str, tuple[dict[str, Any], int]] = {
    "all": ({}, ITEMS),
    **{f"through place {n}": ({"through_sequence": n}, min(n, ITEMS)) for n in (0, 1, 2, 3, 4, 6, 7, 2**63 - 1)},
    **{f"through item {n}": ({"through_item_id": f"msg_{n}"}, n) for n in (1, 2, 4, 5, 6)},
}


@pytest.mark.parametrize(("through", "last"), CUTS.values(), ids=CUTS)
async def test_every_cut(service: Service, through: dict[str, Any], last: int) -> None:
    """A fork is the prefix of its source, byte for byte, and goes on behind its last place."""
    stub, pool = service.stub, service.database.pool
    source = await made(stub, metadata={"a": "1"})
    items = await stored_items(pool, source.id)
    forked = await stub.ForkConversation(fork(source.id, **through))
    assert await stored_items(pool, forked.id) == prefix(items, last)
    assert (forked.last_sequence, forked.forked_from.sequence, forked.forked_from.conversation_id) == (
        last,
        last,
        source.id,
    )
    assert (forked.owner, dict(forked.metadata), forked.etag) == ("local", {"a": "1"}, '"1"')
    assert forked == await stub.GetConversation(get(forked.id))
    assert not (await stub.GetConversation(get(source.id))).HasField("forked_from")
    added = await stub.CreateItems(append(forked.id, user_message(id="msg_3")))
    assert [item.sequence for item in added.items] == [last + 1]


CHANGES: dict[str, Callable[[Any, str], Awaitable[Any]]] = {
    "append": lambda stub, target: stub.CreateItems(append(target, user_message("later"))),
    "delete item": lambda stub, target: stub.DeleteItem(delete_item(target, "msg_2")),
    "rewind": lambda stub, target: stub.RewindConversation(rewind(target, 0)),
    "update": lambda stub, target: stub.UpdateConversation(update(target, metadata={"b": "2"})),
    "delete": lambda stub, target: stub.DeleteConversation(delete(target)),
    "fork": lambda stub, target: stub.ForkConversation(fork(target)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("side", ["source", "fork"])
async def test_the_two_are_apart(service: Service, change: str, side: str) -> None:
    """Whatever happens to one of the two later, the other stays as it was."""
    stub, pool = service.stub, service.database.pool
    source = await made(stub)
    forked = await stub.ForkConversation(fork(source.id))
    changed, other = (source.id, forked.id) if side == "source" else (forked.id, source.id)
    before = await stored_items(pool, other), await stub.GetConversation(get(other))
    await CHANGES[change](stub, changed)
    assert before == (await stored_items(pool, other), await stub.GetConversation(get(other)))


async def test_a_fork_of_a_fork(service: Service) -> None:
    """A fork can be forked, and says where it came from, not where that did."""
    stub = service.stub
    source = await made(stub)
    first = await stub.ForkConversation(fork(source.id, through_sequence=5))
    second = await stub.ForkConversation(fork(first.id, through_sequence=4))
    assert (second.forked_from.conversation_id, second.forked_from.sequence) == (first.id, 4)
    items = await stored_items(service.database.pool, source.id)
    assert await stored_items(service.database.pool, second.id) == prefix(items, 4)


async def test_metadata_is_laid_over(stub: Any) -> None:
    """A key that is sent has the value that was sent, every other that of the source."""
    source = await made(stub, metadata={"a": "1", "b": "2"})
    forked = await stub.ForkConversation(fork(source.id, metadata={"b": "3", "c": "4"}))
    assert dict(forked.metadata) == {"a": "1", "b": "3", "c": "4"}
    assert dict((await stub.GetConversation(get(source.id))).metadata) == {"a": "1", "b": "2"}


async def test_its_own_end(service: Service) -> None:
    """A fork ends when its request says, not with its source; the purge knows of it."""
    stub = service.stub
    source = await made(stub, ttl=Duration(seconds=3600))
    for_ever = await stub.ForkConversation(fork(source.id))
    assert not for_ever.HasField("expire_time")
    forked = await stub.ForkConversation(fork(source.id, idle_ttl=Duration(seconds=7200)))
    assert forked.expire_time.seconds - forked.create_time.seconds == 7200
    assert forked.idle_ttl == Duration(seconds=7200)
    check = "SELECT check_time = expire_time FROM expirations JOIN conversations ON id = conversation_id WHERE id = $1"
    assert await service.database.pool.fetchval(check, forked.id)
    await service.database.pool.execute("UPDATE conversations SET expire_time = now() WHERE id = $1", source.id)
    assert "NOT_FOUND" == (await problem(stub.ForkConversation(fork(source.id)))).code
    assert "NOT_FOUND" == (await problem(stub.RewindConversation(rewind(source.id, 0)))).code
    assert ITEMS == (await stub.GetConversation(get(forked.id))).last_sequence
    too_long = Duration(seconds=1)
    told = await problem(stub.ForkConversation(fork(forked.id, ttl=too_long)))
    assert told.fields == {"conversation.ttl": "duration.gte_lte"}


@pytest.mark.parametrize("request_id", ["", "7d0d4a0e-9c4e-4f0a-8f7e-1f4f4b7c0a17"])
async def test_one_statement(service: Service, request_id: str) -> None:
    """A fork is one round trip."""
    source = await made(service.stub)
    with recorded_statements(service.database) as statements:
        await service.stub.ForkConversation(fork(source.id, request_id, through_item_id="msg_2"))
    assert len(statements) == 1


# --- the forks of a conversation


async def test_forks_are_listed(stub: Any) -> None:
    """The filter `forked_from` finds the forks of one conversation, in both orders, and those that are left."""
    source, other = await made(stub), await made(stub)
    own = [(await stub.ForkConversation(fork(source.id, metadata={"n": str(n)}))).id for n in range(4)]
    await stub.ForkConversation(fork(other.id))
    await stub.DeleteConversation(delete(own[1]))
    await stub.DeleteConversation(delete(source.id))
    expected = [own[0], *own[2:]]

    async def listed(text: str, order: str = "create_time") -> list[str]:
        request = ListConversationsRequest(filter=text, order_by=order, page_size=2)
        page = await stub.ListConversations(request)
        found = [each.id for each in page.conversations]
        while page.next_page_token:
            request.page_token = page.next_page_token
            page = await stub.ListConversations(request)
            found += [each.id for each in page.conversations]
        return found

    assert await listed(f'forked_from = "{source.id}"') == expected
    assert await listed(f'forked_from = "{source.id}"', "create_time desc") == expected[::-1]
    assert await listed(f'forked_from = "{source.id}" AND metadata.n = "2"') == [own[2]]
    assert await listed(f'forked_from = "{source.id}" AND forked_from = "{other.id}"') == []
    assert await listed('forked_from = ""') == []
    told = await problem(stub.ListConversations(ListConversationsRequest(filter=f'forked_from != "{source.id}"')))
    assert told.reason == "FILTER_INVALID"


# --- bounds


async def test_only_so_many_places(service: Service) -> None:
    """Ten thousand places are copied, and of one more none."""
    stub, pool = service.stub, service.database.pool
    source = (await made(stub, 1)).id
    await grow(pool, source, forks.MAX_PLACES + 1)
    for request in (fork(source), fork(source, through_item_id=f"msg_{forks.MAX_PLACES + 1}")):
        told = await problem(stub.ForkConversation(request))
        place = request.WhichOneof("through") or "through_sequence"
        assert (told.code, told.reason, told.metadata) == ("INVALID_ARGUMENT", "LIMIT_EXCEEDED", {"limit": "10000"})
        assert told.fields == {place: "through.max_places"}
    forked = await stub.ForkConversation(fork(source, through_sequence=forks.MAX_PLACES))
    assert forked.last_sequence == forks.MAX_PLACES
    items = await stored_items(pool, source)
    assert await stored_items(pool, forked.id) == prefix(items, forks.MAX_PLACES)


async def test_no_more_is_read_than_copied(service: Service) -> None:
    """A fork of a conversation that is too long reads as many of its items as may be copied, and no more."""
    pool, source = service.database.pool, (await made(service.stub, 1)).id
    await grow(pool, source, 3 * forks.MAX_PLACES)
    sent: list[Execution] = []

    async def keep(execute: Execute, execution: Execution) -> Rows:
        sent.append(execution)
        return await execute(execution)

    with intercepted(service.database, keep):
        await problem(service.stub.ForkConversation(fork(source)))
    assert 2 == len(sent)
    for execution in sent:
        explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {execution.statement.text}"
        plan = json.loads(await pool.fetchval(explain, *execution.arguments[0]))[0]["Plan"]
        read = max(node["Actual Rows"] * node["Actual Loops"] for node in nodes(plan))
        assert read <= forks.MAX_PLACES


async def test_only_so_many_bytes(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The items that are copied have a limit together, to the byte."""
    stub, pool = service.stub, service.database.pool
    source = (await made(stub)).id
    bodies = [item[-1] for item in (await stored_items(pool, source)).values()]
    monkeypatch.setattr(forks, "MAX_BYTES", sum(map(len, bodies)))
    await stub.ForkConversation(fork(source))
    await stub.CreateItems(append(source, user_message()))
    told = await problem(stub.ForkConversation(fork(source)))
    assert (told.reason, told.fields) == ("LIMIT_EXCEEDED", {"through_sequence": "through.max_bytes"})
    await stub.ForkConversation(fork(source, through_sequence=ITEMS))


async def test_only_so_many_pairs(stub: Any) -> None:
    """The metadata of both together has sixteen keys at most."""
    source = await made(stub, metadata={str(n): "" for n in range(15)})
    await stub.ForkConversation(fork(source.id, metadata={"0": "", "new": ""}))
    told = await problem(stub.ForkConversation(fork(source.id, metadata={"new": "", "newer": ""})))
    assert (told.reason, told.fields) == ("LIMIT_EXCEEDED", {"conversation.metadata": "map.max_pairs"})


INVALID: dict[str, tuple[ForkConversationRequest, dict[str, str]]] = {
    "nothing": (ForkConversationRequest(), {"conversation_id": "string.pattern"}),
    "everything": (
        fork("x", "x", through_sequence=-1, metadata={"": ""}, attributes=sets(A=["b"])),
        {
            "conversation_id": "string.pattern",
            "through_sequence": "int64.gte",
            "request_id": "string.uuid",
            'conversation.metadata[""]': "string.min_len",
            'conversation.attributes["A"]': "string.pattern",
        },
    ),
    "an empty item id": (fork("conv_a", through_item_id=""), {"through_item_id": "string.pattern"}),
}


@pytest.mark.parametrize(("request_", "fields"), INVALID.values(), ids=INVALID)
async def test_what_is_invalid(stub: Any, request_: ForkConversationRequest, fields: dict[str, str]) -> None:
    """Every violation is told at once."""
    told = await problem(stub.ForkConversation(request_))
    assert ("INVALID_ARGUMENT", "FIELD_INVALID", fields) == (told.code, told.reason, told.fields)


@pytest.mark.parametrize("item_id", ["msg_3", "msg_never"])
async def test_an_item_that_is_not_there(stub: Any, item_id: str) -> None:
    """A deleted item is no place to fork at, and neither is one that never was; its sequence is."""
    source = (await made(stub)).id
    told = await problem(stub.ForkConversation(fork(source, through_item_id=item_id)))
    assert ("NOT_FOUND", "ITEM_NOT_FOUND") == (told.code, told.reason)
    assert told.metadata == {"conversationId": source, "itemId": item_id}


# --- the policy

BOTH = caller("bea", teams="red blue")


PIA = caller("pia", teams="red", projects="x")


@pytest.mark.parametrize("who", [ANN, BOB, BOTH, PIA, EMMA], ids=lambda each: each.id)
async def test_no_fork_is_seen_by_more_than_its_source(guarded: GuardedService, who: Caller) -> None:
    """Under rules of every kind, whoever can read a fork that was made without `share` can read its source."""
    guarded.obey(
        [
            {"permit": {"actions": EVERYTHING}, "when": "user is owner"},
            {"forbid": {"actions": ["read"], "resource": "item::msg_secret"}, "unless": "user in owners projects"},
            {"permit": {"actions": ["read", "create"]}, "when": "user in owners teams"},
            {"permit": {"actions": ["read", "create"]}, "when": "user in owners projects"},
        ]
    )
    shares: list[dict[str, list[str]]] = [{}, {"teams": ["red"]}, {"teams": ["red", "blue"]}, {"projects": ["x"]}]
    requests: list[dict[str, list[str]]] = [*shares, {"teams": []}]
    made_forks = 0
    callers = [ANN, BOB, EVE, BOTH, EMMA, PIA, OTHER_ANN]
    for owner, held, sent in itertools.product(("ann", "bea", "emma", "zoe"), shares, requests):
        source = await guarded.row(owner, held)
        forked, reason = await outcome(guarded.by(who).ForkConversation(fork(source, attributes=sets(**sent))))
        if forked is None:
            assert reason in ("ACTION_DENIED", "CONVERSATION_NOT_FOUND")
            continue
        made_forks += 1
        may_share = owner == who.id
        for other in (each for each in callers if each is not who):
            if await sees(guarded, other, forked.id):
                assert may_share or await sees(guarded, other, source), (owner, held, sent, other)
        assert plain(forked).get("teams", set()) <= set(who.attributes.get("teams", ()))
        hidden = set() if may_share or "x" in plain(forked).get("projects", ()) else {"msg_secret"}
        assert await items_in(guarded, forked.id) == {"msg_open", "msg_secret"} - hidden
    assert made_forks


async def items_in(guarded: GuardedService, conversation_id: str) -> set[str]:
    """The ids of the items that are stored in a conversation."""
    rows = await guarded.connection.fetch("SELECT item_id FROM items WHERE conversation_id = $1", conversation_id)
    return {row["item_id"] for row in rows}


async def outcome(call: Awaitable[Any]) -> tuple[Any, str]:
    """The answer of a call, or the reason of its refusal."""
    try:
        return await call, ""
    except grpc.aio.AioRpcError as error:
        return None, problem_of(error).reason


async def sees(guarded: GuardedService, who: Caller, conversation_id: str) -> bool:
    """Whether a caller can read a conversation."""
    found, reason = await outcome(guarded.by(who).GetConversation(get(conversation_id)))
    assert found or reason in ("CONVERSATION_NOT_FOUND", "ACTION_DENIED")
    return found is not None


ATTRIBUTES: dict[str, tuple[dict[str, list[str]], dict[str, list[str]], dict[str, set[str]]]] = {
    # of the source, sent by Bea, who is red and blue; and what the fork has
    "those of the source that are mine": ({"teams": ["green", "red"]}, {}, {"teams": {"red"}}),
    "not of other names": ({"projects": ["x"]}, {}, {}),
    "none that the source lacks": ({}, {}, {}),
    "an empty list": ({"teams": ["red"]}, {"teams": []}, {}),
    "some of them": ({"teams": ["blue", "red"]}, {"teams": ["blue"]}, {"teams": {"blue"}}),
}


@pytest.mark.parametrize(("held", "sent", "expected"), ATTRIBUTES.values(), ids=ATTRIBUTES)
async def test_attributes(
    guarded: GuardedService, held: dict[str, list[str]], sent: dict[str, list[str]], expected: dict[str, set[str]]
) -> None:
    """A fork gets the values that the source and the caller have, unless other ones are sent, and lists know them."""
    guarded.obey([{"permit": {"actions": ["read", "create"]}}])
    source = await guarded.row("zoe", held)
    forked = await guarded.by(BOTH).ForkConversation(fork(source, attributes=sets(**sent)))
    assert ("bea", expected) == (forked.owner, plain(forked))
    rows = await guarded.connection.fetch(
        "SELECT attribute FROM conversation_attributes WHERE conversation_id = $1", forked.id
    )
    assert {row["attribute"] for row in rows} == {f"{name}={value}" for name in expected for value in expected[name]}


async def test_sharing_more_needs_share_on_the_source(guarded: GuardedService) -> None:
    """A reader cannot show to one team what was shown to another; who may share the source can."""
    readers: list[Any] = [{"permit": {"actions": ["read", "create"]}}]
    sharers = [{"permit": {"actions": EVERYTHING}, "when": "user in owners projects"}, *readers]
    source = await guarded.row("zoe", {"teams": ["red"], "projects": ["x"]})
    bea = caller("bea", teams="red blue", projects="x")
    request = fork(source, attributes=sets(teams=["blue", "red"]))
    guarded.obey(readers)
    told = await problem(guarded.by(bea).ForkConversation(request))
    assert ("PERMISSION_DENIED", {"resource": "conversation", "action": "share"}) == (told.code, told.metadata)
    guarded.obey(sharers)
    forked = await guarded.by(bea).ForkConversation(request)
    assert {"teams": {"red", "blue"}, "projects": {"x"}} == plain(forked)
    told = await problem(guarded.by(bea).ForkConversation(fork(source, attributes=sets(teams=["green"]))))
    assert ("PERMISSION_DENIED", "share") == (told.code, told.metadata["action"])  # not her own


DENIED: dict[str, tuple[list[Any], dict[str, str]]] = {
    "create of the conversation": (
        [{"forbid": {"actions": ["create"], "resource": "conversation::*"}, "when": "user in owners teams"}],
        {"resource": "conversation", "action": "create"},
    ),
    "create of the items": (
        [{"forbid": {"actions": ["create"], "resource": "item::*"}, "when": "user in owners teams"}],
        {"resource": "item", "action": "create"},
    ),
    "create of one item": (
        [{"forbid": {"actions": ["create"], "resource": "item::msg_secret"}}],
        {"resource": "item", "action": "create"},
    ),
}


@pytest.mark.parametrize(("rules", "metadata"), DENIED.values(), ids=DENIED)
async def test_what_is_denied(guarded: GuardedService, rules: list[Any], metadata: dict[str, str]) -> None:
    """The row to be is decided on as it would be: with the attributes that it would have, and its items' ids."""
    guarded.obey([*rules, {"permit": {"actions": EVERYTHING}}])
    source = await guarded.row("zoe", {"teams": ["red"]})
    before = await guarded.value("SELECT count(*) FROM conversations")
    told = await problem(guarded.by(BOB).ForkConversation(fork(source)))
    assert ("PERMISSION_DENIED", metadata) == (told.code, told.metadata)
    assert before == await guarded.value("SELECT count(*) FROM conversations")


@pytest.mark.parametrize("resource", ["conversation", "item"])
async def test_what_the_fork_would_be_is_decided_on(guarded: GuardedService, resource: str) -> None:
    """A permission to create for a team needs the fork to be shared with that team, not only the source."""
    rule = {"permit": {"actions": ["create"], "resource": f"{resource}::*"}, "when": "user in owners teams"}
    other = {"forbid": {"actions": ["create"], "resource": f"{resource}::*"}}
    guarded.obey([rule, other, {"permit": {"actions": EVERYTHING}}])
    source = await guarded.row("zoe", {"teams": ["red"]})
    assert await guarded.by(BOB).ForkConversation(fork(source))
    told = await problem(guarded.by(BOB).ForkConversation(fork(source, attributes=sets(teams=[]))))
    assert ("PERMISSION_DENIED", resource) == (told.code, told.metadata["resource"])


async def test_items_that_are_hidden_are_left_out(guarded: GuardedService) -> None:
    """Items that the caller cannot read are not copied, and one of them is no place to fork at."""
    guarded.obey(
        [
            {"forbid": {"actions": ["read"], "resource": "item::msg_secret"}, "unless": "user is owner"},
            {"permit": {"actions": EVERYTHING}},
        ]
    )
    source = await guarded.row("ann")
    forked = await guarded.by(BOB).ForkConversation(fork(source))
    page = await guarded.by(BOB).ListItems(list_items(forked.id))
    assert (["msg_open"], 2) == ([item.id for item in page.items], forked.last_sequence)
    told = await problem(guarded.by(BOB).ForkConversation(fork(source, through_item_id="msg_secret")))
    assert told.reason == "ITEM_NOT_FOUND"
    whole = await guarded.by(ANN).ForkConversation(fork(source, through_item_id="msg_secret"))
    assert 2 == len((await guarded.by(ANN).ListItems(list_items(whole.id))).items)


async def test_a_repeated_call_is_authorized_again(guarded: GuardedService) -> None:
    """The fork of an earlier call is returned to who may still create it."""
    source = await guarded.row("ann", {"teams": ["red"]})
    request = fork(source, str(uuid4()))
    first = await guarded.by(BOB).ForkConversation(request)
    assert first == await guarded.by(BOB).ForkConversation(request)
    guarded.obey([{"permit": {"actions": ["read"]}}])
    assert "PERMISSION_DENIED" == (await problem(guarded.by(BOB).ForkConversation(request))).code


# --- retries and failures


async def test_a_request_id_of_its_own(stub: Any) -> None:
    """A create and a fork under one request id are two conversations; a fork of another source is another request."""
    source, other = await made(stub), await made(stub)
    request_id = str(uuid4())
    created = await stub.CreateConversation(create(request_id=request_id))
    forked = await stub.ForkConversation(fork(source.id, request_id))
    assert created.id != forked.id
    told = await problem(stub.ForkConversation(fork(other.id, request_id)))
    assert ("FAILED_PRECONDITION", "REQUEST_ID_REUSED") == (told.code, told.reason)
    await stub.CreateItems(append(source.id, user_message()))
    await stub.DeleteItem(delete_item(forked.id, "msg_1"))
    assert forked == await stub.ForkConversation(fork(source.id, request_id))
    await stub.DeleteConversation(delete(source.id))
    assert forked == await stub.ForkConversation(fork(source.id, request_id))
    await stub.DeleteConversation(delete(forked.id))
    assert "NOT_FOUND" == (await problem(stub.ForkConversation(fork(source.id, request_id)))).code


async def test_a_lost_answer(postgres: str, template: str) -> None:
    """Without a request id nobody repeats a fork that may have been made; under one it is made once."""
    async with proxied_service(postgres, template) as served:
        proxy, stub = served.proxy, served.stub
        source = await made(stub)
        proxy.lose_answers(b"needle")
        await unknown(stub.ForkConversation(fork(source.id, metadata={"a": "needle"})))
        await proxy.heal()
        assert 1 == len(await forks_of(served, source.id))
        proxy.lose_answers(b"thread", every=2)
        request = fork(source.id, str(uuid4()), metadata={"a": "thread"})
        first = await stub.ForkConversation(request)
        assert first == await stub.ForkConversation(request)
        assert proxy.lost
        await proxy.heal()
        assert 2 == len(await forks_of(served, source.id))


async def forks_of(served: Proxied, source_id: str) -> list[Conversation]:
    """The forks of a conversation."""
    request = ListConversationsRequest(filter=f'forked_from = "{source_id}"')
    return list((await served.stub.ListConversations(request)).conversations)


async def test_a_caller_that_leaves(service: Service) -> None:
    """A fork whose caller leaves is made whole or not at all, and its retry finds it or makes it."""
    stub, pool = service.stub, service.database.pool
    source = (await made(stub, 1)).id
    await grow(pool, source, 2_000)
    items = await stored_items(pool, source)
    for delay in (0.001, 0.01, 0.03, 0.06, 0.1):
        request = fork(source, str(uuid4()))
        call = stub.ForkConversation(request)
        await asyncio.sleep(delay)
        call.cancel()
        forked = await stub.ForkConversation(request)
        assert await stored_items(pool, forked.id) == items
    rows = await pool.fetch("SELECT id FROM conversations WHERE forked_from = $1", source)
    assert len(rows) == 5


# --- beside others


async def test_only_a_few_large_ones_at_once(service: Service) -> None:
    """Of large forks two run at a time, and small ones pass them."""
    stub = service.stub
    small, large = (await made(stub)).id, (await made(stub, 1)).id
    await grow(service.database.pool, large, forks.SMALL_PLACES + 1)
    running, most, refused, release = 0, 0, 0, asyncio.Event()

    async def count(execute: Execute, execution: Execution) -> Rows:
        nonlocal running, most, refused
        rows = await execute(execution)
        refused += "may_create_items" in execution.statement.text  # as a small one, so that it waits next
        if "forked_from" in execution.statement.text and forks.MAX_PLACES in execution.arguments[0] and rows:
            running += 1
            most = max(most, running)
            await release.wait()
            running -= 1
        return rows

    with intercepted(service.database, count):
        calls = [asyncio.ensure_future(stub.ForkConversation(fork(large))) for _ in range(5)]
        async with asyncio.timeout(10):
            while running < forks.MAX_LARGE or refused < len(calls):  # noqa: ASYNC110 - the statement tells
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert 6 == (await stub.ForkConversation(fork(small))).last_sequence
        gone = calls.pop()
        gone.cancel()  # one that waits
        release.set()
        made_forks = await asyncio.gather(*calls)
    assert ({forks.SMALL_PLACES + 1}, forks.MAX_LARGE) == ({each.last_sequence for each in made_forks}, most)
    assert forks.SMALL_PLACES + 1 == (await stub.ForkConversation(fork(large))).last_sequence


async def test_beside_appends(service: Service) -> None:
    """Forks that are made while others append, in groups, are prefixes that end between two groups."""
    stub, pool = service.stub, service.database.pool
    source = (await made(stub)).id
    ending = asyncio.Event()

    async def write() -> None:
        while not ending.is_set():
            await stub.CreateItems(append(source, *(user_message(str(n)) for n in range(3))))

    writers = [asyncio.create_task(write()) for _ in range(4)]
    made_forks: list[Conversation] = []
    while len({each.last_sequence for each in made_forks}) < 5:
        made_forks += await asyncio.gather(*(stub.ForkConversation(fork(source)) for _ in range(2)))
    ending.set()
    await asyncio.gather(*writers)
    items = await stored_items(pool, source)
    for each in made_forks:
        assert (each.last_sequence - ITEMS) % 3 == 0
        assert await stored_items(pool, each.id) == prefix(items, each.last_sequence)


# --- watches


async def test_a_fork_is_a_new_conversation_to_watches(own_service: Service) -> None:
    """Whoever follows all conversations is told of a fork with all its items."""
    await change_log.turn_on(own_service.url, KEEP)
    stub = own_service.stub
    source = await made(stub)
    call = stub.WatchConversations(WatchConversationsRequest(include_items=True), timeout=30)
    await call.read()
    forked = await stub.ForkConversation(fork(source.id, through_sequence=5))
    (change,) = (await call.read()).changes
    call.cancel()
    assert forked == change.conversation
    assert [1, 2, 4, 5] == [each.item.sequence for each in change.items]
