"""`import-ogx`: the conversations of a Llama Stack or OGX, of either schema, from SQLite and PostgreSQL."""

import asyncio
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from conversations.v1.conversations_service_pb2 import ORDER_ASCENDING

from bench import ogx as bench_ogx
from bench.target import PeerUnavailable
from server.cli.ogx import read_owners
from server.cli.ogx_database import OgxItem, open_ogx
from server.errors import OperatorError
from server.items import to_json
from tests.support.build import get, plain
from tests.support.commands import error_line_of, output_of, run_command
from tests.support.postgres import EMPTY_TEMPLATE, fresh_database
from tests.support.samples import SAMPLES, as_stored, strictly
from tests.support.service import Service, list_all_items

ROOT = Path(__file__).parents[2]
OLD = """
    CREATE TABLE openai_conversations (id TEXT PRIMARY KEY, created_at INTEGER, items JSON, metadata JSON,
        owner_principal TEXT, access_attributes JSON);
    CREATE TABLE conversation_items (id TEXT PRIMARY KEY, conversation_id TEXT, created_at INTEGER, item_data JSON,
        owner_principal TEXT, access_attributes JSON);
"""
NEW = """
    ALTER TABLE conversation_items RENAME TO conversation_items_v1;
    CREATE TABLE conversation_items (conversation_id TEXT, id TEXT, created_at INTEGER, sort_order INTEGER,
        item_data JSON, tenant_id TEXT, owner_principal TEXT, access_attributes JSON,
        PRIMARY KEY (conversation_id, id));
"""
COPIED = """
    CREATE TABLE conversation_migrations (name TEXT PRIMARY KEY, completed_at INTEGER);
    INSERT INTO conversation_migrations VALUES ('conversation_items_backfill:v2', 5);
"""


def data(item_id: str, **fields: Any) -> str:
    """A message as OGX stores it."""
    text = {"type": "input_text", "text": item_id}
    return json.dumps({"id": item_id, "type": "message", "role": "user", "status": None, "content": [text], **fields})


def written(file: Path, *scripts: str, rows: Sequence[tuple[Any, ...]] = ()) -> str:
    """The URL of a database with these tables and rows, each of a table and its values."""
    connection = sqlite3.connect(file)
    for script in scripts:
        connection.executescript(script)
    for table, *values in rows:
        connection.execute(f"INSERT INTO {table} VALUES ({','.join('?' * len(values))})", values)
    connection.commit()
    connection.close()
    return f"sqlite:///{file}"


def conversation(name: str, owner: str | None = "ann", attributes: Any = None, metadata: Any = None) -> tuple[Any, ...]:
    """A row of a conversation."""
    row = (f"conv_{name}", 1_700_000_000, None, json.dumps(metadata), owner, json.dumps(attributes))
    return ("openai_conversations", *row)


def old_item(name: str, number: int, created_at: int, table: str = "conversation_items") -> tuple[Any, ...]:
    """A row of an item of the older schema."""
    item_id = f"msg_{name}_{number}"
    return (table, item_id, f"conv_{name}", created_at, data(item_id), "ann", None)


def new_item(name: str, number: int, position: int | None) -> tuple[Any, ...]:
    """A row of an item of the newer schema."""
    item_id = f"msg_{name}_{number}"
    return ("conversation_items", f"conv_{name}", item_id, 1_700_000_009, position, data(item_id), None, "bob", None)


async def ids(service: Service, name: str) -> list[str]:
    """The ids of the items of a conversation."""
    return [item.id.rpartition("_")[2] for item in await list_all_items(service.stub, f"conv_{name}", ORDER_ASCENDING)]


async def test_the_older_schema(service: Service, tmp_path: Path) -> None:
    """Owner, attributes, metadata and items by time, then as the table has them; ties and orphans are counted."""
    rows = [
        conversation("olda", attributes={"teams": ["red", "blue"], "roles": []}, metadata={"a": "b", "c": None}),
        conversation("oldb", owner=None),
        conversation("oldc", owner="carl", metadata={str(number): "x" for number in range(17)}),
        *(old_item("olda", number, time) for number, time in ((4, 20), (1, 10), (3, 15), (2, 10))),
        old_item("gone", 1, 5),
    ]
    url = written(tmp_path / "old.db", OLD, rows=rows)
    (tmp_path / "owners.txt").write_text("# who is who\nann=alice\n\n")
    arguments = ("import-ogx", url, "--map-owner", str(tmp_path / "owners.txt"), "--target", service.address)
    code, out, err = await run_command(*arguments)
    assert code == 1
    assert ["3", "2", "0", "1", "4", "1, in 1 conversations", "1"] == [line[21:] for line in out.splitlines()]
    assert err.startswith("conv_oldc: Invalid request: record.conversation.metadata: map must be at most 16 entries")
    made = await service.stub.GetConversation(get("conv_olda"))
    assert ("alice", {"teams": {"red", "blue"}}, {"a": "b"}) == (made.owner, plain(made), dict(made.metadata))
    assert 1_700_000_000 == made.create_time.seconds
    assert ["1", "2", "3", "4"] == await ids(service, "olda")
    assert "" == (await service.stub.GetConversation(get("conv_oldb"))).owner
    assert "there already      2" in (await run_command(*arguments))[1]


