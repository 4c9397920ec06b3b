"""Access over the wire: who may do what to which row, and what the others are told."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from typing import Any
from uuid import uuid4

import grpc
import grpc.aio
import pytest
from conversations.v1.conversations_service_pb2 import ORDER_ASCENDING, ListConversationsRequest

from server.store.purge import purge
from tests.support import reference
from tests.support.access import (
    ANN,
    BOB,
    CALLERS,
    EMMA,
    EVE,
    EVERYTHING,
    OTHER_ANN,
    POLICIES,
    READERS,
    ROWS,
    Caller,
    CallerClient,
    GuardedService,
    _numbers,
    caller,
)
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
    plain,
    rewind,
    sets,
    undelete,
    update,
    user_message,
)
from tests.support.problems import problem
from tests.support.reference import What
from tests.support.service import recorded_statements

# --- the matrix


@dataclass(frozen=True)
class Call:
    """One way to call a method: what it needs, and how to ask."""

    method: str
    request: Any  # of a conversation id
    acts: tuple[tuple[str, str], ...]  # resource and action, beside the reading of the conversation
    item: str = ""  # that is acted upon
    reads_item: bool = False
    rewinds: tuple[str, ...] = ()  # items that are acted upon together, and that must be readable
    forks: tuple[str, ...] = ()  # items that are copied, if they are readable


MATRIX = {
    "create": Call("CreateConversation", lambda _: create(), (("conversation", "create"),)),
    "create with items": Call(
        "CreateConversation",
        lambda _: create(user_message(id="msg_new")),
        (("conversation", "create"), ("item", "create")),
        "msg_new",
    ),
    "get": Call("GetConversation", get, ()),
    "list": Call("ListConversations", lambda _: ListConversationsRequest(page_size=100), ()),
    "update": Call("UpdateConversation", lambda row: update(row, metadata={"a": "1"}), (("conversation", "update"),)),
    "share": Call("UpdateConversation", lambda row: update(row, "attributes"), (("conversation", "share"),)),
    "update and share": Call(
        "UpdateConversation",
        lambda row: update(row, "metadata", "attributes"),
        (("conversation", "update"), ("conversation", "share")),
    ),
    "delete": Call("DeleteConversation", delete, (("conversation", "delete"),)),
    "undelete": Call("UndeleteConversation", undelete, (("conversation", "delete"),)),
    "delete many": Call(
        "DeleteConversations", lambda _: delete_many('metadata.topic = "none"'), (("conversation", "delete"),)
    ),
    "append": Call(
        "CreateItems", lambda row: append(row, user_message(id="msg_new")), (("item", "create"),), "msg_new"
    ),
    "get item": Call("GetItem", lambda row: get_item(row, "msg_open"), (), "msg_open", reads_item=True),
    "get secret": Call("GetItem", lambda row: get_item(row, "msg_secret"), (), "msg_secret", reads_item=True),
    "get no item": Call("GetItem", lambda row: get_item(row, "msg_none"), (), "msg_none", reads_item=True),
    "batch get": Call("BatchGetItems", lambda row: batch_get(row, "msg_open"), (), "msg_open", reads_item=True),
    "batch get secret": Call(
        "BatchGetItems", lambda row: batch_get(row, "msg_secret"), (), "msg_secret", reads_item=True
    ),
    "list items": Call("ListItems", list_items, (), reads_item=True),
    "delete item": Call(
        "DeleteItem", lambda row: delete_item(row, "msg_open"), (("item", "delete"),), "msg_open", reads_item=True
    ),
    "delete secret": Call(
        "DeleteItem", lambda row: delete_item(row, "msg_secret"), (("item", "delete"),), "msg_secret", reads_item=True
    ),
    "fork": Call(
        "ForkConversation", fork, (("conversation", "create"),), reads_item=True, forks=("msg_open", "msg_secret")
    ),
    "fork of open": Call(
        "ForkConversation",
        lambda row: fork(row, through_item_id="msg_open"),
        (("conversation", "create"),),
        "msg_open",
        reads_item=True,
        forks=("msg_open",),
    ),
    "fork of secret": Call(
        "ForkConversation",
        lambda row: fork(row, through_item_id="msg_secret"),
        (("conversation", "create"),),
        "msg_secret",
        reads_item=True,
        forks=("msg_open", "msg_secret"),
    ),
    "rewind": Call(
        "RewindConversation",
        lambda row: rewind(row, 0),
        (("item", "delete"),),
        reads_item=True,
        rewinds=("msg_open", "msg_secret"),
    ),
    "rewind secret": Call(
        "RewindConversation",
        lambda row: rewind(row, 1),
        (("item", "delete"),),
        reads_item=True,
        rewinds=("msg_secret",),
    ),
}
LISTS = {"ListConversations", "DeleteConversations"}  # of no conversation in particular
ITEMS = ("msg_open", "msg_secret", "msg_new", "msg_none")


class Oracle:
    """What the rules on access say: the needs of the methods, and the reference for each of them."""

    def __init__(self, policy: str, who: Caller) -> None:
        self._rules = POLICIES[policy]
        self._caller = who
        self._never = cache(self._is_never)

    def may(self, resource: str, action: str, what: What) -> bool:
        """Whether the policy lets the caller."""
        return reference.allowed(self._rules, self._caller.who, resource, action, what)

    def code(self, call: Call, row: str) -> str:
        """The status of ``call`` on ``row``."""
        creates = call.method == "CreateConversation"
        needs = [*call.acts, *([] if creates else [("conversation", "read")])]
        needs += [("item", "read")] if call.reads_item else []
        needs += [("item", "create")] if call.forks else []
        if any(self._never(*need) for need in needs):
            return "PERMISSION_DENIED"
        if call.method in LISTS:
            return "OK"
        brings_back = call.method == "UndeleteConversation"
        seen = self._seen(row, deleted=brings_back)
        what = What(self._caller.id, self._caller.attributes, "conv_0") if creates else seen
        if what is None:
            return "NOT_FOUND"
        item = What(what.owner, what.attributes, call.item)
        missing = call.item == "msg_none" or not self.may("item", "read", item)
        if call.reads_item and call.item and missing:
            return "NOT_FOUND"
        acts = [self.may(resource, action, item if resource == "item" else what) for resource, action in call.acts]
        if call.forks:
            acts = self._forks(call, what)
        if call.rewinds:
            each = [What(what.owner, what.attributes, name) for name in call.rewinds]
            acts = [self.may("item", action, one) for one in each for action in ("read", "delete")]
        if not all(acts):
            return "PERMISSION_DENIED"
        return "ALREADY_EXISTS" if brings_back and not ROWS[row].get("deleted") else "OK"

    def _forks(self, call: Call, source: What) -> list[bool]:
        """Whether the caller may create the fork, and each of the items that it may read."""
        mine = self._caller.attributes
        both = {name: values & mine.get(name, frozenset()) for name, values in source.attributes.items()}
        seen = [name for name in call.forks if self.may("item", "read", What(source.owner, source.attributes, name))]
        acts = [self.may("item", "create", What(self._caller.id, both, name)) for name in seen]
        return [self.may("conversation", "create", What(self._caller.id, both, "conv_0")), *acts]

    def is_never(self, call: Call) -> bool:
        """Whether the call needs something that the caller may do to no row at all."""
        needs = [*call.acts, *([] if call.method == "CreateConversation" else [("conversation", "read")])]
        needs += [("item", "create")] if call.forks else []
        return any(self._never(*need) for need in [*needs, *([("item", "read")] if call.reads_item else [])])

    def _seen(self, row: str, *, deleted: bool) -> What | None:
        stored = ROWS.get(row)
        if stored is None or (stored.get("deleted") and not deleted) or self._caller.tenant != "acme":
            return None
        what = _what(stored["owner"], stored.get("attributes", {}))
        return what if self.may("conversation", "read", what) else None

    def _is_never(self, resource: str, action: str) -> bool:
        """Nothing that a row could be makes a difference."""
        owners = ("", self._caller.id, "somebody else")
        held = [{}, self._caller.attributes, {"teams": {"green"}}]
        every = itertools.product(owners, held, ("conv_0", *ITEMS))
        return not any(self.may(resource, action, _what(*row)) for row in every)


def _what(owner: str, attributes: Mapping[str, Any], row_id: str = "conv_0") -> What:
    return What(owner, {name: frozenset(values) for name, values in attributes.items()}, row_id)


@dataclass(frozen=True)
class Answer:
    """All that a caller learns."""

    code: str
    message: str = ""
    trailers: tuple[tuple[str, str], ...] = ()
    response: Any = None
    statements: int = 0


async def answer(guarded: GuardedService, who: Caller, call: Call, conversation_id: str) -> Answer:
    """The answer to ``call``, with the id taken out of what refuses it."""
    with recorded_statements(guarded.database) as texts:
        try:
            response = await getattr(guarded.by(who), call.method)(call.request(conversation_id))
        except grpc.aio.AioRpcError as error:
            trailers = tuple(
                (name, str(value).replace(conversation_id, "ID")) for name, value in error.trailing_metadata() or ()
            )
            message = (error.details() or "").replace(conversation_id, "ID")
            return Answer(error.code().name, message, trailers, None, len(texts))
    return Answer("OK", response=response, statements=len(texts))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", CALLERS)
async def test_matrix(guarded: GuardedService, policy: str, name: str) -> None:
    """Every method on every kind of row answers as written, and tells those without access nothing."""
    guarded.obey(POLICIES[policy])
    who, oracle = CALLERS[name], Oracle(policy, CALLERS[name])
    wrong: list[Any] = []
    not_found: dict[str, set[Any]] = {}
    for row, (title, call) in itertools.product((*ROWS, "missing"), MATRIX.items()):
        stored = ROWS.get(row)
        missing = f"conv_{next(_numbers):016d}"  # as long as the others
        conversation_id = await guarded.row(**stored) if stored else missing
        given = await answer(guarded, who, call, conversation_id)
        expected = oracle.code(call, row)
        if expected != given.code:
            wrong.append((title, row, expected, given.code, given.message))
        if oracle.is_never(call) and given.statements:
            wrong.append((title, row, "statements", given.statements))
        if given.code == "OK" and given.statements != 1 and not guarded.database.layout.is_distributed:
            wrong.append((title, row, "statements", given.statements))
        if title == "list" and given.code == "OK":
            there = conversation_id in {each.id for each in given.response.conversations}
            if there != (oracle.code(MATRIX["get"], row) == "OK"):
                wrong.append((title, row, "listed", there))
        if given.code == "NOT_FOUND" and (call.item == "" or oracle.code(MATRIX["get"], row) != "OK"):
            not_found.setdefault(title, set()).add((given.message, given.trailers))
    assert [] == wrong
    assert dict.fromkeys(not_found, 1) == {title: len(each) for title, each in not_found.items()}


async def test_what_is_hidden_is_missing(guarded: GuardedService) -> None:
    """Missing, deleted, unreadable and another tenant's answer alike: message, details and trailers."""
    kinds = [
        await guarded.row("ann", {"teams": ["red"]}),
        await guarded.row("eve", deleted=True),
        await guarded.row("eve", {"teams": ["blue"]}, tenant="umbrella"),
        "conv_" + "9" * 16,
    ]
    await guarded.by(EVE).ListConversations(ListConversationsRequest())  # Citus tells once where shards are
    for title, call in MATRIX.items():
        if call.method in {"CreateConversation", "ListConversations", "UndeleteConversation"}:
            continue  # the last one finds what its caller has deleted
        answers = {repr(await answer(guarded, EVE, call, each)) for each in kinds}
        assert 1 == len(answers), title


