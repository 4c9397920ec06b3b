"""Lists by activity have every conversation, and its time once the queue is settled, whatever happens in between."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import pytest
from conversations.v1 import conversations_service_pb2 as pb

from server.app.activity import ActivityKeeper
from server.app.erasure_runner import parse_filter
from server.store import activity
from server.store.change_owner import Owner, change_owner
from server.store.connection.layout import ONE_SERVER
from server.store.connection.opening import direct_connection
from server.store.erasing import erase_subject
from server.store.erasures import Subject
from server.store.retention import mark_expired
from tests.support.access import ANN, BOB, GuardedService, guarded_service
from tests.support.activity import BY_ACTIVITY, compared, differences, ids, listed, queue, session, settled
from tests.support.batching import queued_behind
from tests.support.build import (
    append,
    create,
    delete,
    delete_many,
    fork,
    get,
    list_items,
    rewind,
    sets,
    undelete,
    update,
    user_message,
)
from tests.support.interruptions import Killed
from tests.support.postgres import fetch, row_locked
from tests.support.problems import problem
from tests.support.service import Service, recorded_statements
from tests.support.transfers import exported, imported, refused, words

ALL: list[dict[str, Any]] = [{"permit": {"actions": ["create", "read", "update", "delete", "share"]}}]


async def _wait_for_ever(_keeper: ActivityKeeper) -> None:
    await asyncio.sleep(3600)


@pytest.fixture(scope="module")
async def unsettled(postgres: str, template: str) -> AsyncIterator[GuardedService]:
    """A service whose queue the tests settle."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ActivityKeeper, "run", _wait_for_ever)
        async with guarded_service(postgres, template) as served:
            yield served


@pytest.fixture
async def world(unsettled: GuardedService) -> GuardedService:
    """The same without conversations, and everybody may do everything."""
    tables = "conversations, items, requests, conversation_attributes, activity, pending, expirations"
    await unsettled.connection.execute(f"TRUNCATE {tables}")
    unsettled.obey(ALL)
    return unsettled


# --- what a caller sees


async def test_appends_come_to_the_front(world: GuardedService) -> None:
    """After appends alone and in shared statements the order is that of the last appends, newest first."""
    ann = world.by(ANN)
    made = [(await ann.CreateConversation(create())).id for _ in range(7)]
    assert made[::-1] == await ids(ann, 2)
    random = Random(1)
    for _ in range(30):
        await ann.CreateItems(append(random.choice(made), user_message()))
    await settled(world.url)
    calls = [partial(ann.CreateItems, append(each, user_message())) for each in made[:5]]
    async with queued_behind(world.database, *calls) as (line, _):
        pass
    assert len(line.texts) < 5
    last = await world.connection.fetch("SELECT id FROM conversations ORDER BY active_time DESC, id DESC")
    expected = [row["id"] for row in last]
    assert sorted(made) == sorted(await ids(ann, 2))
    assert 5 == await settled(world.url)
    assert ([], []) == (await queue(world.url), await differences(world.url))
    assert expected == await ids(ann) == await ids(ann, 1) == await ids(ann, 2)
    assert {*made[:5]} == {*expected[:5]}


async def test_the_time_of_a_conversation(world: GuardedService) -> None:
    """It is the creation, then the last append, at once by id and once it is settled in lists."""
    ann = world.by(ANN)
    made = await ann.CreateConversation(create(user_message()))
    assert made.active_time == made.create_time
    assert made == await ann.GetConversation(get(made.id))
    await ann.CreateItems(append(made.id, user_message()))
    now = await ann.GetConversation(get(made.id))
    assert now.active_time.ToDatetime() > made.active_time.ToDatetime()
    assert [made.active_time] == [each.active_time for each in await listed(ann)]
    await settled(world.url)
    assert [now] == await listed(ann)
    changed = await ann.UpdateConversation(update(made.id, "metadata", metadata={"a": "b"}))
    assert now.active_time == changed.active_time


async def test_the_clock_of_the_database_is_behind(world: GuardedService) -> None:
    """An append never moves the time back, nor before the creation."""
    ann = world.by(ANN)
    made = (await ann.CreateConversation(create())).id
    later = await world.value("UPDATE conversations SET create_time = now() + interval '1 h' RETURNING create_time")
    await ann.CreateItems(append(made, user_message()))
    assert later == await world.value("SELECT active_time FROM conversations")