async def test_the_newer_schema(service: Service, tmp_path: Path) -> None:
    """Positions, behind the rows that have none; what the older table has is read only if it was not copied."""
    rows = [
        conversation("newa"),
        *(new_item("newa", number, place) for number, place in ((3, 1), (2, 0), (4, 1), (1, None))),
        old_item("newa", 0, 3, "conversation_items_v1"),
    ]
    await output_of("import-ogx", written(tmp_path / "a.db", OLD, NEW, COPIED, rows=rows), "--target", service.address)
    assert ["1", "2", "3", "4"] == await ids(service, "newa")
    rows = [conversation("newb"), new_item("newb", 1, 0), old_item("newb", 0, 3, "conversation_items_v1")]
    await output_of("import-ogx", written(tmp_path / "b.db", OLD, NEW, rows=rows), "--target", service.address)
    assert ["0", "1"] == await ids(service, "newb")


async def test_what_cannot_be_read(service: Service, tmp_path: Path) -> None:
    """A database that is none, none of OGX, or of several tenants, is told in a sentence; a bad item with its id."""
    (tmp_path / "text").write_text("no database, and long enough to be taken for none" * 9)
    tenants = OLD + "ALTER TABLE openai_conversations ADD COLUMN tenant_id TEXT;"
    rows = [(*conversation("t1"), "one"), (*conversation("t2"), "two")]
    for url, expected in (
        (f"sqlite:///{tmp_path}/missing", "the database cannot be opened"),
        (f"sqlite:///{tmp_path}/text", "the database cannot be read"),
        ("mysql://x", "name the database as"),
        (written(tmp_path / "other", "CREATE TABLE a (b)"), "has no table openai_conversations"),
    ):
        with pytest.raises(OperatorError, match=expected), open_ogx(url):
            pass
    url = written(tmp_path / "many.db", tenants, rows=rows)
    assert "--tenant: needed" in await error_line_of("import-ogx", url, "--target", service.address)
    told = await output_of("import-ogx", url, "--tenant", "two", "--target", service.address)
    assert "conversations read   1\n" in told
    rows = [conversation("bad"), ("conversation_items", "msg_1", "conv_bad", 5, "[]", "", None)]
    code, _, err = await run_command(
        "import-ogx", written(tmp_path / "bad.db", OLD, rows=rows), "--target", service.address
    )
    assert (1, True) == (code, err.startswith("conv_bad: item msg_1: "))


@pytest.mark.parametrize("text", ["ann", "=bob", "ann=", "ann=a\nann=b"])
def test_a_map_of_owners_that_is_wrong(tmp_path: Path, text: str) -> None:
    """Its line is told."""
    (tmp_path / "owners").write_text(text)
    with pytest.raises(OperatorError, match="--map-owner: line"):
        read_owners(tmp_path / "owners")


# -- databases that OGX's own code has written

_WRITER = """
import asyncio, json, sys, types
from types import SimpleNamespace as Some
config, samples = json.loads(sys.argv[1]), json.load(open(sys.argv[2]))
if config.pop("old"):
    # Its client library, which is not needed here, depends on packages that are not installed.
    library = types.ModuleType("llama_stack.core.library_client")
    library.AsyncLlamaStackAsLibraryClient = library.LlamaStackAsLibraryClient = None
    sys.modules[library.__name__] = library
    from llama_stack.apis.conversations.conversations import ConversationItem
    from llama_stack.core.conversations.conversations import ConversationServiceImpl
    from llama_stack.core.datatypes import User
    from llama_stack.core.request_headers import RequestProviderDataContext
    from llama_stack.core.storage import datatypes
    from llama_stack.providers.utils.sqlstore.sqlstore import register_sqlstore_backends
    old = True
else:
    from ogx_api.conversations import ConversationItem, CreateConversationRequest, AddItemsRequest, ListItemsRequest
    from ogx.core.conversations.conversations import ConversationServiceImpl
    from ogx.core.datatypes import User
    from ogx.core.request_headers import RequestProviderDataContext
    from ogx.core.storage import datatypes
    from ogx.core.storage.sqlstore.sqlstore import register_sqlstore_backends
    old = False
from pydantic import TypeAdapter
kind = datatypes.SqliteSqlStoreConfig if "db_path" in config else datatypes.PostgresSqlStoreConfig
if old and "db_path" not in config:  # it does not know the folder of a Unix socket
    url = "postgresql+asyncpg://{user}@/{db}?host={host}&port={port}".format(**config)
    kind.engine_str = property(lambda _: url)
register_sqlstore_backends({"sql": kind(**config)})
reference = datatypes.SqlStoreReference(table_name="openai_conversations", backend="sql")
storage = Some(stores=Some(conversations=reference))
adapter, items = TypeAdapter(ConversationItem), []
for sample in samples:
    try:
        items.append(adapter.validate_python({**sample, "id": None}))
    except ValueError:
        pass
if old:
    items = [item for item in items if item.type == "message"]
async def main():
    run = Some(storage=storage)
    service = ConversationServiceImpl(Some(config=run, run_config=run, policy=[]), {})
    await service.initialize()
    found = {}
    async def add(name, part):
        if old:
            await service.add_items(name, part)
        else:
            await service.add_items(name, AddItemsRequest(items=part))
    async def create(metadata):
        if old:
            return await service.create_conversation(items=items[:2], metadata=metadata)
        return await service.create_conversation(CreateConversationRequest(items=items[:2], metadata=metadata))
    async def listed(name):
        if old:
            return await service.list(name, limit=100, order="asc")
        return await service.list_items(ListItemsRequest(conversation_id=name, order="asc", limit=100))
    for number, user in enumerate((User("ann", {"teams": ["red"]}), User("bob", None), None)):
        with RequestProviderDataContext({}, user):
            made = await create({"number": str(number)})
            for start in range(2, len(items), 20):
                await add(made.id, items[start:start + 20])
            await asyncio.gather(*(add(made.id, [items[0]]) for _ in range(4)))
            data = (await listed(made.id)).data
            found[made.id] = {"owner": user.principal if user else "", "items": [each.model_dump() for each in data]}
    print("\\n" + json.dumps(found))
asyncio.run(main())
"""
_LLAMA_STACK = "llama-stack==0.3.5"  # the last but one version of the older schema