@pytest.mark.parametrize("title", [title for title, call in MATRIX.items() if call.method != "CreateConversation"])
async def test_one_statement_under_a_condition(guarded: GuardedService, title: str) -> None:
    """A policy whose plan asks for owner, attributes and ids costs no statement more, on one server."""
    guarded.obey(POLICIES["secret item"])
    conversation_id = await guarded.row("ann", {"teams": ["red"]})
    if MATRIX[title].item == "msg_none":
        return
    if title == "undelete":
        await guarded.by(ANN).DeleteConversation(delete(conversation_id))
    given = await answer(guarded, ANN, MATRIX[title], conversation_id)
    assert "OK" == given.code
    assert 1 == given.statements or guarded.database.layout.is_distributed


# --- lists and points


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "deny all"])
@pytest.mark.parametrize("name", CALLERS)
async def test_a_list_is_its_points(guarded: GuardedService, policy: str, name: str) -> None:
    """ListConversations has what GetConversation finds; ListItems what GetItem and BatchGetItems find."""
    guarded.obey(POLICIES[policy])
    tenant, other = f"tenant-{next(_numbers)}", "umbrella"
    who = replace(CALLERS[name], tenant=tenant if CALLERS[name].tenant == "acme" else other)
    client, owners = guarded.by(who), ("ann", "bob", "")
    held: list[dict[str, list[str]]] = [{}, {"teams": ["red"]}, {"teams": ["blue"]}]
    rows = [await guarded.row(owner, each, tenant=tenant) for owner, each in itertools.product(owners, held)]
    if Oracle(policy, CALLERS[name]).is_never(MATRIX["get"]):
        assert "PERMISSION_DENIED" == (await problem(client.ListConversations(ListConversationsRequest()))).code
        return
    listed: list[str] = []
    token = "start"
    while token:
        request = ListConversationsRequest(page_size=2, page_token=token.removeprefix("start"))
        page = await client.ListConversations(request)
        listed += [each.id for each in page.conversations]
        token = page.next_page_token
        assert 2 == len(page.conversations) or not token
    assert len(set(listed)) == len(listed)
    found = [row for row in rows if await _there(client.GetConversation(get(row)))]
    assert found == [row for row in rows if row in listed]
    for row in found:
        await _items_are_their_points(client, row)


