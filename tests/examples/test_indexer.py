"""The example indexer: its table is in step with the database, through kills and after its token has expired."""

import asyncio
import json
import random
import signal
import sqlite3
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import asyncpg
import grpc.aio
import pytest
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from conversations.v1.item_pb2 import Item

from server.store.change_log import turn_off, turn_on
from server.store.change_owner import Owner, change_owner
from tests.support.build import append, create, delete, delete_item, update, user_message
from tests.support.commands import ROOT
from tests.support.postgres import fresh_database
from tests.support.programs import BUILD, RestartableServer, build_problem, ending, restartable_server

INDEXER = ROOT / "examples" / "indexer"
PROGRAM = BUILD / "indexer"
SERVICE_CONFIG = ROOT / "deploy" / "service_config.json"
POLICY = "- {permit: {actions: [create, read, update, delete]}, when: user is owner}\n"
WRITERS = 6
ROUNDS = 8
LARGE = "long " * 60_000  # more than a watch tells in a message
STEP_SECONDS = 120.0  # in which it must have caught up, however busy the machine
KEEP = timedelta(hours=1)
MINE, NOT_MINE = Owner("", "local"), Owner("", "somebody else")


def test_the_loop_is_that_of_the_client() -> None:
    """The loop is meant to be copied: both programs are built of one file, so what is tried of the one is of both."""
    assert (ROOT / "tests" / "interop" / "go" / "follow.go").samefile(INDEXER / "follow.go")


@pytest.fixture(scope="session")
async def built() -> str:
    """What a tool said if the indexer could not be built."""
    return await build_problem((("go", "generate"), ("go", "build", "-o", str(PROGRAM))), INDEXER)


@dataclass
class Indexer:
    """The program; its index and what it writes to standard error are in ``folder``."""

    address: str
    folder: Path
    process: Process | None = None

    @property
    def index(self) -> Path:
        """The SQLite file."""
        return self.folder / "index.db"

    async def start(self) -> None:
        """Starts it."""
        arguments = ("--target", self.address, "--index", str(self.index), "--service-config", str(SERVICE_CONFIG))
        with (self.folder / "indexer.errors").open("a") as errors:
            self.process = await asyncio.create_subprocess_exec(str(PROGRAM), *arguments, stderr=errors)

    async def kill(self) -> None:
        """Ends it in the middle of whatever it does."""
        assert self.process
        assert self.process.returncode is None, (self.folder / "indexer.errors").read_text(encoding="utf-8")
        async with ending(self.process):
            pass

    def rows(self) -> tuple[set[Any], set[Any]]:
        """Conversations and items as they are in the index, which the program may not have made yet."""
        with closing(sqlite3.connect(self.index)) as connection, suppress(sqlite3.OperationalError):
            found = connection.execute("SELECT id, last_sequence, metadata FROM conversations").fetchall()
            conversations = {(key, last, _sorted(json.loads(text) or {})) for key, last, text in found}
            return conversations, set(connection.execute("SELECT conversation_id, sequence, id, type, text FROM items"))
        return set(), set()


