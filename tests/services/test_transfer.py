"""ExportConversations and ImportConversations: whole conversations out of one service and into another."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from secrets import token_hex
from typing import Any

import asyncpg
import grpc.aio
import pytest
from conversations.v1.content_pb2 import Opaque
from conversations.v1.conversation_pb2 import Conversation, Fork
from conversations.v1.conversations_service_pb2 import ForkConversationRequest
from conversations.v1.item_pb2 import Item
from conversations.v1.transfer_service_pb2 import ExportConversationsRequest, Record
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from server.errors import StoreUnavailable
from server.items import new_item_from_json
from server.services import export_stream
from server.store import checksum
from server.store.connection.execution import Execute, Execution, Rows
from server.store.purge import purge
from tests.support.build import append, create, delete, delete_item, get, list_items, text_of, update, user_message
from tests.support.postgres import fresh_database
from tests.support.problems import problem_of
from tests.support.samples import SAMPLES
from tests.support.service import Service, before_statement, intercepted, running_service
from tests.support.transfers import Importing, ended, exported, imported, of_its_own, refused, untold, words


@pytest.fixture(scope="module")
async def other(postgres: str, template: str) -> AsyncIterator[Service]:
    """Another service, with a database of its own."""
    async with fresh_database(postgres, template) as url, running_service(url) as served:
        yield served


async def made(service: Service, *texts: str, **conversation: Any) -> str:
    """The id of a conversation with items of these texts."""
    found = await service.stub.CreateConversation(create(**conversation))
    for start in range(0, len(texts), 20):
        await service.stub.CreateItems(append(found.id, *map(user_message, texts[start : start + 20])))
    return str(found.id)


NOW = Timestamp(seconds=1_700_000_000, nanos=123_456_000)


def head(conversation_id: str = "", **fields: Any) -> Record:
    """The head of a conversation that no service has made."""
    sent: dict[str, Any] = {"create_time": NOW, "update_time": NOW, "owner": "ann", **fields}
    return Record(conversation=Conversation(id=conversation_id or f"conv_{token_hex(8)}", **sent))


def message(sequence: int, text: str = "hi", **fields: Any) -> Item:
    """An item as an export has it."""
    item = user_message(text, id=f"msg_{sequence}").item
    item.MergeFrom(Item(sequence=sequence, create_time=NOW, created_by="ann"))
    item.MergeFrom(Item(**fields))
    return item


async def test_all_samples_stay_as_they_are(service: Service, other: Service) -> None:
    """Exported, imported and exported again: the same to the byte, with items of every type, and gaps."""
    name = await made(service, metadata={"a": "ä", "b": ""})
    items = [new_item_from_json(of_its_own(sample, number)) for number, sample in enumerate(SAMPLES.values())]
    for start in range(0, len(items), 20):
        await service.stub.CreateItems(append(name, *items[start : start + 20]))
    await service.stub.UpdateConversation(update(name, "metadata", metadata={"c": "d"}))
    page = await service.stub.ListItems(list_items(name, page_size=100))
    for item in (*page.items[3::9], page.items[0]):
        await service.stub.DeleteItem(delete_item(name, item.id))
    before = await exported(service.channel, name)
    assert ["stored 0", "created"] == words(await imported(other.channel, before))
    assert untold(before) == untold(await exported(other.channel, name))
    assert await service.stub.GetConversation(get(name)) == await other.stub.GetConversation(get(name))
    assert [f"stored {len(SAMPLES)}", "present"] == words(await imported(other.channel, before))


async def test_what_no_rule_of_ours_knows_stays(service: Service, other: Service) -> None:
    """An item whose id has another prefix than its type, and one of an unknown type, in a conversation of nobody."""
    odd = [
        message(2, id="odd"),
        Item(id="x", sequence=7, create_time=NOW, unknown=Opaque(type="new_call", json=b'{"type":"new_call"}')),
    ]
    sent = ended(head(owner="", last_sequence=9, etag='"7"'), odd)
    assert ["stored 0", "created"] == words(await imported(service.channel, sent))
    name = sent[0].conversation.id
    found = await exported(service.channel, name)
    assert untold(sent) == untold(found)
    assert ["stored 0", "created"] == words(await imported(other.channel, found))
    appended = await service.stub.CreateItems(append(name, user_message("next")))
    assert [10] == [item.sequence for item in appended.items]
    await service.stub.UpdateConversation(update(name, "metadata", metadata={"a": "b"}, etag='"7"'))


async def test_expiry_and_lineage_stay(service: Service, other: Service) -> None:
    """A fork that ends by itself, and that appends keep alive, is one there too; it ends at the same time."""
    source = await made(service, "a", "b")
    ends = Conversation()
    ends.ttl.FromSeconds(3600)
    ends.idle_ttl.FromSeconds(600)
    fork = await service.stub.ForkConversation(
        ForkConversationRequest(conversation_id=source, through_sequence=1, conversation=ends)
    )
    records = await exported(service.channel, fork.id)
    assert records[0].conversation.forked_from.conversation_id == source
    assert ["stored 0", "created"] == words(await imported(other.channel, records))
    assert untold(records) == untold(await exported(other.channel, fork.id))
    connection = await asyncpg.connect(other.url)
    joined = "expirations JOIN conversations ON id = conversation_id"
    scheduled = f"SELECT check_time = expire_time FROM {joined} WHERE id = $1"
    assert await connection.fetchval(scheduled, fork.id)
    await connection.close()


async def test_all_conversations_oldest_first(own_service: Service) -> None:
    """Those that the filter leaves, each with head, items and end; nothing of what was deleted."""
    names = [await made(own_service, *["a"] * count, metadata={"n": str(count % 2)}) for count in (0, 1, 3, 130)]
    gone = await made(own_service, "b")
    await own_service.stub.DeleteConversation(delete(gone))
    records = await exported(own_service.channel)
    assert names == [record.conversation.id for record in records if record.HasField("conversation")]
    assert [0, 1, 3, 130] == [record.end.item_count for record in records if record.HasField("end")]
    assert ["conversation", "end", *["conversation", "items", "end"] * 3] == [
        record.WhichOneof("record") for record in records
    ]
    odd = await exported(own_service.channel, filter='metadata.n = "1"')
    assert names[1:3] == [record.conversation.id for record in odd if record.HasField("conversation")]
    chosen = await exported(own_service.channel, names[3], names[0])
    assert [names[3], names[0]] == [record.conversation.id for record in chosen if record.HasField("conversation")]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 3 items or 1,000 bytes, so that a conversation has several."""
    for module in ("server.store.exports", "server.services.import_blocks"):
        monkeypatch.setattr(f"{module}.BLOCK_ITEMS", 3)
        monkeypatch.setattr(f"{module}.BLOCK_BYTES", 1_000)
    monkeypatch.setattr("server.store.exports.SMALL_BYTES", 333)
    monkeypatch.setattr("server.services.export_blocks.SMALL_BYTES", 333)
    monkeypatch.setattr("server.store.exports.is_short", lambda _last: False)