async def _items_are_their_points(client: CallerClient, row: str) -> None:
    ids = ("msg_open", "msg_secret")
    code, page = await _outcome(client.ListItems(list_items(row, order=ORDER_ASCENDING)))
    assert code in {"OK", "PERMISSION_DENIED"}
    listed = [each.id for each in page.items] if page else []
    assert listed == [each for each in ids if await _there(client.GetItem(get_item(row, each)))]
    assert listed == [each for each in ids if await _there(client.BatchGetItems(batch_get(row, each)))]
    assert (len(ids) == len(listed)) == await _there(client.BatchGetItems(batch_get(row, *ids)))


async def _outcome(call: Any) -> tuple[str, Any]:
    """The status of ``call``, and its response when there is one."""
    try:
        return "OK", await call
    except grpc.aio.AioRpcError as error:
        return error.code().name, None


async def _there(call: Any) -> bool:
    code, _ = await _outcome(call)
    assert code in {"OK", "NOT_FOUND", "PERMISSION_DENIED"}
    return code == "OK"


async def test_items_page_by_page_under_a_condition(guarded: GuardedService) -> None:
    """Pages of items are full, and has_more is exact, when every other item is forbidden."""
    guarded.obey(
        [
            {"forbid": {"actions": ["read"], "resource": "regex:item::msg_[02468]"}, "unless": "user is owner"},
            {"permit": {"actions": EVERYTHING}},
        ]
    )
    made = await guarded.by(ANN).CreateConversation(create(*(user_message(id=f"msg_{n}") for n in range(10))))
    client, token, sizes, listed = guarded.by(BOB), "", [], []
    while True:
        page = await client.ListItems(list_items(made.id, order=ORDER_ASCENDING, page_size=2, page_token=token))
        sizes.append((len(page.items), page.has_more))
        listed += [each.id for each in page.items]
        token = page.next_page_token
        if not token:
            break
    assert [f"msg_{n}" for n in (1, 3, 5, 7, 9)] == listed
    assert [(2, True), (2, True), (1, False)] == sizes
    hidden = await problem(client.ListItems(list_items(made.id, after="msg_2")))
    unknown = await problem(client.ListItems(list_items(made.id, after="msg_x")))
    assert hidden == unknown


