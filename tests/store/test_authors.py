"""Items have their author in a column, unless it is the owner of the conversation."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from server.store import authors
from server.store.authors import fill_in_authors
from tests.support.access import ANN, BOB, EVE, CallerClient, GuardedService, caller
from tests.support.batching import queued_behind
from tests.support.build import ahead, append, copy_of, create, user_message

ALL: list[dict[str, Any]] = [{"permit": {"actions": ["create", "read", "update", "delete", "share"]}}]
AUTHORS = "SELECT coalesce(string_agg(author, ',' ORDER BY sequence), '') FROM items WHERE conversation_id = $1"


@pytest.fixture
async def world(guarded: GuardedService) -> GuardedService:
    """A service without conversations, in which everybody may do everything."""
    await guarded.connection.execute("TRUNCATE conversations, items, requests, conversation_attributes")
    guarded.obey(ALL)
    return guarded


async def stream(client: CallerClient, request: Any) -> None:
    """Appends by a stream of one message."""
    message = ahead(request.conversation_id, *request.items, request_id=request.request_id)
    async for _ in client.AppendItems(iter([message])):
        pass


PATHS: dict[str, Callable[[CallerClient, Any], Any]] = {
    "alone": lambda client, request: client.CreateItems(request),
    "in a stream": stream,
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("request_id", ["", str(uuid4())], ids=["without id", "with id"])
@pytest.mark.parametrize(("owner", "expected"), [("ann", ""), ("bob", "ann"), ("", "ann")])
async def test_an_append(world: GuardedService, path: str, request_id: str, owner: str, expected: str) -> None:
    """The column is empty in the caller's own conversation, and has the caller's id in any other."""
    row = await world.row(owner)
    await PATHS[path](world.by(ANN), append(row, user_message(), request_id=request_id))
    assert f",,{expected}" == await world.value(AUTHORS, row)


@pytest.mark.parametrize("ids", [False, True])
async def test_appends_that_share_a_statement(world: GuardedService, ids: bool) -> None:  # noqa: FBT001
    """Each item of a shared statement has the author of its own call."""
    ann, bob, eve = (world.by(each) for each in (ANN, BOB, EVE))
    rows = [await world.row(owner) for owner in ("ann", "bob", "eve", "")]

    def call(client: CallerClient, row: str) -> Callable[[], Any]:
        return lambda: client.CreateItems(append(row, user_message(), request_id=str(uuid4()) if ids else ""))

    first = await world.row("ann")
    calls = [call(client, row) for row in rows for client in (ann, bob, eve)]
    async with queued_behind(world.database, call(ann, first), *calls) as (line, tasks):
        pass
    for task in tasks:
        await task
    assert len(line.texts) < len(calls)
    expected = [",bob,eve", "ann,,eve", "ann,bob,", "ann,bob,eve"]
    found = [(await world.value(AUTHORS, row)).split(",")[2:] for row in rows]
    assert [sorted(each.split(",")) for each in expected] == [sorted(each) for each in found]


async def test_a_copy_keeps_its_author(world: GuardedService) -> None:
    """A reference copies the author of its source, whoever appends it and however often it was copied before."""
    ann, bob, eve = (world.by(each) for each in (ANN, BOB, EVE))
    anns = (await ann.CreateConversation(create(user_message(id="msg_a")))).id
    await bob.CreateItems(append(anns, user_message(id="msg_b")))
    both = (copy_of(anns, "msg_a"), copy_of(anns, "msg_b"))
    bobs = (await bob.CreateConversation(create(*both, user_message(id="msg_own")))).id
    assert "ann,," == await world.value(AUTHORS, bobs)
    eves = (await eve.CreateConversation(create())).id
    for each in ("msg_a", "msg_b", "msg_own"):
        await eve.CreateItems(append(eves, copy_of(bobs, each)))
    assert "ann,bob,bob" == await world.value(AUTHORS, eves)
    back = (await ann.CreateConversation(create(copy_of(eves, "msg_a"), copy_of(eves, "msg_b")))).id
    assert ",bob" == await world.value(AUTHORS, back)


# --- items from before there was a column


async def test_old_items_are_filled_in(world: GuardedService, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk finds what others appended, by the bodies, in steps; a copy, a long owner and a large body too."""
    monkeypatch.setattr(authors, "_STEP", 2)
    ann, bob, long, other = (world.by(caller(each)) for each in ("ann", "bob", "x" * 128, "y" * 40))
    disguised = world.by(caller("eve*(" + "y" * 40))  # ends as the field of the owner does
    large = user_message("x" * 100_000)
    anns = (await ann.CreateConversation(create(user_message("*", id="msg_a"), large))).id
    await bob.CreateItems(append(anns, user_message(), large))
    longs = (await long.CreateConversation(create(user_message(), copy_of(anns, "msg_a")))).id
    await bob.CreateItems(append(longs, user_message()))
    others = (await other.CreateConversation(create(user_message()))).id
    await disguised.CreateItems(append(others, user_message()))
    expected = {each: await world.value(AUTHORS, each) for each in (anns, longs, others)}
    assert {anns: ",,bob,bob", longs: ",ann,bob", others: f",eve*({'y' * 40}"} == expected
    await world.connection.execute("UPDATE items SET author = ''")
    await world.connection.execute("UPDATE author_progress SET conversation_id = '', sequence = 0, is_done = false")
    await world.connection.execute(
        "UPDATE items SET body = 'no item' WHERE conversation_id = $1 AND sequence = 2", anns
    )
    assert 5 == await fill_in_authors(world.connection)
    assert expected == {each: await world.value(AUTHORS, each) for each in (anns, longs, others)}
    assert 0 == await fill_in_authors(world.connection)


async def test_a_walk_that_was_interrupted_goes_on(world: GuardedService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever step fails, that step alone is done again."""
    monkeypatch.setattr(authors, "_STEP", 1)
    ann, bob = world.by(ANN), world.by(BOB)
    anns = (await ann.CreateConversation(create(user_message()))).id
    await bob.CreateItems(append(anns, *(user_message() for _ in range(5))))
    await world.connection.execute("UPDATE items SET author = ''")
    await world.connection.execute("UPDATE author_progress SET conversation_id = '', sequence = 0, is_done = false")
    fill, left = authors._fill, 0

    async def failing(*arguments: Any) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise ConnectionError
        return await fill(*arguments)

    monkeypatch.setattr(authors, "_fill", failing)
    filled = 0
    for _ in range(100):
        left = 2
        try:
            await fill_in_authors(world.connection)
            break
        except ConnectionError:
            now = await world.value("SELECT count(*) FROM items WHERE author <> ''")
            assert now >= filled
            filled = now
    assert ",bob,bob,bob,bob,bob" == await world.value(AUTHORS, anns)
