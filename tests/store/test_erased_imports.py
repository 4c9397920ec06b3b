"""What a running or broken import holds of a subject is erased too: it would come back with the end of the import."""

from secrets import token_hex
from typing import Any

import pytest
from conversations.v1.content_pb2 import ROLE_USER
from conversations.v1.conversation_pb2 import AttributeValues, Conversation, Fork
from conversations.v1.item_body_pb2 import Message
from conversations.v1.item_pb2 import Item
from conversations.v1.transfer_service_pb2 import ImportConversationsRequest, Record
from google.protobuf.timestamp_pb2 import Timestamp

from server.app.erasure_runner import parse_filter
from server.services import import_blocks
from server.store import erasing
from server.store.erased_imports import matches
from server.store.erasing import erase_subject
from server.store.erasures import Subject
from tests.support.access import GuardedService, caller
from tests.support.erasure import ERASURE_RULES, until
from tests.support.transfers import ended, words

MOVER = caller("mover")
RULES = [{"permit": {"actions": "import", "resource": "tenant::*", "principal": "mover"}}, *ERASURE_RULES]
TIME = Timestamp(seconds=1_700_000_000)
LEFT = """
    SELECT (SELECT count(*) FROM imports) + (SELECT count(*) FROM conversations) + (SELECT count(*) FROM items)"""


@pytest.fixture
async def world(guarded: GuardedService, monkeypatch: pytest.MonkeyPatch) -> GuardedService:
    """A service in which one may import, and each item is a block."""
    monkeypatch.setattr(erasing, "_WATCH_SECONDS", 0.0)
    monkeypatch.setattr(import_blocks, "BLOCK_ITEMS", 1)
    await guarded.connection.execute("TRUNCATE conversations, items, requests, conversation_attributes, imports")
    guarded.obey(RULES)
    return guarded


def records_of(owner: str, *authors: str, **head: Any) -> list[Record]:
    """A conversation with an item of each author."""
    items = [
        Item(id=f"msg_{number}", sequence=number, create_time=TIME, created_by=author, message=Message(role=ROLE_USER))
        for number, author in enumerate(authors, 1)
    ]
    fields: dict[str, Any] = {"id": f"conv_{token_hex(8)}", "create_time": TIME, "update_time": TIME, **head}
    return ended(Record(conversation=Conversation(owner=owner, last_sequence=len(items), **fields)), items)


async def imported(world: GuardedService, records: list[Record]) -> list[str]:
    """What becomes of a conversation, in words."""
    call = world.by(MOVER).ImportConversations(ImportConversationsRequest(record=record) for record in records)
    return words([response async for response in call])


async def erased(world: GuardedService, principal: str = "", **fields: Any) -> Any:
    """The receipt of an erasure."""
    subject = Subject.of_principal(principal) if principal else Subject("", **fields)
    return await erase_subject(world.url, "acme", subject, parse_filter, 5.0)


async def authors(world: GuardedService) -> list[str]:
    """Of all items, as they are stored."""
    rows = await world.connection.fetch("SELECT author FROM items ORDER BY conversation_id, sequence")
    return [row["author"] for row in rows]


async def test_the_authors_of_what_was_imported(world: GuardedService) -> None:
    """Items of the owner have no author, as those that were appended; those of others have theirs, and are erased."""
    records = records_of("ann", "ann", "bob", "")
    assert ["stored 0", "created"] == await imported(world, records)
    assert ["", "bob", ""] == await authors(world)
    receipt = await erased(world, "bob")
    assert (0, 0, 1) == (receipt["conversation_count"], receipt["item_count"], receipt["foreign_item_count"])
    assert ["", ""] == await authors(world)
    receipt = await erased(world, "ann")
    assert (1, 2, 0) == (receipt["conversation_count"], receipt["item_count"], receipt["foreign_item_count"])
    assert 0 == await world.value(LEFT)


@pytest.mark.parametrize("records", [records_of("ann", "bob", "bob", "bob"), records_of("bob", "bob", "ann", "bob")])
async def test_an_import_that_broke(world: GuardedService, records: list[Record]) -> None:
    """Nothing of it is left, whether the subject is its owner or wrote an item; it is not counted."""
    await imported(world, records[:-1])  # without its end
    assert 0 < await world.value("SELECT count(*) FROM items WHERE author <> ''")
    receipt = await erased(world, "ann")
    assert (0, 0, 0) == (receipt["conversation_count"], receipt["item_count"], receipt["foreign_item_count"])
    assert 0 == await world.value(LEFT)