# --- tenants


async def test_tenants_share_nothing(guarded: GuardedService) -> None:
    """The same id and attributes in another tenant reach nothing, by no method."""
    made = await guarded.by(ANN).CreateConversation(create(user_message(id="msg_open"), user_message(id="msg_secret")))
    stranger = guarded.by(OTHER_ANN)
    for title, call in MATRIX.items():
        if call.method not in {"CreateConversation", *LISTS}:
            assert "NOT_FOUND" == (await answer(guarded, OTHER_ANN, call, made.id)).code, title
    listed = await stranger.ListConversations(ListConversationsRequest())
    assert made.id not in {each.id for each in listed.conversations}
    own = await stranger.CreateConversation(create())
    for request in (create(copy_of(made.id, "msg_open")), append(own.id, copy_of(made.id, "msg_open"))):
        method = stranger.CreateItems if hasattr(request, "conversation_id") else stranger.CreateConversation
        assert "NOT_FOUND" == (await problem(method(request))).code
    assert 2 == len((await guarded.by(ANN).ListItems(list_items(made.id))).items)


async def test_no_tenant_is_a_tenant(guarded: GuardedService) -> None:
    """A caller without a tenant does not see those of all tenants, nor they its own."""
    nobody = Caller("ann", "", {"teams": frozenset({"red"})})
    theirs = await guarded.by(ANN).CreateConversation(create())
    own = await guarded.by(nobody).CreateConversation(create())
    assert "NOT_FOUND" == (await problem(guarded.by(nobody).GetConversation(get(theirs.id)))).code
    assert "NOT_FOUND" == (await problem(guarded.by(ANN).GetConversation(get(own.id)))).code


async def test_page_tokens_stay_in_their_tenant(guarded: GuardedService) -> None:
    """A token of the same id in another tenant is a bad token."""
    for _ in range(3):
        await guarded.by(ANN).CreateConversation(create())
    page = await guarded.by(ANN).ListConversations(ListConversationsRequest(page_size=1))
    request = ListConversationsRequest(page_size=1, page_token=page.next_page_token)
    assert "PAGE_TOKEN_INVALID" == (await problem(guarded.by(OTHER_ANN).ListConversations(request))).reason
    assert "PAGE_TOKEN_INVALID" == (await problem(guarded.by(BOB).ListConversations(request))).reason


async def test_page_tokens_of_items_stay_with_their_caller(guarded: GuardedService) -> None:
    """A token of items is a bad token for another caller, who may read them as well, and in another tenant."""
    made = await guarded.by(ANN).CreateConversation(create(user_message(), user_message()))
    page = await guarded.by(ANN).ListItems(list_items(made.id, page_size=1))
    request = list_items(made.id, page_size=1, page_token=page.next_page_token)
    assert 1 == len((await guarded.by(ANN).ListItems(request)).items)
    for other in (BOB, OTHER_ANN):
        assert "PAGE_TOKEN_INVALID" == (await problem(guarded.by(other).ListItems(request))).reason


async def test_request_ids_of_creates_stay_in_their_tenant(guarded: GuardedService) -> None:
    """The same request id of the same id in two tenants makes two conversations."""
    request_id = str(uuid4())
    first = await guarded.by(ANN).CreateConversation(create(request_id=request_id))
    second = await guarded.by(OTHER_ANN).CreateConversation(create(metadata={"a": "1"}, request_id=request_id))
    assert first.id != second.id
    again = await guarded.by(ANN).CreateConversation(create(request_id=request_id))
    assert first == again


REPLAYS = {
    "UpdateConversation": lambda row, rid, other: update(row, metadata={"a": other}, request_id=rid),
    "CreateItems": lambda row, rid, other: append(row, user_message(other, id="msg_new"), request_id=rid),
    "DeleteItem": lambda row, rid, other: delete_item(row, "msg_secret" if other else "msg_open", request_id=rid),
    "RewindConversation": lambda row, rid, other: rewind(row, 1 if other else 0, request_id=rid),
    "DeleteConversation": lambda row, rid, other: delete(row, etag='"7"' if other else "", request_id=rid),
    "UndeleteConversation": lambda row, rid, _: undelete(row, request_id=rid),
}


@pytest.mark.parametrize("method", REPLAYS)
async def test_a_request_id_tells_another_tenant_nothing(guarded: GuardedService, method: str) -> None:
    """Who has the same id in another tenant, and guesses the request id too, still finds nothing."""
    request_id = str(uuid4())
    row = await guarded.row("ann", {"teams": ["red"]}, deleted=method == "UndeleteConversation")
    missing = "conv_" + "9" * 16
    await getattr(guarded.by(ANN), method)(REPLAYS[method](row, request_id, ""))
    for other in ("", "other"):
        call = Call(method, lambda target, other=other: REPLAYS[method](target, request_id, other), ())
        expected, found = [await answer(guarded, OTHER_ANN, call, each) for each in (missing, row)]
        assert ("NOT_FOUND", expected.message, expected.trailers) == (found.code, found.message, found.trailers)


