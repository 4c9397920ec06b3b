"""The audit log: who was refused what by which policy, and nothing of what anybody wrote."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from conversations.v1 import access_service_pb2 as access
from conversations.v1.conversations_service_pb2 import ListConversationsRequest
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from structlog.testing import capture_logs

from server.policy.load import load as loaded
from tests.support.audit import AUDITED_POLICY, BOB, Metadata, audit_lines, audited_service, proxy_metadata
from tests.support.build import append, copy_of, create, delete, fork, get, get_item, list_items, update, user_message
from tests.support.service import Service

ROOT = Path(__file__).parents[2]
DIGEST = loaded(AUDITED_POLICY).digest


ALICE = proxy_metadata("alice", "teams=secret-team")
CAROL = proxy_metadata("carol", "teams=secret-team;teams=other")
ROOT_USER = proxy_metadata("root")


@pytest.fixture(scope="module")
async def quiet(service: Service) -> AsyncIterator[grpc.aio.Channel]:
    """A service that logs refusals."""
    async with audited_service(service.url) as channel:
        yield channel


@pytest.fixture(scope="module")
async def loud(service: Service) -> AsyncIterator[grpc.aio.Channel]:
    """A service that logs permits too."""
    async with audited_service(service.url, audit_permits=True) as channel:
        yield channel


@pytest.fixture(scope="module")
async def conversation(quiet: grpc.aio.Channel) -> str:
    """A conversation of Alice and her team, with the item msg_a."""
    item = user_message("secret-content", id="msg_a")
    made = await ConversationsServiceStub(quiet).CreateConversation(
        create(item, metadata={"key": "secret-value"}), metadata=ALICE
    )
    return str(made.id)


def refused(principal: str, resource: str, action: str, plan: str, **more: Any) -> dict[str, Any]:
    """The line of a refusal, because of the policy unless told otherwise."""
    return {
        "log": "audit",
        "event": "refused",
        "log_level": "warning",
        "principal": principal,
        "tenant": "acme",
        "resource": resource,
        "action": action,
        "outcome": "ACTION_DENIED",
        "plan": plan,
        "policy": DIGEST,
        **({} if plan in {"always", "never"} else {"rules": [None]}),
        **more,
    }


async def test_a_conversation_that_is_not_readable(quiet: grpc.aio.Channel, conversation: str) -> None:
    """What the caller is told is not there is in the log as a refusal to read, and so is what really is not there."""
    for asked in (conversation, "conv_nobody"):
        told = refused("bob", "conversation", "read", "owned", conversation_id=asked, outcome="CONVERSATION_NOT_FOUND")
        assert ("NOT_FOUND", [told]) == await audit_lines(quiet, "GetConversation", get(asked), BOB)


async def test_an_item_that_is_not_readable(quiet: grpc.aio.Channel, conversation: str) -> None:
    """The line of an item names both ids."""
    ids = {"conversation_id": conversation, "item_id": "msg_a"}
    told = refused("carol", "item", "read", "owned", outcome="ITEM_NOT_FOUND", **ids)
    assert ("NOT_FOUND", [told]) == await audit_lines(quiet, "GetItem", get_item(conversation, "msg_a"), CAROL)


async def test_a_reference_that_is_not_readable(quiet: grpc.aio.Channel, conversation: str) -> None:
    """Who copies what they may not read leaves a line about that, not about their own conversation."""
    ids = {"conversation_id": conversation, "item_id": "msg_a"}
    told = refused("bob", "conversation", "create", "owned", outcome="ITEM_NOT_FOUND", **ids)
    assert ("NOT_FOUND", [told]) == await audit_lines(
        quiet, "CreateConversation", create(copy_of(conversation, "msg_a")), BOB
    )


async def test_an_action_on_what_is_readable(quiet: grpc.aio.Channel, conversation: str) -> None:
    """A refusal that depends on the conversation names the rules that may have decided; here none permits it."""
    told = refused("carol", "item", "create", "owned", conversation_id=conversation)
    sent = append(conversation, user_message("secret-content"))
    assert ("PERMISSION_DENIED", [told]) == await audit_lines(quiet, "CreateItems", sent, CAROL)


@pytest.mark.parametrize(
    "method, request_of, action",
    [
        ("DeleteConversation", delete, "delete"),
        ("UpdateConversation", lambda name: update(name, metadata={"key": "secret-value"}), "update"),
    ],
)
async def test_an_action_that_no_rule_permits(
    quiet: grpc.aio.Channel, conversation: str, method: str, request_of: Any, action: str
) -> None:
    """A refusal whatever the conversation comes before the request is read, so it has no id; no rule matched."""
    told = refused("alice", "conversation", action, "never", rule=None)
    assert ("PERMISSION_DENIED", [told]) == await audit_lines(quiet, method, request_of(conversation), ALICE)


async def test_a_refused_explanation(quiet: grpc.aio.Channel) -> None:
    """Asking about the policy is an action like any other."""
    asked = access.ExplainAccessRequest(permission=access.Permission(resource="item", action="read"))
    told = refused("bob", "policy", "explain", "never", rule=None)
    assert ("PERMISSION_DENIED", [told]) == await audit_lines(quiet, "ExplainAccess", asked, BOB)


async def test_permits_are_silent(quiet: grpc.aio.Channel, conversation: str) -> None:
    """Unless switched on, what is allowed leaves no line."""
    assert ("OK", []) == await audit_lines(quiet, "GetConversation", get(conversation), ALICE)


async def test_permits(loud: grpc.aio.Channel, conversation: str) -> None:
    """Switched on, each allowed call is one line, with the rule when it holds for all rows."""
    line = refused("alice", "conversation", "read", "or(shares,owned)", conversation_id=conversation)
    line |= {"event": "permitted", "log_level": "info", "outcome": "PERMITTED"}
    del line["rules"]
    assert ("OK", [line]) == await audit_lines(loud, "GetConversation", get(conversation), ALICE)
    del line["conversation_id"]
    assert ("OK", [line]) == await audit_lines(loud, "ListConversations", ListConversationsRequest(), ALICE)
    sent = create(user_message("secret-content"), metadata={"key": "secret-value"})
    line |= {"principal": "root", "action": "create", "plan": "always", "rule": 1}
    code, (told,) = await audit_lines(loud, "CreateConversation", sent, ROOT_USER)
    assert re.fullmatch(r"conv_[0-9a-f]+", told.pop("conversation_id"))
    assert ("OK", line) == (code, told)


async def test_a_fork(loud: grpc.aio.Channel, quiet: grpc.aio.Channel, conversation: str) -> None:
    """A fork that was made is audited with its id and that of its source; one that was refused with the latter."""
    line = refused("root", "conversation", "create", "always", rule=1, forked_from=conversation)
    line |= {"event": "permitted", "log_level": "info", "outcome": "PERMITTED"}
    code, (told,) = await audit_lines(loud, "ForkConversation", fork(conversation), ROOT_USER)
    assert re.fullmatch(r"conv_[0-9a-f]+", told.pop("conversation_id"))
    assert line == told
    assert "OK" == code
    code, (told,) = await audit_lines(quiet, "ForkConversation", fork("conv_missing"), ROOT_USER)
    assert ("NOT_FOUND", "conv_missing") == (code, told["conversation_id"])
    assert "forked_from" not in told


@pytest.mark.parametrize(
    ("traceparent", "expected"),
    [
        pytest.param([f"00-{'a' * 32}-{'b' * 16}-01"], {"trace": "a" * 32}, id="one"),
        pytest.param([f"00-{'0' * 32}-{'b' * 16}-01"], {}, id="zero"),
        pytest.param(["secret-token"], {}, id="none"),
    ],
)
async def test_the_trace(
    quiet: grpc.aio.Channel, conversation: str, traceparent: list[str], expected: dict[str, str]
) -> None:
    """A refusal belongs to the caller's trace, when the caller names one."""
    who = (*BOB, *(("traceparent", value) for value in traceparent))
    _, lines = await audit_lines(quiet, "GetConversation", get(conversation), who)
    assert [expected] == [{name: line[name] for name in line if name == "trace"} for line in lines]


