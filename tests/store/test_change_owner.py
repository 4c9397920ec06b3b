"""Conversations that were made without identity are given to somebody who exists, in short steps."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio
import pytest
from conversations.v1.conversation_pb2 import AttributeValues
from conversations.v1.conversations_service_pb2 import ListConversationsRequest
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub

from server.app.service import run_service
from server.settings.service import load
from server.store import change_owner
from server.store.change_owner import ChangeOfOwnerFailed, Owner
from tests.support.access import ANN, BOB, EVE, GuardedService
from tests.support.build import append, create, delete, get, user_message
from tests.support.commands import error_line_of, output_of
from tests.support.erasure import ERASURE_RULES
from tests.support.postgres import fresh_database
from tests.support.service import Service

LOCAL, ALICE = Owner("", "local"), Owner("", "alice")


@asynccontextmanager
async def proxied(url: str, folder: Path) -> AsyncIterator[Any]:
    """A service with identity on the database at ``url``."""
    values = {"database_url": url, "identity": "proxy", "purge_every_minutes": 0, "grace_seconds": 1}
    options = [("grpc.default_authority", "localhost")]
    async with (
        run_service(load(listen=f"unix:{folder}/s", **values)) as running,
        grpc.aio.insecure_channel(running.address, options=options) as channel,
    ):
        yield ConversationsServiceStub(channel)


async def listed(stub: Any, *metadata: tuple[str, str]) -> set[str]:
    """The ids of the conversations that a caller sees."""
    answer = await stub.ListConversations(ListConversationsRequest(page_size=100), metadata=metadata)
    return {each.id for each in answer.conversations}


async def test_what_was_made_without_identity_is_given_away(
    own_service: Service, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every conversation gets its new owner, in several steps, with its items and another etag; others keep theirs."""
    monkeypatch.setattr(change_owner, "STEP", 2)
    made = [await own_service.stub.CreateConversation(create(user_message("hello"))) for _ in range(5)]
    gone = await own_service.stub.CreateConversation(create())
    await own_service.stub.DeleteConversation(delete(gone.id))
    async with proxied(own_service.url, short_folder) as stub:
        bob = await stub.CreateConversation(create(), metadata=[("x-principal", "bob")])
        assert 5 == await change_owner.count_conversations(own_service.url, LOCAL)
        assert set() == await listed(stub, ("x-principal", "alice"))
        assert 5 == await change_owner.change_owner(own_service.url, LOCAL, ALICE)
        assert {each.id for each in made} == await listed(stub, ("x-principal", "alice"))
        assert {bob.id} == await listed(stub, ("x-principal", "bob"))
        found = await stub.GetConversation(get(made[0].id), metadata=[("x-principal", "alice")])
        assert ("alice", 1, True) == (found.owner, found.last_sequence, found.etag != made[0].etag)
        assert 0 == await change_owner.change_owner(own_service.url, LOCAL, ALICE)


async def test_conversations_can_get_a_tenant(own_service: Service, short_folder: Path) -> None:
    """Where callers have tenants, what they own is in one; who shares an attribute there sees it, and nobody else."""
    made = await own_service.stub.CreateConversation(create(attributes={"teams": AttributeValues(values=["red"])}))
    assert 1 == await change_owner.change_owner(own_service.url, LOCAL, Owner("acme", "alice"))
    assert 0 == await change_owner.count_conversations(own_service.url, ALICE)
    assert 0 == await change_owner.change_owner(own_service.url, ALICE, Owner("", "bob"))
    async with proxied(own_service.url, short_folder) as stub:
        assert {made.id} == await listed(stub, ("x-principal", "alice"), ("x-tenant", "acme"))
        mate = (("x-principal", "mate"), ("x-attributes", "teams=red"))
        assert {made.id} == await listed(stub, *mate, ("x-tenant", "acme"))
        assert set() == await listed(stub, *mate, ("x-tenant", "other"))