@pytest.mark.parametrize("method", REPLAYS)
async def test_a_replay_is_authorized_again(guarded: GuardedService, method: str) -> None:
    """Who may still read, but no longer do it, is refused as for the first time; a tombstone is no exception."""
    request, row = await _done_by_bob(guarded, method)
    guarded.obey(READERS)
    expected = {"NOT_FOUND", "PERMISSION_DENIED"} if method == "DeleteConversation" else {"PERMISSION_DENIED"}
    assert (await _outcome(getattr(guarded.by(BOB), method)(request)))[0] in expected, row


@pytest.mark.parametrize("method", [method for method in REPLAYS if method != "DeleteConversation"])
async def test_a_replay_on_what_is_hidden_now(guarded: GuardedService, method: str) -> None:
    """Who may no longer read the conversation finds nothing, whatever they did to it."""
    request, _ = await _done_by_bob(guarded, method)
    guarded.obey([*READERS[:1], {"permit": {"actions": EVERYTHING}, "when": "user in owners projects"}])
    assert "NOT_FOUND" == (await problem(getattr(guarded.by(BOB), method)(request))).code


async def _done_by_bob(guarded: GuardedService, method: str) -> tuple[Any, str]:
    """A request that has been answered, and the conversation it is about."""
    row = await guarded.row("ann", {"teams": ["red"]}, deleted=method == "UndeleteConversation")
    request = REPLAYS[method](row, str(uuid4()), "")
    first = await getattr(guarded.by(BOB), method)(request)
    assert first == await getattr(guarded.by(BOB), method)(request)
    return request, row


# --- defects of the ancestor


async def test_a_reader_cannot_append(guarded: GuardedService) -> None:
    """Who may read a conversation may not write to it for that."""
    guarded.obey(READERS)
    made = await guarded.by(ANN).CreateConversation(create())
    assert made == await guarded.by(BOB).GetConversation(get(made.id))
    assert "PERMISSION_DENIED" == (await problem(guarded.by(BOB).CreateItems(append(made.id, user_message())))).code
    assert 0 == (await guarded.by(ANN).GetConversation(get(made.id))).last_sequence
    assert 0 == await guarded.value("SELECT count(*) FROM items WHERE conversation_id = $1", made.id)


async def test_a_foreign_item_is_not_overwritten(guarded: GuardedService) -> None:
    """An item id that is another's makes an item beside it, never in its place."""
    made = await guarded.by(ANN).CreateConversation(create(user_message("mine", id="msg_x")))
    own = await guarded.by(EVE).CreateConversation(create(user_message("other", id="msg_x")))
    await guarded.by(EVE).CreateItems(append(own.id, user_message("other", id="msg_y")))
    refused = await problem(guarded.by(EVE).CreateItems(append(made.id, user_message("other", id="msg_x"))))
    assert "NOT_FOUND" == refused.code
    kept = await guarded.by(ANN).GetItem(get_item(made.id, "msg_x"))
    assert ("mine", "ann") == (kept.message.content[0].input_text.text, kept.created_by)


async def test_create_is_checked(guarded: GuardedService) -> None:
    """Creating is an action, of conversations and of the items that come with them or later."""
    guarded.obey(
        [
            {"forbid": {"actions": ["create"], "resource": "conversation::*", "principal": "bob"}},
            {"forbid": {"actions": ["create"], "resource": "item::*", "principal": "eve"}},
            {"permit": {"actions": EVERYTHING}},
        ]
    )
    before = await guarded.value("SELECT count(*) FROM conversations")
    with recorded_statements(guarded.database) as texts:
        assert "PERMISSION_DENIED" == (await problem(guarded.by(BOB).CreateConversation(create()))).code
        refused = await problem(guarded.by(EVE).CreateConversation(create(user_message())))
    assert ("PERMISSION_DENIED", "item") == (refused.code, refused.metadata["resource"])
    assert ([], before) == (texts, await guarded.value("SELECT count(*) FROM conversations"))
    made = await guarded.by(EVE).CreateConversation(create())
    assert "PERMISSION_DENIED" == (await problem(guarded.by(EVE).CreateItems(append(made.id, user_message())))).code


async def test_create_is_decided_on_the_row_to_be(guarded: GuardedService) -> None:
    """The owner is the caller and the attributes are those that will be stored, whatever was sent."""
    guarded.obey(
        [
            {"forbid": {"actions": ["create"]}, "when": ["user not in owners teams"]},
            {"permit": {"actions": EVERYTHING}, "when": "user is owner"},
        ]
    )
    made = await guarded.by(ANN).CreateConversation(create(owner="bob"))
    assert ("ann", {"teams": {"red"}}) == (made.owner, plain(made))
    without = create(attributes=sets(teams=[]))
    given = await answer(guarded, ANN, Call("CreateConversation", lambda _: without, ()), "conv_0")
    assert given.code in {"PERMISSION_DENIED", "INVALID_ARGUMENT"}