async def test_a_filter_and_ranges(world: GuardedService) -> None:
    """Filters by owner, by source and by what has no index hold in this order, for callers with ranges and without."""
    ann, bob = world.by(ANN), world.by(BOB)
    anns = [(await ann.CreateConversation(create(metadata={"n": str(n % 2)}))).id for n in range(4)]
    bobs = [(await bob.CreateConversation(create())).id for _ in range(2)]
    forks = [(await ann.ForkConversation(fork(anns[0]))).id for _ in range(3)]
    for each in (forks[0], anns[1], bobs[0]):
        await ann.CreateItems(append(each, user_message()))
    await settled(world.url)
    everything = [bobs[0], anns[1], forks[0], forks[2], forks[1], bobs[1], anns[3], anns[2], anns[0]]
    for rules in (ALL, []):  # by the tenant, and by owner and team
        world.obey(rules)
        for size in (1, 2, 100):
            assert everything == await ids(ann, size)
            assert [each for each in everything if each in bobs] == await ids(ann, size, filter='owner = "bob"')
            source = f'forked_from = "{anns[0]}"'
            assert [forks[0], forks[2], forks[1]] == await ids(ann, size, filter=source)
            assert [anns[1], anns[3]] == await ids(ann, size, filter='metadata.n = "1"')


async def test_a_token_of_another_order(world: GuardedService) -> None:
    """A page token is refused in any order but its own."""
    ann = world.by(ANN)
    for _ in range(2):
        await ann.CreateConversation(create())
    orders = ("", "create_time", BY_ACTIVITY)
    for order in orders:
        request = pb.ListConversationsRequest(page_size=1, order_by=order)
        token = (await ann.ListConversations(request)).next_page_token
        for other in orders:
            again = pb.ListConversationsRequest(page_size=1, order_by=other, page_token=token)
            with nullcontext() if other == order else refused("PAGE_TOKEN_INVALID"):
                await ann.ListConversations(again)


# --- the queue


async def test_an_open_append_keeps_its_conversation_in_the_queue(world: GuardedService) -> None:
    """What somebody is appending to is not taken out: whoever finds it there and commits later would be lost."""
    made = (await world.by(ANN).CreateConversation(create())).id
    await world.connection.execute("INSERT INTO pending VALUES ($1)", made)
    async with row_locked(world.url, made):
        assert 0 == await settled(world.url)
        assert [made] == await queue(world.url)
    assert 1 == await settled(world.url)
    assert [] == await queue(world.url)