async def test_a_locked_conversation_is_told(own_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that keeps its lock ends the command, which says what is done; the next run does the rest."""
    monkeypatch.setattr(change_owner, "STEP", 1)
    monkeypatch.setitem(change_owner.SESSION, "lock_timeout", "100ms")
    for _ in range(3):
        await own_service.stub.CreateConversation(create())
    connection = await asyncpg.connect(own_service.url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT id FROM conversations ORDER BY create_time DESC LIMIT 1 FOR UPDATE")
            with pytest.raises(ChangeOfOwnerFailed, match="2 have been changed"):
                await change_owner.change_owner(own_service.url, LOCAL, ALICE)
    finally:
        await connection.close()
    assert 1 == await change_owner.change_owner(own_service.url, LOCAL, ALICE)


async def test_an_empty_database_is_told(postgres: str) -> None:
    """Without the schema the command prints what to do first."""
    async with fresh_database(postgres, "template1") as url:
        for more in ((), ("--apply",)):
            arguments = ("change-owner", "--from", "local", "--to", "alice", *more)
            assert "run `python -m server migrate` first" in await error_line_of(*arguments, url=url)


async def test_the_command(own_service: Service) -> None:
    """It counts unless it is told to change, and names both owners with their tenants."""
    await own_service.stub.CreateConversation(create())
    arguments = ("change-owner", "--from", "local", "--to", "alice", "--to-tenant", "acme")
    for _ in range(2):
        told = await output_of(*arguments, url=own_service.url)
        assert "1 conversations of 'local' in tenant '' would belong to 'alice' in tenant 'acme'\n" in told
        assert told.endswith("Nothing was changed; --apply does it.\n")
    told = await output_of(*arguments, "--apply", url=own_service.url)
    assert told.endswith("1 conversations of 'local' in tenant '' now belong to 'alice' in tenant 'acme'\n")
    told = await output_of("change-owner", "--from", "alice", "--to", "bob", "--tenant", "acme", url=own_service.url)
    assert "1 conversations of 'alice' in tenant 'acme' would belong to 'bob' in tenant 'acme'\n" in told


@pytest.mark.parametrize(
    "arguments, told",
    [
        (("--from", "local", "--to", "local"), "--to: is the owner already"),
        (("--from", "", "--to", "alice"), "--from, --to: must be 1 to 256 bytes"),
        (("--from", "local", "--to", "x" * 257), "--from, --to: must be 1 to 256 bytes"),
        (("--from", "local", "--to", "alice", "--to-tenant", "x" * 257), "--tenant, --to-tenant: must be at most 256"),
    ],
)
async def test_wrong_names_are_told(arguments: tuple[str, ...], told: str) -> None:
    """A name that nobody can have is an error before any database is asked."""
    assert told in await error_line_of("change-owner", *arguments, url="postgresql://127.0.0.1:1/none")


async def test_authors(guarded: GuardedService) -> None:
    """What the owner before wrote becomes the new owner's, what the new one had written is the owner's as well."""
    guarded.obey(ERASURE_RULES)
    await guarded.connection.execute("TRUNCATE conversations, items, requests, conversation_attributes")
    ann, bob, eve = (guarded.by(each) for each in (ANN, BOB, EVE))
    given = (await ann.CreateConversation(create(user_message()))).id
    eves = (await eve.CreateConversation(create(user_message()))).id
    for who in (bob, eve):
        await who.CreateItems(append(given, user_message()))
    await ann.CreateItems(append(eves, user_message()))
    assert 1 == await change_owner.change_owner(guarded.url, Owner("acme", "ann"), Owner("acme", "bob"))
    found = await guarded.connection.fetch(
        "SELECT conversation_id, author FROM items WHERE conversation_id = ANY($1) ORDER BY sequence", [given, eves]
    )
    assert ["", "", "eve"] == [row["author"] for row in found if row["conversation_id"] == given]
    assert ["", "ann"] == [row["author"] for row in found if row["conversation_id"] == eves]