TEXTS = ("a", "b" * 400, "c" * 400, "d" * 2_000, "e", "f", "g", "h", "i" * 700)


@pytest.mark.usefixtures("small_blocks")
async def test_blocks_end_where_they_are_full(service: Service, other: Service) -> None:
    """By items, by bytes, and behind an item that is larger than a block; an import finds the same ones."""
    name = await made(service, *TEXTS)
    records = await exported(service.channel, name)
    blocks = ["".join(text_of(item)[0] for item in record.items.items) for record in records[1:-1]]
    assert ["ab", "c", "d", "efg", "hi"] == blocks
    joined = [record for record in untold_records(records) if not record.HasField("items")]
    whole = Record.Items(items=[item for record in records for item in record.items.items])
    assert ["stored 0", "created"] == words(await imported(other.channel, [joined[0], Record(items=whole), joined[1]]))
    single = [Record(items=Record.Items(items=[item])) for item in whole.items]
    await other.stub.DeleteConversation(delete(name))
    assert ["ALREADY_EXISTS"] == words(await imported(other.channel, [joined[0], *single, joined[1]]))


def untold_records(records: Sequence[Record]) -> list[Record]:
    """The records without their tokens."""
    return [Record.FromString(each) for each in untold(records)]


@pytest.mark.usefixtures("small_blocks")
async def test_an_export_goes_on_behind_every_record(own_service: Service) -> None:
    """Cut at each record and resumed, by list and by name, it is the same to the byte."""
    names = [await made(own_service, *texts) for texts in ((), TEXTS, ("a",) * 7)]
    for chosen in ((), (names[1], names[0], names[2])):
        records = await exported(own_service.channel, *chosen)
        for number, record in enumerate(records, 1):
            rest = await exported(own_service.channel, *chosen, resume_token=record.resume_token)
            assert records[number:] == rest


