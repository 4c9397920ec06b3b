"""One audit line, one metric, one span and one refusal for each case, equal over both protocols but for their words."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from conversations.v1.conversations_service_pb2 import ListConversationsRequest

from server import errors
from server.errors import ServiceError
from server.http.errors import ROWS, Retry
from server.http.paths import json_steps, shown
from server.http.routes import BY_METHOD, ROUTES, SERVICE
from server.store.connection.execution import Execute, Execution, Rows
from tests.support.audit import BOB, Metadata, proxy_metadata
from tests.support.batching import held_answer
from tests.support.build import append, create, delete, delete_item, get, get_item, list_items, update, user_message
from tests.support.http import CONVERSATIONS, Answered
from tests.support.observed_calls import PARENT, ObservedService, Seen, observed_service
from tests.support.postgres import fresh_database
from tests.support.problems import problem_of
from tests.support.service import intercepted

ROOT, ALICE, CAROL = proxy_metadata("root"), proxy_metadata("alice", "teams=red"), proxy_metadata("carol", "teams=red")
KEY = "00000000-0000-4000-8000-000000000001"
TEXT = "secret-content"  # no log and no answer to a refusal may have it
HELLO = {"role": "user", "content": TEXT}
NOT_OVER_HTTP = {  # errors of what the OpenAI API does not have
    errors.ConversationExists,
    errors.ErasureNotFound,
    errors.SequenceMismatch,
    errors.PageTokenInvalid,
    errors.ResumeTokenInvalid,
    errors.ResumeTokenExpired,
    errors.ChangesNotKept,
    errors.NotEnabled,
    errors.NotSupported,
}


@dataclass(frozen=True)
class Case:
    """One call over both protocols, on a conversation of `ALICE` with the item msg_a.

    Attributes:
        name: What happens.
        method: Of the contract.
        request: Makes its request of the conversation's id.
        path: Behind that of the conversation; a path that begins with /v1 is a whole one.
        body: Of the request over HTTP.
        headers: Likewise.
        who: The metadata of the caller.
        error: What the call ends with; None for success.
        param: The place in the JSON that is refused.
        status: Of the answer over HTTP, where the error has no row of its own.
        fault: What every statement of the call raises.
    """

    name: str
    method: str
    request: Callable[[str], Any]
    path: str = ""
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    who: Metadata = ROOT
    error: type[ServiceError] | None = None
    param: str | None = None
    status: int = 400
    fault: Exception | None = None


def _get(name: str, who: Metadata = ROOT, **more: Any) -> Case:
    return Case(name, "GetConversation", get, who=who, **more)


def _append(name: str, *items: Any, body: Any = (HELLO,), key: str = "", **more: Any) -> Case:
    """A case of an append, of a message unless others are named; ``key``: it is repeatable."""
    sent = items or (user_message(TEXT),)
    headers = {"Idempotency-Key": key} if key else {}
    return Case(
        name,
        "CreateItems",
        lambda of: append(of, *sent, request_id=key),
        "/items",
        {"items": list(body)},
        headers,
        **more,
    )


SUCCESSES = [
    Case(
        "create",
        "CreateConversation",
        lambda _: create(user_message(TEXT, id="msg_new"), metadata={"a": "b"}),
        CONVERSATIONS,
        {"items": [{**HELLO, "id": "msg_new"}], "metadata": {"a": "b"}},
    ),
    Case("list", "ListConversations", lambda _: ListConversationsRequest(page_size=1), f"{CONVERSATIONS}?limit=1"),
    _get("get"),
    Case(
        "update",
        "UpdateConversation",
        lambda of: update(of, "metadata", metadata={"a": "b"}),
        body={"metadata": {"a": "b"}},
    ),
    Case("delete", "DeleteConversation", delete),
    _append("append"),
    Case("list items", "ListItems", lambda of: list_items(of, page_size=1), "/items?limit=1"),
    Case("get item", "GetItem", lambda of: get_item(of, "msg_a"), "/items/msg_a"),
    Case("delete item", "DeleteItem", lambda of: delete_item(of, "msg_a"), "/items/msg_a"),
]
OTHER_SUCCESSES = [
    _append("append again", user_message("once"), body=[{"role": "user", "content": "once"}], key=KEY),
    Case("list of a stranger", "ListConversations", lambda _: ListConversationsRequest(), CONVERSATIONS, who=BOB),
]
REFUSALS = [
    _get("of a stranger", BOB, error=errors.ConversationNotFound),
    _append("to nothing that a stranger sees", who=BOB, error=errors.ConversationNotFound),
    Case("no item", "GetItem", lambda of: get_item(of, "msg_x"), "/items/msg_x", error=errors.ItemNotFound),
    Case("not there", "DeleteItem", lambda of: delete_item(of, "msg_x"), "/items/msg_x", error=errors.ItemNotFound),
    _append(
        "a taken id",
        user_message(TEXT, id="msg_a"),
        body=[{**HELLO, "id": "msg_a"}],
        error=errors.ItemExists,
        param="items",
    ),
    _get("without a name", (), error=errors.CredentialsMissing),
    _get("with half a name", (("x-principal", "a,b"),), error=errors.CredentialsInvalid),
    Case("by no rule", "DeleteConversation", delete, who=ALICE, error=errors.ActionDenied),
    _append("by the row", who=CAROL, error=errors.ActionDenied),
    Case(
        "another etag",
        "UpdateConversation",
        lambda of: update(of, "metadata", metadata={}, etag='"9"'),
        body={"metadata": {}},
        headers={"If-Match": '"9"'},
        error=errors.EtagMismatch,
    ),
    _append("a used key", key=KEY, error=errors.RequestIdReused),
    _append(
        "no such status",
        user_message(TEXT, status=4),
        body=[{**HELLO, "status": "failed"}],
        error=errors.FieldInvalid,
        param="items[0].status",
    ),
    _append("too many items", *[user_message(TEXT)] * 21, body=[HELLO] * 21, error=errors.FieldInvalid, param="items"),
    Case(
        "no conversation id",
        "GetConversation",
        lambda _: get("thread_1"),
        f"{CONVERSATIONS}/thread_1",
        error=errors.FieldInvalid,
        param="conversation_id",
    ),
    Case(
        "no such cursor",
        "ListItems",
        lambda of: list_items(of, after="msg_x"),
        "/items?after=msg_x",
        error=errors.FieldInvalid,
        param="after",
        status=404,
    ),
    Case(
        "no filter",
        "ListConversations",
        lambda _: ListConversationsRequest(filter="x"),
        f"{CONVERSATIONS}?filter=x",
        error=errors.FilterInvalid,
        param="filter",
    ),
]


def _fault(error: Exception, expected: type[ServiceError], method: str = "GetConversation", param: str = "") -> Case:
    """A call that ends with an error which no request provokes by itself."""
    request: Any = {"GetConversation": get, "DeleteConversation": delete}[method]
    return Case(f"a fault, {type(error).__name__}", method, request, fault=error, error=expected, param=param or None)


FAULTS = [
    _fault(errors.Conflict(), errors.Conflict),
    _fault(errors.Overloaded("calls", 1), errors.Overloaded),
    _fault(errors.ResponseTooLarge(1), errors.ResponseTooLarge, param="limit"),
    _fault(errors.ShuttingDown(), errors.ShuttingDown),
    _fault(errors.IdentityUnavailable(), errors.IdentityUnavailable),
    _fault(errors.StoreUnavailable(), errors.StoreUnavailable, "DeleteConversation"),
    _fault(errors.OutcomeUnknown(), errors.OutcomeUnknown, "DeleteConversation"),
    _fault(errors.DeadlineExceeded(), errors.DeadlineExceeded, "DeleteConversation"),
    _fault(ValueError("secret"), errors.Internal, "DeleteConversation"),
]
CASES = [*SUCCESSES, *OTHER_SUCCESSES, *REFUSALS, *FAULTS]


@pytest.fixture(scope="module")
async def observed(postgres: str, template: str) -> AsyncIterator[ObservedService]:
    """One service for all cases, each of which has conversations of its own."""
    with TemporaryDirectory() as folder:
        async with (
            fresh_database(postgres, template) as url,
            observed_service(url, Path(folder)) as served,
        ):
            # Citus tells where shards are, so that this statement is not one of the first case.
            await served.stub.ListConversations(ListConversationsRequest(), metadata=ALICE)
            yield served


async def _conversation(observed: ObservedService) -> str:
    """The id of a conversation of `ALICE` with the item msg_a, and one that was appended under `KEY`."""
    made = await observed.stub.CreateConversation(create(user_message(TEXT, id="msg_a")), metadata=ALICE)
    await observed.stub.CreateItems(append(made.id, user_message("once"), request_id=KEY), metadata=ROOT)
    return str(made.id)


async def _over_grpc(observed: ObservedService, case: Case, conversation_id: str) -> tuple[Any, Seen]:
    request = case.request(conversation_id)
    method = getattr(observed.stub, case.method)
    return await _observe(observed, case, lambda: method(request, metadata=(*case.who, PARENT)))


async def _over_http(observed: ObservedService, case: Case, conversation_id: str) -> tuple[Any, Seen]:
    own = f"{CONVERSATIONS}/{conversation_id}"
    path = case.path if case.path.startswith(CONVERSATIONS) else own + case.path
    verb, headers = BY_METHOD[_full(case.method)].verb, {**dict(case.who), **case.headers, PARENT[0]: PARENT[1]}
    return await _observe(observed, case, lambda: observed.http.call(verb, path, case.body, headers=headers))


async def _observe(observed: ObservedService, case: Case, call: Callable[[], Any]) -> tuple[Any, Seen]:
    async def fail(_execute: Execute, _execution: Execution) -> Rows:
        assert case.fault
        raise case.fault

    with ExitStack() as stack:
        if case.fault:
            stack.enter_context(intercepted(observed.database, fail))
        return await observed.observe(call)


def _full(method: str) -> str:
    return f"/{SERVICE.full_name}/{method}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method}, {case.name}")
async def test_case(observed: ObservedService, case: Case) -> None:
    """A call leaves the same behind whichever protocol it came over, and its caller is told the same."""
    outcome, over_grpc = await _over_grpc(observed, case, await _conversation(observed))
    answer, over_http = await _over_http(observed, case, await _conversation(observed))
    code = case.error.code.name if case.error else "OK"
    _check_refusal(case, outcome, answer)
    _check_lines(over_grpc, over_http, code, answer.status)
    _check_counts(case.method, over_grpc, over_http, code, answer.status)
    _check_spans(case.method, over_grpc, over_http, code, answer.status)


def _check_refusal(case: Case, outcome: Any, answer: Answered) -> None:
    """The table of `server.http.errors` says what a caller over HTTP is told in the place of code and reason."""
    if case.error is None:
        assert (200, False) == (answer.status, isinstance(outcome, Exception))
        return
    status, code, param, message = answer.error
    refused = problem_of(outcome)
    assert (case.error.code.name, case.error.reason) == (refused.code, refused.reason)
    if row := ROWS.get(case.error):
        assert (row.status, row.code, row.param) == (status, code, case.param)
        assert row.wording or _without_ids(refused.message) == _without_ids(message)
        assert "secret" not in message + refused.message
        waits = case.error.retry_after_ms if row.retry is Retry.SAFE else None
        assert (str(waits) if waits else None) == answer.headers.get("retry-after-ms")
    else:
        assert (case.status, case.param) == (status, param)
        assert case.param in {*map(_json_path, refused.fields)}


def _without_ids(message: str) -> str:
    return " ".join(word for word in message.split() if "_" not in word)


def _json_path(path: str) -> str:
    return shown(json_steps(path))


def _check_lines(over_grpc: Seen, over_http: Seen, code: str, status: int) -> None:
    assert over_grpc.audit == over_http.audit
    assert over_grpc.others == over_http.others
    assert code == over_grpc.access["code"]
    assert {**over_grpc.access, "protocol": "http", "status": status} == over_http.access


def _check_counts(method: str, over_grpc: Seen, over_http: Seen, code: str, status: int) -> None:
    """Each protocol counts its call once, in its words; all other counters grow alike."""
    route = BY_METHOD[_full(method)]
    words = {"http_request_method": route.verb, "http_route": route.path, "http_response_status_code": status}
    assert [_sample("http_server_request_duration_seconds_count", **words)] == _named(over_http, "http_", "grpc_")
    words = {"grpc_type": "unary", "grpc_service": SERVICE.full_name, "grpc_method": method, "grpc_code": code}
    assert [_sample("grpc_server_handled_total", **words)] == _named(over_grpc, "http_", "grpc_server_handled_")
    assert {1.0} == {seen.counts[name] for seen in (over_grpc, over_http) for name in _named(seen, "http_", "grpc_")}
    ours, theirs = [
        {name: grown for name, grown in seen.counts.items() if name.startswith("conversations_")}
        for seen in (over_grpc, over_http)
    ]
    assert ours == theirs


def _sample(name: str, **labels: object) -> str:
    return name + "{" + ",".join(f'{label}="{value}"' for label, value in sorted(labels.items())) + "}"


def _named(seen: Seen, *prefixes: str) -> list[str]:
    return [name for name in seen.counts if name.startswith(prefixes)]


def _check_spans(method: str, over_grpc: Seen, over_http: Seen, code: str, status: int) -> None:
    """Each protocol has one span in its words, which fails or not over both, and the same statements within it."""
    route, name = BY_METHOD[_full(method)], _full(method).removeprefix("/")
    ours, theirs = over_grpc.server, over_http.server
    assert (name, f"{route.verb} {route.path}") == (ours.name, theirs.name)
    assert (ours.status, ours.parent, "b" * 16) == (theirs.status, theirs.parent, theirs.parent)
    errors_of = [{"error.type": str(each)} if ours.status == "ERROR" else {} for each in (code, status)]
    words: dict[str, Any] = {"rpc.system.name": "grpc", "rpc.method": name, "rpc.response.status_code": code}
    assert words | errors_of[0] == ours.attributes
    words = {"http.request.method": route.verb, "http.route": route.path, "http.response.status_code": status}
    assert words | errors_of[1] == theirs.attributes
    assert over_grpc.statements == over_http.statements


def test_every_case_is_there() -> None:
    """No route and no row of the table of errors is left out, but for what cannot happen over HTTP."""
    assert [route.name for route in ROUTES] == [case.method for case in SUCCESSES]
    assert {*ROWS} - NOT_OVER_HTTP == {case.error for case in CASES} & {*ROWS}


@pytest.mark.parametrize("over", [_over_grpc, _over_http], ids=["grpc", "http"])
async def test_a_caller_that_goes(observed: ObservedService, over: Any) -> None:
    """A write whose caller no longer waits for it has an unknown outcome in the audit log, and was cancelled."""
    conversation_id = await _conversation(observed)
    async with held_answer(observed.database) as held:
        call = asyncio.ensure_future(over(observed, Case("gone", "DeleteConversation", delete), conversation_id))
        await held.committed.wait()
        call.cancel()
        _, seen = await call
    assert ["OUTCOME_UNKNOWN"] == [line["outcome"] for line in seen.audit]
    assert "CANCELLED" == seen.access["code"]
    assert "UNSET" == seen.server.status