async def test_a_running_import(world: GuardedService) -> None:
    """Its stream cannot end the conversation that was erased meanwhile, and goes on with the next one."""
    mine, other = records_of("ann", "ann", "ann", "ann"), records_of("bob", "bob")

    async def requests() -> Any:
        for record in mine[:3]:
            yield ImportConversationsRequest(record=record)
        await until(lambda: world.value("SELECT count(*) FROM items"))
        await erased(world, "ann")
        assert 0 == await world.value(LEFT)
        for record in [*mine[3:], *other]:
            yield ImportConversationsRequest(record=record)

    answers = words([each async for each in world.by(MOVER).ImportConversations(requests())])
    assert ["stored 0", "ABORTED", "stored 0", "created"] == answers
    assert ["bob"] == [row["owner"] for row in await world.connection.fetch("SELECT owner FROM conversations")]


async def test_what_was_abandoned_and_then_interrupted(world: GuardedService) -> None:
    """An import without a head, of which nobody can tell whose it was, goes with the next erasure."""
    await imported(world, records_of("bob", "bob", "bob")[:-1])
    await world.connection.execute("UPDATE imports SET head = ''")
    await erased(world, "ann")
    assert 0 == await world.value(LEFT)


async def test_imports_of_others_stay(world: GuardedService) -> None:
    """Those that hold nothing of the subject, and those of other tenants, go on where they were."""
    records = records_of("bob", "bob", "bob")
    await imported(world, records[:-1])
    await erased(world, "ann")
    assert ["stored 1", "created"] == await imported(world, records)
    await imported(world, records_of("ann", "ann", "ann")[:-1])
    await world.connection.execute("UPDATE imports SET tenant = 'umbrella'")
    await erased(world, "ann")
    assert 1 == await world.value("SELECT count(*) FROM imports")


async def test_a_filter(world: GuardedService) -> None:
    """It is compared with the head of an import as with a conversation."""
    for user in ("u1", "u2"):
        await imported(world, records_of("bob", "bob", "bob", metadata={"user": user})[:-1])
    chosen = 'metadata.user = "u1"'
    await erased(world, filter=chosen, comparisons=parse_filter(chosen))
    heads = [row["head"] for row in await world.connection.fetch("SELECT head FROM imports")]
    assert ["u2"] == [Conversation.FromString(head).metadata["user"] for head in heads]


FILTERS = [
    *('owner = "ann"', 'owner != "ann"', 'owner = "bob"', 'owner = ""'),
    *('metadata.a = "1"', 'metadata.a = "2"', 'metadata.a != "1"', 'metadata.b != "1"', 'metadata.b = ""'),
    *('attributes.teams = "red"', 'attributes.teams != "red"', 'attributes.teams = "no"', 'attributes.roles != "red"'),
    *('forked_from = "conv_a"', 'forked_from = "conv_b"'),
    *('create_time > "2023-11-14T22:13:20Z"', 'create_time >= "2023-11-14T22:13:20Z"'),
    *('create_time < "2023-11-14T22:13:20Z"', 'create_time <= "2023-11-14T22:13:20Z"'),
    *('owner = "ann" AND metadata.a = "1"', 'owner = "ann" AND metadata.a = "2"'),
]


@pytest.mark.parametrize("chosen", FILTERS)
async def test_a_head_is_compared_as_a_row_is(world: GuardedService, chosen: str) -> None:
    """The same filter matches both or neither."""
    teams = {"teams": AttributeValues(values=["red", "green"])}
    fork = Fork(conversation_id="conv_a", sequence=0)
    records = records_of("ann", metadata={"a": "1"}, attributes=teams, forked_from=fork)
    assert ["stored 0", "created"] == await imported(world, records)
    comparisons = parse_filter(chosen)
    receipt = await erased(world, filter=chosen, comparisons=comparisons)
    assert (receipt["conversation_count"] == 1) == matches(records[0].conversation, comparisons)