async def test_limit_comes_after_the_filter(guarded: GuardedService) -> None:
    """A page is full although most of what is newer is hidden, and says that it goes on exactly when it does."""
    ivan = caller("ivan", "limits", teams="t")
    mine = [
        (await guarded.row("ivan", tenant="limits"), [await guarded.row("x", tenant="limits") for _ in range(7)])[0]
        for _ in range(5)
    ]
    for rules in ([], [{"permit": {"actions": ["read"]}, "unless": ["user is not owner"]}]):
        guarded.obey(rules)
        listed, sizes, token = [], [], ""
        while True:
            page = await guarded.by(ivan).ListConversations(ListConversationsRequest(page_size=2, page_token=token))
            listed += [each.id for each in page.conversations]
            sizes.append(len(page.conversations))
            token = page.next_page_token
            if not token:
                break
        assert (mine[::-1], [2, 2, 1]) == (listed, sizes)
        exact = await guarded.by(ivan).ListConversations(ListConversationsRequest(page_size=5))
        assert (5, "") == (len(exact.conversations), exact.next_page_token)


async def test_no_user_is_not_everybody(guarded: GuardedService) -> None:
    """A call without a principal does nothing, also under a policy that permits everything."""
    guarded.obey([{"permit": {"actions": EVERYTHING}}])
    row = await guarded.row("")
    for title, call in MATRIX.items():
        for sent in ([], [("x-principal", "")], [("x-tenant", "acme")], [("x-principal", " ")]):
            stub = guarded.stubs[0]
            with recorded_statements(guarded.database) as texts:
                refused = await problem(getattr(stub, call.method)(call.request(row), metadata=sent))
            assert ("UNAUTHENTICATED", []) == (refused.code, texts), (title, sent)


async def test_an_owner_can_delete(guarded: GuardedService) -> None:
    """Under the default policy who made a conversation may delete it, with attributes or without."""
    for who in (ANN, EMMA):
        made = await guarded.by(who).CreateConversation(create(user_message()))
        await guarded.by(who).DeleteConversation(delete(made.id))
        assert "NOT_FOUND" == (await problem(guarded.by(who).GetConversation(get(made.id)))).code


async def test_a_denial_tells_no_attributes(guarded: GuardedService) -> None:
    """Neither the caller's values, nor the row's, nor a rule is in a refusal."""
    guarded.obey(
        [
            {"permit": {"actions": ["read"]}, "when": "user in owners teams", "description": "private words"},
            {"permit": {"actions": EVERYTHING}, "when": "user with kingmaker in roles"},
        ]
    )
    row = await guarded.row("ownersname", {"teams": ["red", "crimson"], "projects": ["manhattan"]})
    who = caller("bob", teams="red", roles="janitor")
    words = ("ownersname", "crimson", "manhattan", "red'", "teams", "janitor", "kingmaker", "private words", "bob")
    for title, call in MATRIX.items():
        for name in (row, "conv_" + "9" * 16):
            refused = await answer(guarded, who, call, name)
            told = repr((refused.message, refused.trailers))
            assert [] == [word for word in words if word in told], title
    denied = await problem(guarded.by(who).CreateItems(append(row, user_message())))
    assert ("PERMISSION_DENIED", {"resource": "item", "action": "create"}) == (denied.code, denied.metadata)


# --- sharing

SHARERS = {
    "share only": ["read", "share"],
    "update only": ["read", "update"],
    "both": ["read", "share", "update"],
    "neither": ["read"],
}
CHANGES = {
    "metadata": ({"update"}, lambda row: update(row, "metadata", metadata={"a": "1"})),
    "a key": ({"update"}, lambda row: update(row, "metadata.a", metadata={"a": "1"})),
    "no mask": ({"update"}, lambda row: update(row, metadata={"a": "1"})),
    "attributes": ({"share"}, lambda row: update(row, "attributes", attributes=sets(teams=["red"]))),
    "no mask, attributes": ({"share"}, lambda row: update(row, attributes=sets(teams=["red"]))),
    "a name": ({"share"}, lambda row: update(row, "attributes.teams", attributes=sets(teams=["red"]))),
    "drop": ({"share"}, lambda row: update(row, "attributes.teams")),
    "drop all": ({"share"}, lambda row: update(row, "attributes")),
    "metadata and drop": ({"share", "update"}, lambda row: update(row, "metadata.a", "attributes.teams")),
    "everything": (
        {"share", "update"},
        lambda row: update(row, metadata={"a": "1"}, attributes=sets(teams=["red"])),
    ),
}


@pytest.mark.parametrize("actions", SHARERS)
@pytest.mark.parametrize("change", CHANGES)
async def test_sharing_is_not_updating(guarded: GuardedService, actions: str, change: str) -> None:
    """Metadata takes update, attributes take share, both take both: also where the plan is conditional."""
    needed, request = CHANGES[change]
    may = SHARERS[actions]
    for when in ("user in owners teams", "user with red in teams"):
        guarded.obey([{"permit": {"actions": may}, "when": when}])
        row = await guarded.row("ann", {"teams": ["red"]})
        given = await answer(guarded, BOB, Call("UpdateConversation", request, ()), row)
        assert ("OK" if needed <= set(may) else "PERMISSION_DENIED") == given.code
        written = await guarded.value("SELECT revision FROM conversations WHERE id = $1", row)
        assert (2 if given.code == "OK" else 1) == written