async def stored_rows(url: str) -> tuple[set[Any], set[Any]]:
    """Conversations and items as they are in the database, as far as the indexer may read them."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            conversations = await connection.fetch(
                "SELECT id, last_sequence, metadata FROM conversations WHERE delete_time IS NULL AND owner = 'local'"
            )
            items = await connection.fetch(
                "SELECT conversation_id, sequence, item_id, body FROM items"
                " JOIN conversations ON conversations.id = conversation_id"
                " WHERE items.delete_time IS NULL AND conversations.delete_time IS NULL AND owner = 'local'"
            )
    finally:
        await connection.close()
    return (
        {(row["id"], row["last_sequence"], _sorted(json.loads(row["metadata"]))) for row in conversations},
        {(row["conversation_id"], row["sequence"], row["item_id"], *_read(row["body"])) for row in items},
    )


def _sorted(metadata: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(metadata.items()))


def _read(body: bytes) -> tuple[str | None, str]:
    item = Item.FromString(body)
    return item.WhichOneof("body"), "\n".join(part.input_text.text for part in item.message.content)


@dataclass
class Writer:
    """A client that writes whatever it can."""

    stub: Any
    conversations: list[str] = field(default_factory=list)

    async def write(self, count: int) -> None:
        """Makes so many writes."""
        for _ in range(count):
            write = random.choice((self._append, self._append, self._update, self._delete, self._create))
            with suppress(grpc.aio.AioRpcError):  # what is stored is compared, whatever was answered
                await (write if self.conversations else self._create)()

    async def _create(self) -> None:
        items = [user_message(f"first {number}") for number in range(random.randrange(4))]
        made = await self.stub.CreateConversation(create(*items, request_id=str(uuid4()), metadata={"topic": "new"}))
        self.conversations.append(made.id)

    async def _append(self) -> None:
        conversation_id = self._any()
        text = LARGE if random.random() < 0.02 else "next"
        items = [user_message(text) for _ in range(random.randint(1, 3))]
        made = await self.stub.CreateItems(append(conversation_id, *items, request_id=str(uuid4())))
        if random.random() < 0.3:
            await self.stub.DeleteItem(delete_item(conversation_id, random.choice(made.items).id))

    async def _update(self) -> None:
        await self.stub.UpdateConversation(update(self._any(), metadata={"topic": str(random.random())}))

    async def _delete(self) -> None:
        if len(self.conversations) > 10:
            await self.stub.DeleteConversation(delete(self.conversations.pop(0)))

    def _any(self) -> str:
        return random.choice(self.conversations)


@asynccontextmanager
async def writing(writers: list[Writer]) -> AsyncIterator[None]:
    """All of them write meanwhile."""
    tasks = [asyncio.create_task(writer.write(1_000_000)) for writer in writers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def check_in_step(indexer: Indexer, url: str) -> None:
    """The index has what the database has, as soon as it has been told."""
    stored = await stored_rows(url)
    ends_at = time.monotonic() + STEP_SECONDS
    while indexer.rows() != stored and time.monotonic() < ends_at:  # noqa: ASYNC110 - another process writes them
        await asyncio.sleep(0.2)
    assert stored == indexer.rows()


@pytest.mark.slow
@pytest.mark.tool("go")
async def test_the_table_is_in_step(built: str, postgres: str, template: str) -> None:
    """Nothing is missing, doubled or left over after kills, an expired token, and a change of access."""
    assert not built, built
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))  # a short path: a socket has 100 characters at most
        url = await stack.enter_async_context(fresh_database(postgres, template))
        await turn_on(url, KEEP)
        (folder / "policy.yaml").write_text(POLICY, encoding="utf-8")
        served = await stack.enter_async_context(
            restartable_server(url, folder, policy_file=str(folder / "policy.yaml"))
        )
        options = [("grpc.service_config", SERVICE_CONFIG.read_text(encoding="utf-8"))]
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(served.tcp, options=options))
        writers = [Writer(ConversationsServiceStub(channel)) for _ in range(WRITERS)]
        await asyncio.gather(*(writer.write(20) for writer in writers))
        indexer = Indexer(served.tcp, folder)
        await indexer.start()
        stack.push_async_callback(indexer.kill)

        async with writing(writers):
            await kill_both(indexer, served)
        await check_in_step(indexer, url)

        await indexer.kill()
        await turn_off(url)
        await asyncio.gather(*(writer.write(20) for writer in writers))  # what nobody will tell it
        await turn_on(url, KEEP)
        await indexer.start()
        await check_in_step(indexer, url)

        await change_owner(url, MINE, NOT_MINE)
        await check_in_step(indexer, url)
        assert (set(), set()) == indexer.rows()
        await change_owner(url, NOT_MINE, MINE)  # readable again, with items that are not told again
        await check_in_step(indexer, url)
        assert all(indexer.rows())


async def kill_both(indexer: Indexer, served: RestartableServer) -> None:
    """Kills the indexer again and again, and often the server too."""
    for number in range(ROUNDS):
        await asyncio.sleep(random.uniform(0.2, 2.0))
        await indexer.kill()
        if number % 2:
            await served.stop(random.choice((signal.SIGTERM, signal.SIGKILL)))
            await indexer.start()
            await served.start()
        else:
            await indexer.start()