async def test_a_token_of_another_request(service: Service) -> None:
    """It is refused, as is one that was never made, and what cannot be asked together."""
    name = await made(service, "a")
    token = (await exported(service.channel, name))[0].resume_token
    for ids, fields, reason in (
        ((), {"resume_token": token}, "RESUME_TOKEN_INVALID"),
        ((name,), {"resume_token": token[:-1]}, "RESUME_TOKEN_INVALID"),
        ((name,), {"resume_token": "ä"}, "RESUME_TOKEN_INVALID"),
        ((name, name), {}, "FIELD_INVALID"),
        ((name,), {"filter": 'owner = "a"'}, "FIELD_INVALID"),
        ((), {"filter": "owner"}, "FILTER_INVALID"),
        ((name, "conv_missing"), {}, "CONVERSATION_NOT_FOUND"),
        (("msg_a",), {}, "FIELD_INVALID"),
        ((f"conv_{number}" for number in range(101)), {}, "FIELD_INVALID"),
    ):
        with refused(reason):
            await exported(service.channel, *ids, **fields)


def export_of(*names: str, **fields: Any) -> ExportConversationsRequest:
    """A request for some conversations."""
    return ExportConversationsRequest(conversation_ids=names, **fields)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("gone", [1, 9])
async def test_a_conversation_that_loses_an_item_is_begun_again(service: Service, other: Service, gone: int) -> None:
    """What was sent of it before is replaced; what is appended meanwhile is not in it."""
    name = await made(service, *TEXTS)
    lost = next(item.id for item in await all_items(service, name) if item.sequence == gone)

    async def change() -> None:
        await service.stub.CreateItems(append(name, user_message("later")))
        await service.stub.DeleteItem(delete_item(name, lost))

    with intercepted(service.database, before_statement(4, change)):
        records = await exported(service.channel, name)
    begun = [number for number, record in enumerate(records) if record.HasField("conversation")]
    assert len(begun) == 2
    last = [item.sequence for record in records[begun[1] :] for item in record.items.items]
    assert [sequence for sequence in range(1, 11) if sequence != gone] == last
    assert ["stored 0", "stored 0", "created"] == words(await imported(other.channel, records))
    assert untold(records[begun[1] :]) == untold(await exported(other.channel, name))


@pytest.mark.usefixtures("small_blocks")
async def test_appends_and_updates_do_not_disturb_an_export(service: Service) -> None:
    """It is that of the moment in which its head was read."""
    name = await made(service, *TEXTS)
    before = await exported(service.channel, name)

    async def change() -> None:
        await service.stub.CreateItems(append(name, user_message("later")))
        await service.stub.UpdateConversation(update(name, "metadata", metadata={"a": "b"}))

    with intercepted(service.database, before_statement(3, change)):
        assert untold(before) == untold(await exported(service.channel, name))


@pytest.mark.usefixtures("small_blocks")
async def test_a_conversation_that_is_deleted_meanwhile(own_service: Service) -> None:
    """Its end does not come: NOT_FOUND if it was named, else the next one follows."""
    for ids, ends in (((0,), 0), ((), 1)):
        names = [await made(own_service, *TEXTS), await made(own_service, "a")]

        async def change(name: str = names[0]) -> None:
            await own_service.stub.DeleteConversation(delete(name))

        number = 3 if ids else 4  # a list before the head
        with intercepted(own_service.database, before_statement(number, change)):
            if ids:
                with refused("CONVERSATION_NOT_FOUND"):
                    await exported(own_service.channel, names[0])
                await own_service.stub.DeleteConversation(delete(names[1]))
                continue
            records = await exported(own_service.channel)
        assert ends == len([record for record in records if record.HasField("end")])
        assert names == [record.conversation.id for record in records if record.HasField("conversation")]


