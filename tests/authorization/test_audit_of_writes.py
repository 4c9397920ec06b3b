"""With `audit_permits` every write has a line: whoever left meanwhile, and whichever policy decided."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import grpc.aio
import pytest
from conversations.v1.conversations_service_pb2 import ORDER_ASCENDING
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from structlog.testing import capture_logs

from server.app.service import run_service
from server.settings.service import load
from server.store.connection.database import Database
from tests.support.batching import held_answer, held_statement, queued_behind
from tests.support.build import ahead, append, copy_of, create, delete, delete_many, update, user_message
from tests.support.service import Service, list_all_items

ALL = "- permit: {actions: [create, read, update, delete, share]}\n"
READ = "- permit: {actions: read}\n"
ALICE = (("x-principal", "alice"), ("x-tenant", "acme"))


@dataclass(frozen=True)
class Audited:
    """A service that audits permits, and its policy file."""

    stub: Any
    database: Database
    policy: Path


@pytest.fixture
async def audited(service: Service) -> AsyncIterator[Audited]:
    """A service of its own on the shared database."""
    with TemporaryDirectory() as name:
        policy = Path(name) / "policy.yaml"
        policy.write_text(ALL, encoding="utf-8")
        values = {"database_url": service.url, "identity": "proxy", "policy_file": policy, "audit_permits": True}
        made = load(listen=f"unix:{name}/s", purge_every_minutes=0, grace_seconds=1, **values)
        options = [("grpc.default_authority", "localhost")]
        async with (
            run_service(made) as running,
            grpc.aio.insecure_channel(running.address, options=options) as channel,
        ):
            yield Audited(ConversationsServiceStub(channel), running.store.database, policy)


def audit_of(logs: Iterable[Any]) -> list[dict[str, Any]]:
    """The audit lines."""
    return [dict(line) for line in logs if line.get("log") == "audit"]


async def ended(logs: list[Any], method: str) -> None:
    """Waits until a call of the method has left its access line."""
    async with asyncio.timeout(10):
        while not any(line.get("log") == "access" and line["method"].endswith(method) for line in logs):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def brief(lines: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    """Event and outcome of each line."""
    return [(line["event"], line["outcome"]) for line in lines]


async def test_each_message_of_a_stream_has_a_line(audited: Audited) -> None:
    """A stream of three appends is three lines of one call, each with the ids that it made."""
    made = await audited.stub.CreateConversation(create(), metadata=ALICE)
    sent = [ahead(made.id, user_message(text)) for text in "abc"]
    with capture_logs() as logs:
        answers = [answer async for answer in audited.stub.AppendItems(iter(sent), metadata=ALICE)]
        await ended(logs, "AppendItems")
    lines = audit_of(logs)
    assert [("permitted", "PERMITTED")] * 3 == brief(lines)
    assert [list(answer.appended.item_ids) for answer in answers] == [line["item_ids"] for line in lines]
    (access_line,) = [line for line in logs if line.get("log") == "access"]
    for name in ("call", "method", "peer"):
        assert {access_line[name]} == {line[name] for line in lines}
    assert {made.id} == {line["conversation_id"] for line in lines}


async def test_a_cancelled_stream_has_a_line_for_what_it_wrote(audited: Audited) -> None:
    """Items whose statement ran when the caller left are stored, and have their lines; what was left out has none."""
    made = await audited.stub.CreateConversation(create(), metadata=ALICE)
    with capture_logs() as logs:
        stream = audited.stub.AppendItems(metadata=ALICE)
        await stream.write(ahead(made.id, user_message("answered")))
        await stream.read()
        async with held_statement(audited.database) as held:
            await stream.write(ahead(made.id, user_message("in flight")))
            await held.started.wait()
            await stream.write(ahead(made.id, user_message("queued")))
            await held.until(lambda: bool(held.writes))
            stream.cancel()
            await ended(logs, "AppendItems")
        stored = await stored_ids(audited, made.id, 2)
    lines = audit_of(logs)
    assert stored == [item_id for line in lines if "item_ids" in line for item_id in line["item_ids"]]
    assert [("permitted", "PERMITTED")] * 2 == brief(line for line in lines if line["method"].endswith("AppendItems"))


async def stored_ids(audited: Audited, conversation_id: str, count: int) -> list[str]:
    """The ids of the items of a conversation, once it has as many as expected."""

    class Stub:
        async def ListItems(self, request: Any) -> Any:  # noqa: N802
            return await audited.stub.ListItems(request, metadata=ALICE)

    async with asyncio.timeout(10):
        while len(found := await list_all_items(Stub(), conversation_id, ORDER_ASCENDING)) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return [item.id for item in found]


@pytest.mark.parametrize("method", ["CreateConversation", "UpdateConversation", "DeleteConversation", "CreateItems"])
async def test_a_write_whose_caller_left_has_a_line(audited: Audited, method: str) -> None:
    """A write that was cancelled after its commit is audited; its outcome was not known to the call."""
    made = await audited.stub.CreateConversation(create(), metadata=ALICE)
    request = {
        "CreateConversation": create(),
        "UpdateConversation": update(made.id, metadata={"k": "v"}),
        "DeleteConversation": delete(made.id),
        "CreateItems": append(made.id, user_message("hello")),
    }[method]
    with capture_logs() as logs:
        async with held_answer(audited.database) as held:
            call = getattr(audited.stub, method)(request, metadata=ALICE)
            await held.committed.wait()
            call.cancel()
            await ended(logs, method)
    (line,) = audit_of(logs)
    assert ("unknown", "OUTCOME_UNKNOWN") == (line["event"], line["outcome"])
    assert line["method"].endswith(f"/{method}")
    assert line["conversation_id"].startswith("conv_")
    assert (method == "CreateConversation") == (line["conversation_id"] != made.id)


async def test_a_message_that_runs_alone_has_a_line(audited: Audited) -> None:
    """A message whose statement nobody shares is cancelled with its stream: its outcome is unknown too."""
    made = await audited.stub.CreateConversation(create(user_message("a", id="msg_a")), metadata=ALICE)
    other = await audited.stub.CreateConversation(create(), metadata=ALICE)
    with capture_logs() as logs:
        async with held_answer(audited.database) as held:
            stream = audited.stub.AppendItems(metadata=ALICE)
            await stream.write(ahead(other.id, copy_of(made.id, "msg_a")))
            await held.committed.wait()
            stream.cancel()
            await ended(logs, "AppendItems")
    (line,) = audit_of(logs)
    assert ("unknown", "OUTCOME_UNKNOWN", other.id) == (line["event"], line["outcome"], line["conversation_id"])


async def leave_a_batch(audited: Audited, logs: Any, *calls: Any) -> None:
    """Makes three calls, of which the last two share a statement, and cancels the second one once it is committed."""
    async with (
        held_answer(audited.database, size=2) as answer,
        queued_behind(audited.database, *calls) as (held, tasks),
    ):
        held.release.set()
        await answer.committed.wait()
        tasks[1].cancel()
        async with asyncio.timeout(10):
            while sum(line.get("log") == "access" for line in logs) < 2:  # noqa: ASYNC110 - a log is no event
                await asyncio.sleep(0.01)
        answer.release.set()


async def test_an_append_whose_caller_left_its_batch_has_a_line(audited: Audited) -> None:
    """A statement for many goes on without a caller who left: a line says that its items are stored."""
    made = await audited.stub.CreateConversation(create(), metadata=ALICE)
    calls = [
        lambda text=text: audited.stub.CreateItems(append(made.id, user_message(text)), metadata=ALICE)
        for text in ("alone", "left", "stays")
    ]
    with capture_logs() as logs:
        await leave_a_batch(audited, logs, *calls)
        stored = await stored_ids(audited, made.id, 3)
    lines = [line for line in audit_of(logs) if line["method"].endswith("CreateItems")]
    assert [("permitted", "PERMITTED")] * 3 == brief(lines)
    assert sorted(stored) == sorted(item_id for line in lines for item_id in line["item_ids"])
    assert 3 == len({line["call"] for line in lines})


async def test_a_create_whose_caller_left_its_batch_has_a_line(audited: Audited) -> None:
    """A statement for many goes on without a caller who left: a line says that its conversation is stored."""
    calls = [
        lambda text=text: audited.stub.CreateConversation(create(user_message(text)), metadata=ALICE)
        for text in ("alone", "left", "stays")
    ]
    with capture_logs() as logs:
        await leave_a_batch(audited, logs, *calls)
    lines = audit_of(logs)
    assert [("permitted", "PERMITTED")] * 3 == brief(lines)
    assert 3 == len({line["call"] for line in lines}) == len({line["conversation_id"] for line in lines})
    assert {("conversation", "create")} == {(line["resource"], line["action"]) for line in lines}
    for line in lines:
        assert 1 == len(await stored_ids(audited, line["conversation_id"], 1))


async def test_what_was_refused_or_cancelled_in_time_is_not_permitted(audited: Audited) -> None:
    """A call that is cancelled before it writes anything leaves no line."""
    made = await audited.stub.CreateConversation(create(), metadata=ALICE)
    with capture_logs() as logs:
        async with held_statement(audited.database) as held:
            first = audited.stub.CreateItems(append(made.id, user_message("alone")), metadata=ALICE)
            await held.started.wait()
            left = audited.stub.CreateItems(append(made.id, user_message("left")), metadata=ALICE)
            await held.until(lambda: bool(held.writes))
            left.cancel()
            await ended(logs, "CreateItems")
            held.release.set()
            await first
    assert [("permitted", "PERMITTED")] == brief(audit_of(logs))
    assert 1 == len(await stored_ids(audited, made.id, 1))


async def test_a_repeated_append_has_a_line_without_items(audited: Audited) -> None:
    """What an earlier call with its request id has stored is permitted, and makes nothing."""
    made = await audited.stub.CreateConversation(create(), metadata=ALICE)
    again = {"request_id": str(uuid4())}
    with capture_logs() as logs:
        for _ in range(2):
            assert ["appended"] == [
                answer.WhichOneof("result")
                async for answer in audited.stub.AppendItems(
                    iter([ahead(made.id, user_message("once"), **again)]), metadata=ALICE
                )
            ]
        for _ in range(2):
            await audited.stub.CreateItems(append(made.id, user_message("once"), **again), metadata=ALICE)
    lines = audit_of(logs)
    assert [("permitted", "PERMITTED")] * 4 == brief(lines)
    assert [True, False, True, False] == ["item_ids" in line for line in lines]
    assert {made.id} == {line["conversation_id"] for line in lines}


async def test_items_that_are_created_are_named(audited: Audited) -> None:
    """Copies of items too."""
    made = await audited.stub.CreateConversation(create(user_message("a", id="msg_a")), metadata=ALICE)
    other = await audited.stub.CreateConversation(create(), metadata=ALICE)
    sent = append(other.id, user_message("b"), copy_of(made.id, "msg_a"))
    with capture_logs() as logs:
        answer = await audited.stub.CreateItems(sent, metadata=ALICE)
    (line,) = audit_of(logs)
    assert [item.id for item in answer.items] == line["item_ids"]


async def test_a_refusal_has_the_policy_that_decided(audited: Audited) -> None:
    """A stream that a new policy ends has a refusal with the digest of the new one, and permits with that before."""
    made = await audited.stub.CreateConversation(create(), metadata=ALICE)
    with capture_logs() as logs:
        stream = audited.stub.AppendItems(metadata=ALICE)
        await stream.write(ahead(made.id, user_message("before")))
        await stream.read()
        audited.policy.write_text(READ, encoding="utf-8")
        await asyncio.sleep(1.5)
        await stream.write(ahead(made.id, user_message("after")))
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.read()
        await ended(logs, "AppendItems")
    digests = [sha256(text.encode()).hexdigest() for text in (ALL, READ)]
    lines = audit_of(logs)
    assert [("permitted", digests[0]), ("refused", digests[1])] == [(line["event"], line["policy"]) for line in lines]
    assert {made.id} == {line["conversation_id"] for line in lines}


async def test_what_a_filter_deletes_has_lines(audited: Audited) -> None:
    """Each conversation that was deleted by a filter is named; when there is none, the call has a line all the same."""
    topic = uuid4().hex
    made = [
        await audited.stub.CreateConversation(create(metadata={"topic": topic}), metadata=ALICE) for _ in range(101)
    ]
    with capture_logs() as logs:
        for _ in range(2):
            await audited.stub.DeleteConversations(delete_many(f'metadata.topic = "{topic}"'), metadata=ALICE)
    lines = audit_of(logs)
    assert [("permitted", "PERMITTED")] * 3 == brief(lines)
    assert [100, 1] == [len(line["conversation_ids"]) for line in lines[:2]]
    assert {each.id for each in made} == {name for line in lines[:2] for name in line["conversation_ids"]}
    assert {"delete"} == {line["action"] for line in lines}
    assert "conversation_ids" not in lines[2]