async def test_a_wrong_request_is_no_decision(loud: grpc.aio.Channel) -> None:
    """Neither a permit nor a refusal: nothing was decided."""
    assert ("INVALID_ARGUMENT", []) == await audit_lines(loud, "ListItems", list_items("no id\n"), ALICE)


@pytest.mark.parametrize(
    "who, why",
    [
        ((), "none came"),
        ((("authorization", "Bearer secret-token"),), "metadata repeated or of another source"),
        ((("x-principal", "secret-token, two"), ("x-tenant", "acme")), "id or tenant"),
    ],
)
async def test_strangers(quiet: grpc.aio.Channel, who: Metadata, why: str) -> None:
    """Refused credentials are in the log with method and reason, never with what was sent."""
    stub = ConversationsServiceStub(quiet)
    with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetConversation(get("conv_a"), metadata=who)
    assert grpc.StatusCode.UNAUTHENTICATED is caught.value.code()
    (line,) = [each for each in logs if each["event"] != "call"]
    assert ("credentials refused", why) == (line["event"], line["why"])
    assert "/conversations.v1.ConversationsService/GetConversation" == line["method"]
    assert "secret" not in repr(logs)


FORGED = "eve\n2026-01-01T00:00:00Z [info     ] permitted\r\x1b[2K\u2028\u0085\x0b\"principal=root'"
_SCRIPT = """
import sys
from server.authorization.audit_log import CallAudit
from server.observability import logs
from server.errors import ActionDenied, ConversationNotFound
from server.policy.principal import Principal
from server.policy.rules import DEFAULT
from server.authorization.access import Access

logs.configure("info", sys.argv[1])
access = Access(Principal(sys.argv[2], sys.argv[2]), DEFAULT)
audit = CallAudit(permits=True)
audit.record(access, "item", "read", ActionDenied("item", "read"))
audit.record(access, "item", "read", ConversationNotFound(sys.argv[2]))
audit.record(access, "item", "read", None)
"""


@pytest.mark.parametrize("form", ["console", "json"])
async def test_no_line_can_be_forged(form: str) -> None:
    """Whatever a token's subject holds: a decision is one line, and a terminal obeys none of it."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "generated")))}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SCRIPT, form, FORGED, stdout=pipe, stderr=pipe, env=environment
    )
    output, errors = await process.communicate()
    assert (0, b"") == (process.returncode, output), errors
    lines = errors.decode().removesuffix("\n").split("\n")
    assert 3 == len(lines), errors
    assert [] == [line for line in lines if not line.isprintable()]
    if form == "json":
        found = [json.loads(line)["event"] for line in lines]
        assert {"eve\\n"} == {json.loads(line)["principal"][:5] for line in lines}
    else:
        found = [re.findall(r"^\S+ \[\w+ *\] (\w+)", line)[0] for line in lines]
    assert ["refused", "refused", "permitted"] == found