@pytest.mark.usefixtures("small_blocks")
async def test_a_conversation_that_never_stays(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ABORTED after some attempts, and not sent for ever."""
    monkeypatch.setattr(export_stream, "_ATTEMPTS", 2)
    name = await made(service, *TEXTS)
    items = await all_items(service, name)

    async def change() -> None:
        await service.stub.DeleteItem(delete_item(name, items.pop(0).id))

    with (
        intercepted(service.database, before_statement(3, change)),
        intercepted(service.database, before_statement(12, change)),
        refused("CONFLICT"),
    ):
        await exported(service.channel, name)


@pytest.mark.parametrize("runs", [6, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("small_blocks")
async def test_beside_writes(service: Service, runs: int) -> None:
    """Whatever is appended and deleted meanwhile, a conversation that ended is one of the states that it had."""
    rng = random.Random(runs)
    for _ in range(runs):
        name = await made(service, *TEXTS, *TEXTS)
        states = [[item.id for item in await all_items(service, name)]]
        writes = asyncio.create_task(write(service, name, rng, states))
        records = await exported(service.channel, name)
        await writes
        begun = max(number for number, record in enumerate(records) if record.HasField("conversation"))
        assert [item.id for record in records[begun:] for item in record.items.items] in states


async def write(service: Service, name: str, rng: random.Random, states: list[list[str]]) -> None:
    """Some writes to a conversation; adds each state before anybody can see the next one."""
    for _ in range(8):
        state = list(states[-1])
        if rng.random() < 0.5:
            item_id = f"msg_{token_hex(8)}"
            states.append([*state, item_id])
            await service.stub.CreateItems(append(name, user_message("new", id=item_id)))
        else:
            item_id = rng.choice(state)
            states.append([each for each in state if each != item_id])
            await service.stub.DeleteItem(delete_item(name, item_id))
        await asyncio.sleep(rng.choice((0, 0.002)))


async def all_items(service: Service, name: str) -> list[Item]:
    """The items of a short conversation, oldest first."""
    page = await service.stub.ListItems(list_items(name, page_size=100))
    return list(reversed(page.items))


@pytest.mark.usefixtures("small_blocks")
async def test_an_import_is_seen_whole_or_not_at_all(service: Service, other: Service) -> None:
    """No read, list, watch or write finds it before its end was answered; nor does the purge take it."""
    name = await made(service, *TEXTS, metadata={"import": "1"})
    records = await exported(service.channel, name)
    importing = Importing(other.channel)
    for record in records[:-1]:
        await importing.send(record)
    assert ["stored 0"] == [await importing.answer()]
    for call, request in (
        (other.stub.GetConversation, get(name)),
        (other.stub.ListItems, list_items(name)),
        (other.stub.DeleteConversation, delete(name)),
        (other.stub.CreateItems, append(name, user_message())),
    ):
        with refused("CONVERSATION_NOT_FOUND"):
            await call(request)
    assert [] == untold(await exported(other.channel, filter='metadata.import = "1"'))
    await purge(other.url, timedelta(0))
    await importing.send(records[-1])
    assert "created" == await importing.answer()
    assert untold(records) == untold(await exported(other.channel, name))
    await importing.close()


@pytest.mark.usefixtures("small_blocks")
async def test_an_import_goes_on_behind_every_record(service: Service, other: Service) -> None:
    """A broken one is taken up behind the last block that is there, whatever is sent again."""
    name = await made(service, *TEXTS)
    records = await exported(service.channel, name)
    stored = []
    for number in range(1, len(records)):
        answers = words(await imported(other.channel, records[:number]))
        stored.append(answers[0])
        assert answers[1:] == ["INVALID_ARGUMENT"]  # it has no end
    assert ["stored 0", "stored 0", "stored 0", "stored 2", "stored 3", "stored 4"] == stored
    rest = [record for record in records if not record.HasField("items") or record.items.items[-1].sequence > 7]
    assert ["stored 7", "created"] == words(await imported(other.channel, rest))
    assert untold(records) == untold(await exported(other.channel, name))


@pytest.mark.usefixtures("small_blocks")
async def test_killed_at_every_statement(service: Service, other: Service) -> None:
    """Whether a statement was lost before it ran or its answer afterwards, the same import again completes it."""
    for after in (False, True):
        for fatal in range(1, 10):
            name = await made(service, *TEXTS)
            records = await exported(service.channel, name)
            with intercepted(other.database, failing(fatal, after=after)):
                try:
                    await imported(other.channel, records)
                except grpc.aio.AioRpcError as error:
                    assert problem_of(error).code == "UNAVAILABLE"  # noqa: PT017 - it need not fail
            assert words(await imported(other.channel, records))[-1] in {"created", "present"}
            assert untold(records) == untold(await exported(other.channel, name))


def failing(fatal: int, *, after: bool) -> Callable[[Execute, Execution], Any]:
    """An interceptor that fails one statement, before or after it ran."""
    count = 0

    async def fail(execute: Execute, execution: Execution) -> Rows:
        nonlocal count
        count += 1
        rows = await execute(execution) if after or count != fatal else []
        if count == fatal:
            raise StoreUnavailable
        return rows

    return fail


@pytest.mark.usefixtures("small_blocks")
async def test_two_streams_import_one_conversation(service: Service, other: Service) -> None:
    """The later one takes it over; the earlier one is told, and stores nothing more."""
    name = await made(service, *TEXTS)
    records = await exported(service.channel, name)
    first = Importing(other.channel)
    for record in records[:4]:
        await first.send(record)
    assert "stored 0" == await first.answer()
    second = Importing(other.channel)
    await second.send(records[0])
    assert (await second.answer()).startswith("stored ")
    for record in records[4:]:
        await first.send(record)
    assert "ABORTED" == await first.answer()
    for record in records[1:]:
        await second.send(record)
    assert "created" == await second.answer()
    assert untold(records) == untold(await exported(other.channel, name))
    await first.close()
    await second.close()


async def test_an_id_that_is_taken(service: Service) -> None:
    """Living, changed or deleted: nothing is overwritten, and the stream goes on with the next conversation."""
    living, deleted = await made(service, "a"), await made(service, "a")
    records = [*await exported(service.channel, living), *await exported(service.channel, deleted)]
    await service.stub.CreateItems(append(living, user_message("b")))
    await service.stub.DeleteConversation(delete(deleted))
    fresh = ended(head())
    answers = await imported(service.channel, [*records, *fresh])
    assert ["stored 2", "ALREADY_EXISTS", "ALREADY_EXISTS", "stored 0", "created"] == words(answers)
    assert [living, living, deleted, *[fresh[0].conversation.id] * 2] == [each.conversation_id for each in answers]


BAD_HEADS: dict[str, Any] = {
    "no id": {"id": ""},
    "a wrong id": {"id": "msg_a"},
    "no time": {"create_time": Timestamp()},
    "nanoseconds": {"update_time": Timestamp(seconds=5, nanos=1)},
    "a time before all": {"create_time": Timestamp(seconds=-(2**40))},
    "a time after all": {"create_time": Timestamp(seconds=2**40)},
    "a long owner": {"owner": "x" * 257},
    "an owner that cannot be stored": {"owner": "a\0"},
    "a place below none": {"last_sequence": -1},
    "an end that has passed": {"expire_time": NOW},
    "a time to live": {"ttl": Duration(seconds=600)},
    "a source that is none": {"forked_from": Fork(conversation_id="x")},
    "metadata that cannot be stored": {"metadata": {"a": "\0"}},
    "17 pairs": {"metadata": {str(number): "" for number in range(17)}},
}
BAD_ITEMS: dict[str, list[Item]] = {
    "a place of none": [message(0)],
    "a place below none": [message(-1)],
    "a place twice": [message(1), message(1, id="msg_x")],
    "a lower place": [message(2), message(1)],
    "a place behind the last": [message(5)],
    "no id": [Item(sequence=1, create_time=NOW, message=message(1).message)],
    "a wrong id": [message(1, id="a b")],
    "an id twice": [message(1, id="msg_x"), message(2, id="msg_x")],
    "no body": [Item(id="msg_1", sequence=1, create_time=NOW)],
    "no time": [Item(id="msg_1", sequence=1, message=message(1).message)],
    "JSON that is none": [message(1, json=b"{")],
    "JSON that says something else": [message(1, json=b'{"type":"message","role":"user","content":"no"}')],
    "an unknown item without JSON": [Item(id="x", sequence=1, create_time=NOW, unknown=Opaque(type="y", json=b"x"))],
}


@pytest.mark.parametrize("fields", BAD_HEADS.values(), ids=BAD_HEADS)
async def test_a_head_that_is_wrong(service: Service, fields: dict[str, Any]) -> None:
    """It is refused with every rule that it breaks, and the conversations behind it are imported."""
    wrong = head("conv_wrong")
    wrong.conversation.MergeFrom(Conversation(**fields))
    for name, value in fields.items():
        if not value or value == Timestamp():
            wrong.conversation.ClearField(name)  # type: ignore[arg-type]
    answers = await imported(service.channel, [wrong, *ended(head())[1:], *ended(head())])
    assert ["INVALID_ARGUMENT", "stored 0", "created"] == words(answers)
    assert "record.conversation" in answers[0].error.message


@pytest.mark.parametrize("items", BAD_ITEMS.values(), ids=BAD_ITEMS)
async def test_items_that_are_wrong(service: Service, items: list[Item]) -> None:
    """Nothing of the conversation is seen, and the right ones can be imported afterwards."""
    name = f"conv_{token_hex(8)}"
    records = [head(name, last_sequence=4), Record(items=Record.Items(items=items))]
    answers = await imported(service.channel, [*records, *ended(records[0], items)[1:], *ended(head())])
    assert ["stored 0", "INVALID_ARGUMENT", "stored 0", "created"] == words(answers)
    right = ended(head(name, last_sequence=4), [message(4)])
    assert ["stored 0", "created"] == words(await imported(service.channel, right))


async def test_a_digest_or_count_of_something_else(service: Service) -> None:
    """What came is not what was exported: it is refused, and what was stored of it is of no use."""
    sent = ended(head(last_sequence=2), [message(1), message(2)])
    for change in (Record.End(item_count=1), Record.End(digest=bytes(32))):
        wrong = Record()
        wrong.CopyFrom(sent[-1])
        wrong.end.MergeFrom(change)
        answers = await imported(service.channel, [*sent[:-1], wrong])
        assert ["stored 0", "INVALID_ARGUMENT"] == words(answers)
    other_text = [sent[0], Record(items=Record.Items(items=[message(1), message(2, "other")])), sent[-1]]
    assert ["stored 0", "INVALID_ARGUMENT"] == words(await imported(service.channel, other_text))
    assert ["stored 0", "created"] == words(await imported(service.channel, sent))


async def test_records_without_a_conversation(service: Service) -> None:
    """They end the stream: it is not one of conversations."""
    for record in (Record(items=Record.Items(items=[message(1)])), ended(head())[-1], Record()):
        with refused("FIELD_INVALID"):
            await imported(service.channel, [record])


@pytest.mark.usefixtures("small_blocks")
async def test_what_is_left_of_an_import_is_removed_a_day_later(own_service: Service) -> None:
    """Its rows are gone, and with them the claim to the id; one that goes on is not touched."""
    records = ended(head(last_sequence=9), [message(number) for number in range(1, 10)])
    young = ended(head(last_sequence=9), [message(number) for number in range(1, 10)])
    await imported(own_service.channel, records[:-1])
    await imported(own_service.channel, young[:-1])
    connection = await asyncpg.connect(own_service.url)
    await connection.execute(
        "UPDATE imports SET touch_time = now() - interval '25 hours' WHERE conversation_id = $1",
        records[0].conversation.id,
    )
    await purge(own_service.url, timedelta(days=30))
    counts = [await connection.fetchval(f"SELECT count(*) FROM {table}") for table in ("imports", "conversations")]
    assert [1, 1] == counts
    assert {young[0].conversation.id} == {
        row[0] for row in await connection.fetch("SELECT DISTINCT conversation_id FROM items")
    }
    await connection.close()
    assert ["stored 0", "created"] == words(await imported(own_service.channel, records))
    assert "created" == words(await imported(own_service.channel, young))[-1]


async def test_many_exports_at_once(postgres: str, template: str) -> None:
    """Beyond the limits they are RESOURCE_EXHAUSTED; one ends when its time has passed, and leaves its place."""
    async with (
        fresh_database(postgres, template) as url,
        running_service(url, max_exports=1, watch_seconds=0.5) as served,
    ):
        name, release = await made(served, "a"), asyncio.Event()
        with intercepted(served.database, before_statement(1, release.wait)):
            running = asyncio.create_task(exported(served.channel, name))
            await asyncio.sleep(0.6)
            with refused("RATE_LIMITED"):
                await exported(served.channel, name)
            release.set()
            with refused("DEADLINE_EXCEEDED"):
                await running
        assert len(await exported(served.channel, name)) == 3


@pytest.mark.slow
async def test_fifty_thousand_items(service: Service, other: Service) -> None:
    """A long conversation, in blocks of their real size, is the same to the byte."""
    items = [message(number, "x" * (number % 700)) for number in range(1, 50_001)]
    sent = ended(head(last_sequence=50_000), items)
    assert ["stored 0", "created"] == words(await imported(service.channel, sent))
    found = await exported(service.channel, sent[0].conversation.id)
    assert 50_000 == found[-1].end.item_count
    assert ["stored 0", "created"] == words(await imported(other.channel, found))
    assert untold(found) == untold(await exported(other.channel, sent[0].conversation.id))


def test_the_digest_has_no_etag() -> None:
    """It is of what an import keeps: another etag, and fields that are not imported, make no other digest."""
    plain = head("conv_a").conversation
    other = Conversation(etag='"5"')
    other.MergeFrom(plain)
    assert checksum.kept_head(plain) == checksum.kept_head(other)
    other.owner = "bob"
    assert checksum.kept_head(plain) != checksum.kept_head(other)
