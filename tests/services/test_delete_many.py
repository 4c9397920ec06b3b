"""DeleteConversations: what a filter finds, and the caller may delete, is deleted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from conversations.v1.conversations_service_pb2 import (
    DeleteConversationsRequest,
    DeleteConversationsResponse,
    ListConversationsRequest,
    WatchConversationsRequest,
)

from server.store import change_log
from server.store.bulk_deletes import MAX_CONVERSATIONS
from tests.support.access import ANN, BOB, EVE, EVERYTHING, RITA, GuardedService
from tests.support.build import create, delete, delete_many, fork, get, sets, update
from tests.support.postgres import fetch, fresh_database
from tests.support.problems import problem
from tests.support.proof import proof_on
from tests.support.proxied import proxied_service, unknown
from tests.support.service import Service, recorded_statements
from tests.support.watching import KEEP, watching
from tests.support.worlds import random_world

_MANY = """
    INSERT INTO conversations (id, tenant, owner, attributes, metadata, last_sequence, version, revision,
        create_time, update_time)
    SELECT 'conv_' || $1 || lpad(n::text, 6, '0'), tenant, owner, attributes, metadata, 0, 1, 1,
        create_time + n * interval '1 ms', update_time
    FROM conversations, generate_series(1, $2) AS n WHERE id = $3"""


async def made(stub: Any, topic: str, count: int = 1, **fields: Any) -> list[str]:
    """The ids of conversations about a topic."""
    return [(await stub.CreateConversation(create(metadata={"topic": topic}, **fields))).id for _ in range(count)]


def about(topic: str, **fields: Any) -> DeleteConversationsRequest:
    """A request to delete all conversations about a topic."""
    return delete_many(f'metadata.topic = "{topic}"', **fields)


async def left(stub: Any, topic: str) -> list[str]:
    """The ids of the conversations about a topic, oldest first."""
    request = ListConversationsRequest(filter=f'metadata.topic = "{topic}"', order_by="create_time", page_size=100)
    return [each.id for each in (await stub.ListConversations(request)).conversations]


@pytest.fixture
def topic() -> str:
    """A topic that no other test uses."""
    return str(uuid4())


async def test_what_matches_is_deleted(service: Service, topic: str) -> None:
    """All that match are gone as after a delete of each, and nothing else is; again, there is nothing to delete."""
    stub = service.stub
    gone, (other,) = await made(stub, topic, 3), await made(stub, f"{topic} too")
    with recorded_statements(service.database) as statements:
        assert await stub.DeleteConversations(about(topic)) == DeleteConversationsResponse(deleted_count=3)
    assert len(statements) == 1
    for name in gone:
        assert "NOT_FOUND" == (await problem(stub.GetConversation(get(name)))).code
    rows = await service.database.pool.fetch("SELECT version, delete_time FROM conversations WHERE id = ANY($1)", gone)
    assert {2} == {row["version"] for row in rows}
    assert all(row["delete_time"] for row in rows)
    assert (await stub.GetConversation(get(other))).id == other
    assert await stub.DeleteConversations(about(topic)) == DeleteConversationsResponse()


async def test_it_can_only_count(service: Service, topic: str) -> None:
    """With `validate_only` nothing is deleted, and the count is that of the call without it."""
    names = await made(service.stub, topic, 2)
    counted = await service.stub.DeleteConversations(about(topic, validate_only=True))
    assert counted == DeleteConversationsResponse(deleted_count=2)
    assert await left(service.stub, topic) == names
    assert counted == await service.stub.DeleteConversations(about(topic))


async def test_forks_of_one_conversation(stub: Any, topic: str) -> None:
    """The filter is that of lists, the source of forks included."""
    (source,) = await made(stub, topic)
    forks = [(await stub.ForkConversation(fork(source))).id for _ in range(2)]
    assert 2 == (await stub.DeleteConversations(delete_many(f'forked_from = "{source}"'))).deleted_count
    assert await left(stub, topic) == [source]
    assert "NOT_FOUND" == (await problem(stub.GetConversation(get(forks[0])))).code


async def test_only_so_many_at_once(service: Service, topic: str) -> None:
    """A call deletes the oldest thousand, and says whether there are more."""
    stub, pool = service.stub, service.database.pool
    (first,) = await made(stub, topic)
    await pool.execute(_MANY, topic.replace("-", ""), MAX_CONVERSATIONS, first)
    full = DeleteConversationsResponse(deleted_count=1_000, has_more=True)
    assert full == await stub.DeleteConversations(about(topic, validate_only=True))
    assert full == await stub.DeleteConversations(about(topic))
    assert await left(stub, topic) == [f"conv_{topic.replace('-', '')}{MAX_CONVERSATIONS:06}"]
    assert await stub.DeleteConversations(about(topic)) == DeleteConversationsResponse(deleted_count=1)
    await pool.execute(_MANY, f"{topic.replace('-', '')}b", MAX_CONVERSATIONS, first)
    exact = DeleteConversationsResponse(deleted_count=MAX_CONVERSATIONS)
    assert exact == await stub.DeleteConversations(about(topic))


INVALID: dict[str, tuple[str, str, dict[str, str]]] = {
    "nothing": ("", "FIELD_INVALID", {"filter": "string.min_len"}),
    "white space": ("  \t ", "FILTER_INVALID", {"filter": ""}),
    "no filter": ("everything", "FILTER_INVALID", {"filter": ""}),
    "a field of items": ('role = "user"', "FILTER_INVALID", {"filter": ""}),
    "half of one": ('owner = "a" AND ', "FILTER_INVALID", {"filter": ""}),
    "too long": (f'owner = "{"x" * 2048}"', "FIELD_INVALID", {"filter": "string.max_len"}),
}


@pytest.mark.parametrize(("text", "reason", "fields"), INVALID.values(), ids=INVALID)
async def test_a_filter_says_something(stub: Any, text: str, reason: str, fields: dict[str, str]) -> None:
    """Nobody deletes everything by a filter that is empty, or that cannot be read."""
    for validate_only in (False, True):
        told = await problem(stub.DeleteConversations(delete_many(text, validate_only=validate_only)))
        assert ("INVALID_ARGUMENT", reason, fields) == (told.code, told.reason, told.fields)


# --- the policy


async def test_only_what_may_be_deleted(guarded: GuardedService, topic: str) -> None:
    """What the caller may only read, and what it cannot see, stays and is not counted, in any tenant."""
    guarded.obey(
        [
            {"permit": {"actions": EVERYTHING}, "when": "user is owner"},
            {"permit": {"actions": ["read", "delete"], "resource": "conversation::*"}, "when": "user in owners teams"},
            {"permit": {"actions": ["read"]}, "when": "user with auditor in roles"},
        ]
    )
    own = await made(guarded.by(BOB), topic, 2, attributes=sets(teams=[]))
    of_the_team = await made(guarded.by(ANN), topic)
    hidden = await made(guarded.by(EVE), topic)
    assert 0 == (await guarded.by(RITA).DeleteConversations(about(topic))).deleted_count
    counted = await guarded.by(BOB).DeleteConversations(about(topic, validate_only=True))
    done = await guarded.by(BOB).DeleteConversations(about(topic))
    assert (3, False) == (counted.deleted_count, counted.has_more) == (done.deleted_count, done.has_more)
    living = await guarded.connection.fetch("SELECT id FROM conversations WHERE delete_time IS NULL")
    assert {row["id"] for row in living} & {*own, *of_the_team, *hidden} == {*hidden}


@pytest.mark.parametrize("worlds", [pytest.param(40, id="some"), pytest.param(2000, id="many", marks=pytest.mark.slow)])
async def test_random_policies(postgres: str, template: str, worlds: int) -> None:
    """Under any policy a call deletes what lists show and a delete would take, no more and no less."""
    rng = Random(worlds)
    async with fresh_database(postgres, template) as url, proof_on(url, rng) as proof:
        for _ in range(worlds):
            await proof.deletes(random_world(rng), callers=1)
    assert 0.05 < proof.seen.share(proof.seen.deleted, True) < 0.6


# --- beside others


@asynccontextmanager
async def locked(url: str, *names: str) -> AsyncIterator[asyncpg.Connection]:
    """Another session holds the rows of conversations."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM conversations WHERE id = ANY($1) FOR UPDATE", names)
            yield connection
    finally:
        await connection.close()