async def test_refused_on_the_row(guarded: GuardedService) -> None:
    """Sharing that is allowed on some rows only is refused on the others without a change."""
    guarded.obey(
        [
            {"permit": {"actions": ["share", "update"]}, "when": "user is owner"},
            {"permit": {"actions": ["read"]}, "when": "user in owners teams"},
        ]
    )
    row = await guarded.row("ann", {"teams": ["red"]})
    for needed, request in CHANGES.values():
        refused = await problem(guarded.by(BOB).UpdateConversation(request(row)))
        assert "PERMISSION_DENIED" == refused.code
        assert refused.metadata["action"] in needed
    assert 1 == await guarded.value("SELECT revision FROM conversations WHERE id = $1", row)


async def test_a_reader_changes_nothing_at_all(guarded: GuardedService) -> None:
    """A change of nothing is no way past update and share: not even the etag moves."""
    guarded.obey(READERS)
    row = await guarded.row("ann", {"teams": ["red"]})
    for request in (update(row), update(row, etag='"1"'), update(row, request_id=str(uuid4())), update(row, "etag")):
        assert "INVALID_ARGUMENT" == (await problem(guarded.by(BOB).UpdateConversation(request))).code
    assert 1 == await guarded.value("SELECT revision FROM conversations WHERE id = $1", row)


async def test_a_create_is_retried_by_who_may_not_read(guarded: GuardedService) -> None:
    """Who may only create gets the same answer at a retry: that they made it is what they know already."""
    guarded.obey([{"permit": {"actions": ["create"]}}])
    request = create(user_message(), request_id=str(uuid4()))
    first = await guarded.by(BOB).CreateConversation(request)
    assert ("OK", first) == await _outcome(guarded.by(BOB).CreateConversation(request))


async def test_only_own_values_are_shared(guarded: GuardedService) -> None:
    """Values of others need a caller who may share everything; dropping and keeping needs none of them."""
    row = await guarded.row("ann", {"teams": ["red", "old"]})
    foreign = update(row, "attributes.teams", attributes=sets(teams=["red", "blue"]))
    with recorded_statements(guarded.database) as texts:
        refused = await problem(guarded.by(ANN).UpdateConversation(foreign))
        assert (
            "PERMISSION_DENIED"
            == (await problem(guarded.by(ANN).CreateConversation(create(attributes=sets(teams=["blue"]))))).code
        )
    assert ("PERMISSION_DENIED", "share", []) == (refused.code, refused.metadata["action"], texts)
    made = await guarded.by(ANN).UpdateConversation(update(row, "attributes.teams", attributes=sets(teams=["red"])))
    assert {"teams": {"red"}} == plain(made)
    guarded.obey([{"permit": {"actions": EVERYTHING}, "when": "user with red in teams"}])
    made = await guarded.by(ANN).UpdateConversation(foreign)
    assert {"teams": {"red", "blue"}} == plain(made)
    made = await guarded.by(ANN).CreateConversation(create(attributes=sets(teams=["blue"])))
    assert {"teams": {"blue"}} == plain(made)


async def test_names_are_compared_with_values(guarded: GuardedService) -> None:
    """A value of one attribute is no value of another."""
    refused = create(attributes=sets(roles=["red"]))
    assert "PERMISSION_DENIED" == (await problem(guarded.by(ANN).CreateConversation(refused))).code


async def test_sharing_opens_and_closes(guarded: GuardedService) -> None:
    """What is shared is read, listed and written by others from then on, and not after it is taken back."""
    made = await guarded.by(ANN).CreateConversation(create(attributes=sets(teams=[])))
    bob = guarded.by(BOB)
    for values in ([], ["red"], []):
        await guarded.by(ANN).UpdateConversation(
            update(made.id, "attributes", attributes=sets(teams=values) if values else {})
        )
        seen = await _there(bob.GetConversation(get(made.id)))
        listed = await bob.ListConversations(ListConversationsRequest(page_size=100))
        assert (bool(values), bool(values)) == (seen, made.id in {each.id for each in listed.conversations})


async def _indexed(guarded: GuardedService, row: str) -> tuple[list[str], list[str]]:
    """The attributes of a conversation, and the rows of them."""
    held = await guarded.value("SELECT attributes FROM conversations WHERE id = $1", row)
    rows = await guarded.connection.fetch(
        """SELECT attribute, a.tenant = c.tenant AND a.create_time = c.create_time AS same
           FROM conversation_attributes a JOIN conversations c ON c.id = conversation_id
           WHERE conversation_id = $1 ORDER BY attribute COLLATE "C\"""",
        row,
    )
    assert all(each["same"] for each in rows)
    return held, [each["attribute"] for each in rows]


