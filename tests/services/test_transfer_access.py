"""Exports show what lists show; imports take an action of their own, and reach nobody else's conversations."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from secrets import token_hex
from typing import Any

import grpc.aio
import pytest
from conversations.v1.conversation_pb2 import Conversation
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from conversations.v1.transfer_service_pb2 import ExportConversationsRequest, ImportConversationsRequest, Record
from conversations.v1.transfer_service_pb2_grpc import TransferServiceStub
from google.protobuf.timestamp_pb2 import Timestamp
from structlog.testing import capture_logs

from server.app.service import run_service
from server.settings.service import load
from tests.support.access import (
    ANN,
    BOB,
    CALLERS,
    EVE,
    OTHER_ANN,
    POLICIES,
    READERS,
    Caller,
    GuardedService,
    caller,
)
from tests.support.audit import audited_service, proxy_metadata
from tests.support.build import create, get, list_items, user_message
from tests.support.postgres import fresh_database
from tests.support.problems import problem_of
from tests.support.transfers import Importing, ended, refused, words

MOVER, OTHER_MOVER = caller("mover"), caller("mover", "umbrella")
MAY_IMPORT = {"permit": {"actions": "import", "resource": "tenant::*", "principal": "mover"}}
TIME = Timestamp(seconds=1_700_000_000)


async def exported(guarded: GuardedService, who: Caller, *names: str) -> list[Record]:
    """The records that a caller receives."""
    call = guarded.by(who).ExportConversations(ExportConversationsRequest(conversation_ids=names))
    return [record async for record in call]


async def imported(guarded: GuardedService, who: Caller, records: Iterable[Record]) -> list[Any]:
    """What becomes of the conversations that a caller brings."""
    call = guarded.by(who).ImportConversations(ImportConversationsRequest(record=record) for record in records)
    return [response async for response in call]


def ids(records: Iterable[Record]) -> list[list[str]]:
    """The id of each conversation of an export, with those of its items."""
    found: list[list[str]] = []
    for record in records:
        if record.HasField("conversation"):
            found.append([record.conversation.id])
        elif record.HasField("items"):
            found[-1] += [item.id for item in record.items.items]
    return found


@pytest.mark.parametrize("policy", POLICIES)
async def test_an_export_shows_what_lists_show(guarded: GuardedService, policy: str) -> None:
    """For every caller under every policy: the same conversations, and the same items of each."""
    rows = [
        await guarded.row(owner, attributes)
        for owner, attributes in (("ann", None), ("ann", {"teams": ["red"]}), ("", None), ("eve", {"teams": ["blue"]}))
    ]
    guarded.obey(POLICIES[policy])
    for who in CALLERS.values():
        listed = [each for row in rows if (each := await _listed(guarded, who, row)) is not None]
        try:
            records = await exported(guarded, who)
        except grpc.aio.AioRpcError as error:
            assert problem_of(error).code == "PERMISSION_DENIED"  # noqa: PT017 - it need not fail
            assert [] == [each for each in listed if each[1:]]
            continue
        found = {each[0]: each for each in ids(records)}
        assert listed == [found[row] for row in rows if row in found]
        for row in rows:
            if row not in [each[0] for each in listed]:
                with refused("CONVERSATION_NOT_FOUND"):
                    await exported(guarded, who, row)


async def _listed(guarded: GuardedService, who: Caller, row: str) -> list[str] | None:
    """The id of a conversation and those of its items, oldest first, as lists show them; None if they do not."""
    client = guarded.by(who)
    try:
        await client.GetConversation(get(row))
        page = await client.ListItems(list_items(row))
    except grpc.aio.AioRpcError as error:
        if problem_of(error).metadata.get("resource") == "item":
            return [row]
        return None
    return [row, *[item.id for item in reversed(page.items)]]


def one(name: str = "", owner: str = "ann") -> list[Record]:
    """The records of a conversation without items."""
    head = Conversation(id=name or f"conv_{token_hex(8)}", owner=owner, create_time=TIME, update_time=TIME)
    return ended(Record(conversation=head))


@pytest.mark.parametrize("policy", POLICIES)
async def test_no_rule_permits_imports_that_does_not_name_them(guarded: GuardedService, policy: str) -> None:
    """Neither the default policy nor any other; a rule about one principal permits it to that one."""
    guarded.obey(POLICIES[policy])
    for who in (ANN, BOB, MOVER):
        with refused("ACTION_DENIED"):
            await imported(guarded, who, [])
    guarded.obey([MAY_IMPORT, *POLICIES[policy]])
    assert ["stored 0", "created"] == words(await imported(guarded, MOVER, one()))
    with refused("ACTION_DENIED"):
        await imported(guarded, ANN, [])


async def test_an_import_belongs_to_its_owner_and_the_tenant_of_the_caller(guarded: GuardedService) -> None:
    """Owner and attributes are those that came, whoever brings them; another tenant sees nothing."""
    guarded.obey([MAY_IMPORT, *READERS])
    records = one()
    records[0].conversation.attributes["teams"].values.append("red")
    records = ended(records[0])
    assert ["stored 0", "created"] == words(await imported(guarded, MOVER, records))
    name = records[0].conversation.id
    for who, seen in ((ANN, True), (BOB, True), (EVE, False), (MOVER, False), (OTHER_ANN, False)):
        if seen:
            assert "ann" == (await guarded.by(who).GetConversation(get(name))).owner
            continue
        with refused("CONVERSATION_NOT_FOUND"):
            await guarded.by(who).GetConversation(get(name))


async def test_what_another_tenant_has_is_not_told(guarded: GuardedService) -> None:
    """Living, half imported and deleted conversations of others are all the same, and stay as they are."""
    guarded.obey([MAY_IMPORT, *READERS])
    living, deleted = await guarded.row("ann"), await guarded.row("ann", deleted=True)
    begun = one()
    await imported(guarded, MOVER, begun[:1])
    answers = [await imported(guarded, OTHER_MOVER, records) for records in (one(living), one(deleted), begun)]
    assert [["ALREADY_EXISTS"]] * 3 == [words(each) for each in answers]
    texts = {each[0].error.message for each in answers}
    assert {"Conversation already exists."} == texts
    assert "ann" == (await guarded.by(ANN).GetConversation(get(living))).owner
    assert ["stored 0", "created"] == words(await imported(guarded, MOVER, begun))


async def test_a_permission_that_is_withdrawn(guarded: GuardedService) -> None:
    """The stream ends with the next record, and what came before is seen by nobody."""
    guarded.obey([MAY_IMPORT, *READERS])
    records = one()
    call = guarded.by(MOVER).ImportConversations(later(records, guarded))
    with refused("ACTION_DENIED"):
        assert ["stored 0"] != words([response async for response in call])
    with refused("CONVERSATION_NOT_FOUND"):
        await guarded.by(ANN).GetConversation(get(records[0].conversation.id))


async def later(records: list[Record], guarded: GuardedService) -> AsyncIterator[ImportConversationsRequest]:
    """The records, with another policy in force from the second one on."""
    yield ImportConversationsRequest(record=records[0])
    await asyncio.sleep(0.1)
    guarded.obey(READERS)
    yield ImportConversationsRequest(record=records[1])


async def test_a_drain_ends_an_import(postgres: str, template: str) -> None:
    """It is UNAVAILABLE, to be begun again at another server; a conversation without its end is seen by nobody."""
    async with fresh_database(postgres, template) as url:
        settings = load(listen="127.0.0.1:0", database_url=url, purge_every_minutes=0, grace_seconds=2)
        records = one()
        async with run_service(settings) as served:
            channel = grpc.aio.insecure_channel(served.address)
            importing = Importing(channel)
            await importing.send(records[0])
            assert "stored 0" == await importing.answer()
            with refused("CONVERSATION_NOT_FOUND"):
                await ConversationsServiceStub(channel).GetConversation(get(records[0].conversation.id))
        with refused("SHUTTING_DOWN"):
            await importing.answer()
        await channel.close()


async def test_the_audit_names_each_conversation(postgres: str, template: str) -> None:
    """Of an export and of an import, with who did it; refusals too."""
    async with (
        fresh_database(postgres, template) as url,
        audited_service(url, proxy_require_tenant=False, audit_permits=True) as channel,
    ):
        stub = TransferServiceStub(channel)
        root, mover, bob = map(proxy_metadata, ("root", "mover", "bob"))
        made = await ConversationsServiceStub(channel).CreateConversation(create(user_message()), metadata=root)
        records = one()
        requests = [ImportConversationsRequest(record=record) for record in records]
        with capture_logs() as logs:
            async for _ in stub.ExportConversations(ExportConversationsRequest(), metadata=root):
                pass
            assert len([each async for each in stub.ImportConversations(iter(requests), metadata=mover)]) == 2
            with refused("ACTION_DENIED"):
                async for _ in stub.ImportConversations(iter(()), metadata=bob):
                    pass
        names = ("event", "principal", "resource", "action", "conversation_id")
        assert [
            ("permitted", "root", "item", "read", made.id),
            ("permitted", "mover", "tenant", "import", records[0].conversation.id),
            ("refused", "bob", "tenant", "import", ""),
        ] == [tuple(line.get(name, "") for name in names) for line in logs if line.get("log") == "audit"]