async def test_what_is_locked_waits_for_another_call(service: Service, topic: str) -> None:
    """Conversations that somebody writes to are left out, and `has_more` says so; nobody waits for them."""
    stub, names = service.stub, await made(service.stub, topic, 4)
    async with locked(service.url, names[0], names[2]):
        done = await stub.DeleteConversations(about(topic))
        assert (2, True) == (done.deleted_count, done.has_more)
        assert await left(stub, topic) == [names[0], names[2]]
        waiting = asyncio.ensure_future(stub.DeleteConversations(about(topic)))
        await asyncio.sleep(0.2)
        assert not waiting.done()
    # It has waited for the first of the two, so that its caller comes to an end.
    assert DeleteConversationsResponse(deleted_count=1, has_more=True) == await waiting
    assert DeleteConversationsResponse(deleted_count=1) == await stub.DeleteConversations(about(topic))


async def test_what_does_not_match_any_more_stays(service: Service, topic: str) -> None:
    """A conversation that is updated while the call waits for it is looked at again."""
    stub, (name,) = service.stub, await made(service.stub, topic)
    async with locked(service.url, name) as other:
        waiting = asyncio.ensure_future(stub.DeleteConversations(about(topic)))
        await asyncio.sleep(0.2)
        await other.execute("UPDATE conversations SET metadata = '{}', version = version + 1 WHERE id = $1", name)
    assert 0 == (await waiting).deleted_count
    assert {} == dict((await stub.GetConversation(get(name))).metadata)