async def test_what_was_written_since_the_snapshot(world: GuardedService, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversation that changes between the snapshot of a pass and its locks stays, with all it got meanwhile."""
    ann = world.by(ANN)
    made = (await ann.CreateConversation(create(attributes=sets(teams=["red"])))).id
    await ann.CreateItems(append(made, user_message()))
    paused = activity._SETTLE.replace(
        "seen AS MATERIALIZED (", "paused AS MATERIALIZED (SELECT pg_advisory_lock(7)), seen AS MATERIALIZED ("
    ).replace("FROM conversations JOIN seen", "FROM paused, conversations JOIN seen")
    monkeypatch.setattr(activity, "_SETTLE", paused)
    await world.connection.execute("SELECT pg_advisory_lock(7)")
    settling = asyncio.create_task(settled(world.url))
    waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    while not await world.value(waits):  # noqa: ASYNC110 - the database tells nobody
        await asyncio.sleep(0.005)
    await ann.UpdateConversation(update(made, "attributes", attributes=sets(teams=["red", "blue"])))
    await world.connection.execute("SELECT pg_advisory_unlock(7)")
    assert 0 == await settling
    assert [made] == await queue(world.url)
    monkeypatch.undo()
    await settled(world.url)
    assert ([], []) == (await queue(world.url), await differences(world.url))


async def test_an_append_during_the_settling_is_not_lost(world: GuardedService) -> None:
    """Whoever appends behind a pass that is not committed yet waits for it, and is in the queue again."""
    ann = world.by(ANN)
    made = (await ann.CreateConversation(create())).id
    await ann.CreateItems(append(made, user_message()))
    async with direct_connection(world.url, settings=activity.SESSION) as connection:
        async with connection.transaction():
            assert 1 == await activity.settle(connection)
            appending = ann.CreateItems(append(made, user_message()))
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            while not await world.value(waits):  # noqa: ASYNC110 - the database tells nobody
                await asyncio.sleep(0.005)
        await appending
    assert [made] == await queue(world.url)
    await settled(world.url)
    assert [] == await differences(world.url)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5])
async def test_a_pass_ends(world: GuardedService, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """However many there are beside the size of a step, a pass takes out all but those that are locked."""
    monkeypatch.setattr(activity, "_STEP", 2)
    ann = world.by(ANN)
    made = [(await ann.CreateConversation(create())).id for _ in range(count)]
    for each in made:
        await ann.CreateItems(append(each, user_message()))
    async with row_locked(world.url, made[0] if made else ""):
        assert max(0, count - 1) == await settled(world.url)
    assert made[:1] == await queue(world.url)


async def test_conversations_that_are_gone_leave_the_queue(world: GuardedService) -> None:
    """A tombstone is taken out, and so is what was removed; an undelete brings the time of the last append back."""
    ann = world.by(ANN)
    made = (await ann.CreateConversation(create(attributes=sets(teams=["red"])))).id
    await ann.CreateItems(append(made, user_message()))
    await ann.DeleteConversation(delete(made))
    await world.connection.execute("INSERT INTO pending VALUES ('conv_gone')")
    assert [] == await ids(ann)
    assert 2 == await settled(world.url)
    assert ([], []) == (await queue(world.url), await differences(world.url))
    await ann.UndeleteConversation(undelete(made))
    assert [] == await differences(world.url)
    assert [made] == await ids(ann)


# --- everything that makes, moves or removes a row


async def _delete(world: GuardedService, made: str) -> None:
    await world.by(ANN).DeleteConversation(delete(made))


async def _delete_many(world: GuardedService, _made: str) -> None:
    await world.by(ANN).DeleteConversations(delete_many('owner = "ann"'))


async def _undelete(world: GuardedService, made: str) -> None:
    await world.by(ANN).DeleteConversation(delete(made))
    await world.by(ANN).UndeleteConversation(undelete(made))


async def _expire(world: GuardedService, made: str) -> None:
    await world.connection.execute("UPDATE conversations SET expire_time = now() WHERE id = $1", made)
    await world.connection.execute("INSERT INTO expirations VALUES ($1, now())", made)
    await mark_expired([world.connection])


async def _change_owner(world: GuardedService, _made: str) -> None:
    await change_owner(world.url, Owner("acme", "ann"), Owner("umbrella", "eve"))


async def _share(world: GuardedService, made: str) -> None:
    shared = update(made, "attributes", attributes=sets(teams=["blue", "green"]))
    await world.by(ANN).UpdateConversation(shared)


async def _fork(world: GuardedService, made: str) -> None:
    await world.by(BOB).ForkConversation(fork(made))


async def _rewind(world: GuardedService, made: str) -> None:
    await world.by(ANN).RewindConversation(rewind(made, 0))


async def _erase(world: GuardedService, _made: str) -> None:
    await erase_subject(world.url, "acme", Subject.of_principal("ann"), parse_filter, 1.0)


async def _remove(world: GuardedService, made: str) -> None:
    await world.connection.execute("DELETE FROM conversation_attributes WHERE conversation_id = $1", made)
    await world.connection.execute("DELETE FROM conversations WHERE id = $1", made)


CHANGES = {
    each.__name__: each
    for each in (
        _delete,
        _delete_many,
        _undelete,
        _expire,
        _change_owner,
        _share,
        _fork,
        _rewind,
        _erase,
        _remove,
    )
}


@pytest.mark.parametrize("is_settled", [True, False])
@pytest.mark.parametrize("name", CHANGES)
async def test_the_tables_follow(world: GuardedService, name: str, *, is_settled: bool) -> None:
    """Whatever becomes of a conversation with an append: what lists read is as one would make it anew."""
    ann, bob = world.by(ANN), world.by(BOB)
    made = (await ann.CreateConversation(create(attributes=sets(teams=["red", "green"])))).id
    await bob.CreateConversation(create())
    await ann.CreateItems(append(made, user_message()))
    if is_settled:
        await settled(world.url)
    await CHANGES[name](world, made)
    if is_settled:
        assert [] == await differences(world.url)
    await settled(world.url)
    assert ([], []) == (await queue(world.url), await differences(world.url))


async def test_an_import(own_service: Service) -> None:
    """An import has the time of its last item, whatever the file says; active_time is no part of the digest."""
    stub, channel = own_service.stub, own_service.channel
    made = await stub.CreateConversation(create(user_message(), attributes=sets()))
    await stub.CreateItems(append(made.id, user_message()))
    records = await exported(channel, made.id)
    assert records[0].conversation.active_time.ToDatetime() > made.active_time.ToDatetime()
    items = await stub.ListItems(list_items(made.id))
    records[0].conversation.active_time.seconds += 3600
    await fetch(own_service.url, "TRUNCATE conversations, items, conversation_attributes, requests, activity, pending")
    assert ["stored 0", "created"] == words(await imported(channel, records))
    again = await stub.GetConversation(get(made.id))
    assert max(each.create_time.ToDatetime() for each in items.items) == again.active_time.ToDatetime()
    assert [] == await differences(own_service.url)
    assert [again] == await listed(stub)


# --- times that nobody has put in the queue

BEHIND = """
    UPDATE conversations SET active_time = NULL WHERE id = ANY($1);
    UPDATE activity SET active_time = '2020-01-01';
    UPDATE conversation_attributes SET active_time = '2020-01-01';
    TRUNCATE pending;
    UPDATE activity_progress SET conversation_id = '', is_done = false"""


async def from_before(world: GuardedService, count: int) -> dict[str, Any]:
    """Conversations with items from before there were times of activity: their ids, and the time of the last item."""
    ann = world.by(ANN)
    found = {}
    for number in range(count):
        made = await ann.CreateConversation(create(attributes=sets(teams=["red"])))
        for _ in range(number % 3):
            items = await ann.CreateItems(append(made.id, user_message()))
            made.create_time.CopyFrom(items.items[0].create_time)
        found[made.id] = made.create_time.ToDatetime()
    for statement in BEHIND.split(";"):
        await world.connection.execute(statement, *([list(found)] if "$1" in statement else []))
    return found


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5])
async def test_older_conversations(world: GuardedService, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Their time is that of their last item, for those who get them and in lists, however many fit into a step."""
    monkeypatch.setattr(activity, "_SCANNED", 2)
    expected = await from_before(world, count)
    assert await compared(world.url)
    assert [] == await differences(world.url)
    assert expected == {each.id: each.active_time.ToDatetime() for each in await listed(world.by(ANN))}
    assert await world.value("SELECT is_done FROM activity_progress")


async def test_a_locked_conversation_is_compared_later(world: GuardedService, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison waits for nobody, and does not go past what is locked."""
    monkeypatch.setattr(activity, "_SCANNED", 2)
    expected = await from_before(world, 5)
    async with row_locked(world.url, sorted(expected)[2]):
        assert not await compared(world.url)
        assert sorted(expected)[1] == await world.value("SELECT conversation_id FROM activity_progress")
    assert await compared(world.url)
    assert [] == await differences(world.url)


@pytest.mark.parametrize("behind", [False, True], ids=["before a statement", "behind a statement"])
async def test_each_statement(world: GuardedService, monkeypatch: pytest.MonkeyPatch, *, behind: bool) -> None:
    """Whichever statement it is killed at, what was settled and compared is right, and the next one does the rest."""
    monkeypatch.setattr(activity, "_STEP", 2)
    monkeypatch.setattr(activity, "_SCANNED", 2)
    ann, number, is_killed = world.by(ANN), 0, True
    while is_killed:
        number, is_killed = number + 1, False
        made = list(await from_before(world, 5))
        for each in made[:3]:
            await ann.CreateItems(append(each, user_message()))
        try:
            async with session(world.url, number, behind=behind) as connection:
                await activity.settle(connection)
                await activity.compare(connection, 60.0)
        except Killed:
            is_killed = True
        wrong = {each for _, each in await differences(world.url)}
        assert wrong.isdisjoint(set(made[:3]) - set(await queue(world.url)))
        async with session(world.url) as connection:
            await activity.settle(connection)
            assert await activity.compare(connection, 60.0)
        assert ([], []) == (await queue(world.url), await differences(world.url)), number
        await world.connection.execute("TRUNCATE conversations, conversation_attributes, items, activity")
    assert number > 8


async def test_nothing_waits_where_nobody_keeps_the_order(own_service: Service) -> None:
    """On a database whose layout has no such order appends leave nothing in the queue, shared ones neither."""
    made = await own_service.stub.CreateConversation(create())
    own_service.database.layout = replace(ONE_SERVER, orders_by_activity=False)
    with recorded_statements(own_service.database) as texts:
        await asyncio.gather(*(own_service.stub.CreateItems(append(made.id, user_message())) for _ in range(4)))
    assert texts
    assert [] == [text for text in texts if "pending" in text]
    told = await problem(own_service.stub.ListConversations(pb.ListConversationsRequest(order_by=BY_ACTIVITY)))
    assert ("UNIMPLEMENTED", "NOT_SUPPORTED") == (told.code, told.reason)