@pytest.fixture(scope="module")
async def ogx_python() -> Path:
    """The Python of an environment with OGX, and with a Llama Stack of the older schema beside it."""
    if not os.environ.get("OGX_PYTHON"):
        pytest.skip("ogx: OGX_PYTHON names no Python 3.12")
    try:
        python = await bench_ogx._installed() / "bin" / "python"
    except PeerUnavailable as error:
        pytest.skip(f"ogx: {error}")
    if not older().exists():
        step = (python, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
        await bench_ogx._step(*step, "--only-binary=:all:", "--target", older(), _LLAMA_STACK)
    return python


def older() -> Path:
    """Where the older Llama Stack is installed."""
    return ROOT / "build" / "llama-stack"


@pytest.fixture(params=["sqlite", "postgresql"])
async def empty(request: pytest.FixtureRequest, postgres: str, tmp_path: Path) -> AsyncIterator[tuple[str, Any]]:
    """The URL of an empty database, and its place in the words of OGX."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/ogx.db", {"db_path": f"{tmp_path}/ogx.db"}
        return
    async with fresh_database(postgres, EMPTY_TEMPLATE) as url:
        yield url, await bench_ogx._place(url)


async def write(python: Path, place: Any, folder: Path, *, old: bool) -> dict[str, Any]:
    """Lets OGX's own code write conversations; returns what its own lists show."""
    samples = folder / "samples.json"
    samples.write_text(json.dumps([as_stored(sample) for sample in SAMPLES.values()]))
    environment = {"PATH": os.defpath, "HOME": str(folder), "PYTHONPATH": str(older()) if old else ""}
    process = await asyncio.create_subprocess_exec(
        python, "-c", _WRITER, json.dumps({**place, "old": old}), samples,
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()[-3000:]
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("old", [True, False], ids=["older", "newer"])
async def test_a_store_that_ogx_wrote(
    service: Service, ogx_python: Path, empty: tuple[str, Any], tmp_path: Path, *, old: bool
) -> None:
    """All of it is there, item by item as its own list shows it; positions that it gave twice are reported."""
    url, place = empty
    theirs = await write(ogx_python, place, tmp_path, old=old)
    if old and url.startswith("postgresql"):
        connection = await asyncpg.connect(url)
        assert ["id"] == [row[0] for row in await connection.fetch(_KEY)]
        await connection.close()
    told = await output_of("import-ogx", url, "--target", service.address)
    lines = {line[:21].strip(): line[21:] for line in told.splitlines()}
    assert (str(len(theirs)), "0") == (lines["imported"], lines["refused"])
    assert int(lines["of the same place"].partition(",")[0]) > 0
    for name, conversation in theirs.items():
        made = await service.stub.GetConversation(get(name))
        assert conversation["owner"] == made.owner
        ours = {item.id: item for item in await list_all_items(service.stub, name, ORDER_ASCENDING)}
        assert sorted(ours) == sorted(item["id"] for item in conversation["items"])
        for item in conversation["items"]:
            assert strictly(as_stored(item)) == strictly(to_json(ours[item["id"]]))
        stored = await asyncio.to_thread(stored_items, url, name)
        for _, tied in groupby(stored, key=lambda item: item.key):
            places = [ours[item.id].sequence for item in tied]
            assert places == list(range(places[0], places[0] + len(places)))


def stored_items(url: str, name: str) -> list[OgxItem]:
    """The items of a conversation of theirs."""
    with open_ogx(url) as database:
        return database.items(name)


_KEY = """
    SELECT attname FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY (indkey)
    WHERE indrelid = 'conversation_items'::regclass AND indisprimary"""