async def test_rows_of_attributes_follow_them(guarded: GuardedService) -> None:
    """The rows that lists read are the attributes after every kind of change, also one that is refused."""
    guarded.obey([{"permit": {"actions": EVERYTHING}}])
    client = guarded.by(ANN)
    made = await client.CreateConversation(create(attributes=sets(teams=["b", "a", "ä", "a"], roles=["a=b", "%"])))
    changes: list[tuple[Any, list[str]]] = [
        (None, ["roles=%", "roles=a=b", "teams=a", "teams=b", "teams=ä"]),
        (update(made.id, "metadata.a", metadata={"a": "1"}), ["roles=%", "roles=a=b", "teams=a", "teams=b", "teams=ä"]),
        (
            update(made.id, "attributes.teams", attributes=sets(teams=["a", "c"])),
            ["roles=%", "roles=a=b", "teams=a", "teams=c"],
        ),
        (update(made.id, "attributes.roles"), ["teams=a", "teams=c"]),
        (update(made.id, attributes=sets(projects=["p"])), ["projects=p"]),
        (update(made.id, "attributes", attributes=sets(teams=["c"], team=["s=c"])), ["team=s=c", "teams=c"]),
        (update(made.id, "attributes"), []),
        (update(made.id, "attributes", attributes=sets(teams=["z"])), ["teams=z"]),
    ]
    for request, expected in changes:
        if request is not None:
            await client.UpdateConversation(request)
        assert (expected, expected) == await _indexed(guarded, made.id), request
    stale = update(made.id, "attributes", attributes=sets(teams=["q"]), etag='"1"')
    assert "ABORTED" == (await problem(client.UpdateConversation(stale))).code
    assert (["teams=z"], ["teams=z"]) == await _indexed(guarded, made.id)
    await client.DeleteConversation(delete(made.id))
    assert "NOT_FOUND" == (await problem(client.UpdateConversation(update(made.id, "attributes")))).code
    await purge(guarded.url, timedelta(0))
    left = "SELECT count(*) FROM conversation_attributes WHERE conversation_id = $1"
    assert 0 == await guarded.value(left, made.id)
    orphans = "SELECT count(*) FROM conversation_attributes WHERE conversation_id NOT IN (SELECT id FROM conversations)"
    assert 0 == await guarded.value(orphans)


async def test_a_refused_create_leaves_no_rows(guarded: GuardedService) -> None:
    """A reference that is not found undoes the rows of attributes too."""
    before = await guarded.value("SELECT count(*) FROM conversation_attributes")
    request = create(copy_of("conv_none", "msg_x"), attributes=sets(teams=["red"]))
    assert "NOT_FOUND" == (await problem(guarded.by(ANN).CreateConversation(request))).code
    assert before == await guarded.value("SELECT count(*) FROM conversation_attributes")


# --- why a write was refused


@pytest.mark.parametrize("policy", ["default", "secret item"])
async def test_a_clash_is_told_to_who_may_write(guarded: GuardedService, policy: str) -> None:
    """What others have makes no denial of an id that is taken, or of another last_sequence."""
    guarded.obey(POLICIES[policy])
    await guarded.row("zoe", {"teams": ["green"]})
    made = await guarded.by(ANN).CreateConversation(create(user_message(id="msg_x")))
    taken = append(made.id, user_message(id="msg_x"))
    assert "ITEM_EXISTS" == (await problem(guarded.by(ANN).CreateItems(taken))).reason
    late = append(made.id, user_message(id="msg_y"), expected_last_sequence=7)
    assert "SEQUENCE_MISMATCH" == (await problem(guarded.by(ANN).CreateItems(late))).reason


async def test_a_clash_is_told_to_nobody_else(guarded: GuardedService) -> None:
    """Who may read but not write learns of no clash."""
    guarded.obey(READERS)
    row = await guarded.row("ann", {"teams": ["red"]})
    for request in (append(row, user_message(id="msg_open")), append(row, user_message(), expected_last_sequence=7)):
        assert "ACTION_DENIED" == (await problem(guarded.by(BOB).CreateItems(request))).reason


# --- references


async def test_a_reference_needs_to_be_read(guarded: GuardedService) -> None:
    """Copying takes item read at the source: what is hidden and what is not there answer alike."""
    guarded.obey(POLICIES["secret item"])
    source = await guarded.row("ann", {"teams": ["red"]})
    for who, expected in ((ANN, "OK"), (BOB, "NOT_FOUND")):
        call = Call("CreateConversation", lambda _: create(copy_of(source, "msg_secret")), ())
        given = await answer(guarded, who, call, "conv_0")
        assert expected == given.code
    guarded.obey([])
    own = await guarded.by(EVE).CreateConversation(create())
    hidden = await problem(guarded.by(EVE).CreateItems(append(own.id, copy_of(source, "msg_open"))))
    missing = await problem(guarded.by(EVE).CreateItems(append(own.id, copy_of("conv_none", "msg_open"))))
    assert (hidden.code, hidden.reason) == (missing.code, missing.reason) == ("NOT_FOUND", "ITEM_NOT_FOUND")


async def test_a_new_policy_is_obeyed_at_the_next_call(guarded: GuardedService) -> None:
    """Nothing that was decided before is remembered, also for a caller who was let in a moment ago."""
    row = await guarded.row("ann", {"teams": ["red"]})
    for rules, seen in (([], True), (POLICIES["deny all"], False), ([], True), (READERS, True)):
        guarded.obey(rules)
        assert seen == await _there(guarded.by(BOB).GetConversation(get(row)))
    assert json.loads(await guarded.value("SELECT metadata FROM conversations WHERE id = $1", row)) == {}
    assert "PERMISSION_DENIED" == (await problem(guarded.by(BOB).DeleteConversation(delete(row)))).code