async def test_many_at_once(service: Service, topic: str) -> None:
    """Calls at the same time delete each conversation once, beside single deletes and updates."""
    stub, names = service.stub, await made(service.stub, topic, 40)
    calls = [stub.DeleteConversations(about(topic)) for _ in range(8)]
    others = [stub.DeleteConversation(delete(name)) for name in names[::8]]
    updates = [stub.UpdateConversation(update(name, "metadata.n", metadata={"n": "1"})) for name in names[1::8]]
    ended = await asyncio.gather(*calls, *others, *updates, return_exceptions=True)
    done = [each for each in ended if isinstance(each, DeleteConversationsResponse)]
    deleted = sum(each.deleted_count for each in done)
    while (again := await stub.DeleteConversations(about(topic))).deleted_count:
        deleted += again.deleted_count
    taken = sum(not isinstance(each, BaseException) for each in ended[8:13])
    assert (len(done), deleted + taken, await left(stub, topic)) == (8, 40, [])
    listed = ", ".join(f"'{name}'" for name in names)
    rows = await fetch(service.url, f"SELECT version FROM conversations WHERE id IN ({listed})")
    assert {row["version"] for row in rows} <= {2, 3}


async def test_a_lost_answer(postgres: str, template: str, topic: str) -> None:
    """Nobody repeats a call of which it is not known what it has deleted: the count would be another one."""
    async with proxied_service(postgres, template) as served:
        await made(served.stub, topic, 2)
        served.proxy.lose_answers(topic.encode())
        await unknown(served.stub.DeleteConversations(about(topic)))
        await served.proxy.heal()
        assert await served.stub.DeleteConversations(about(topic)) == DeleteConversationsResponse()


# --- watches


async def test_watches_end(own_service: Service, topic: str) -> None:
    """Whoever follows one of them is told of its end, and whoever follows all that they are gone."""
    await change_log.turn_on(own_service.url, KEEP)
    names = await made(own_service.stub, topic, 3)
    call = own_service.stub.WatchConversations(WatchConversationsRequest(), timeout=30)
    await call.read()
    async with watching(own_service, names[0]) as watch:
        await watch.next()
        await own_service.stub.DeleteConversations(about(topic))
        assert await watch.next() == ["the conversation is gone"]
    gone: set[str] = set()
    while len(gone) < 3:
        gone |= {change.removed_id for change in (await call.read()).changes}
    call.cancel()
    assert gone == set(names)
