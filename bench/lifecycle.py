"""Measures what forks and rewinds cost PostgreSQL.

``python -m bench.lifecycle`` fills a private PostgreSQL with conversations of 10,000 items of 330 bytes, runs each
statement of the store on one connection, and prints the medians of the CPU time of that backend and of the time
until the answer. Then it appends beside forks, and prints the 99th percentile of both.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg
from conversations.v1.item_pb2 import Item
from sqlalchemy import func, select

from bench import cpu
from bench.percentiles import percentile
from server.authorization.access import Access, AccessCache
from server.policy.principal import Principal
from server.policy.rules import DEFAULT
from server.store.appends import Append
from server.store.batch import Batch
from server.store.connection.bounds import Bounds
from server.store.connection.database import Database
from server.store.connection.opening import open_database
from server.store.conversations import ConversationStore, new_id
from server.store.embedded import run_embedded
from server.store.expiry import NEVER
from server.store.forks import Fork, ForkStore
from server.store.ids import new_item_ids
from server.store.items import ItemStore
from server.store.migrate import migrate
from server.store.response_budget import ResponseBudget
from server.store.rewinds import Rewind, RewindStore
from server.store.sql.statement import compile_statement

ITEMS = 10_000
BODY_BYTES = 330
CALLER = Principal(tenant="", id="me", attributes={"teams": frozenset({"mine"})})
_FILL = """
    WITH made AS (
        INSERT INTO conversations
            (id, tenant, owner, attributes, metadata, last_sequence, version, revision, create_time, update_time)
        VALUES ($1, '', 'me', '{teams=mine}', '{}', $2, 1, 1, now(), now()) RETURNING id)
    INSERT INTO items (conversation_id, sequence, item_id, version, type, role, status, create_time, body)
    SELECT id, n, 'msg_' || md5(n::text), 1, 'message', 'user', 'completed', now(), $3
    FROM made, generate_series(1, $2::bigint) AS n"""


@dataclass
class Stores:
    """What is measured, on one database."""

    database: Database
    conversations: ConversationStore
    items: ItemStore
    forks: ForkStore
    rewinds: RewindStore
    access: Access

    @classmethod
    def on(cls, database: Database) -> "Stores":
        """The stores of a database."""
        conversations = ConversationStore(database, 2**24)
        items = ItemStore(database, conversations, 2**24, ResponseBudget(2**26))
        forks, rewinds = ForkStore(database, conversations), RewindStore(database, conversations)
        return cls(database, conversations, items, forks, rewinds, AccessCache(DEFAULT).of(CALLER))

    async def fork(self, source: str, through: int) -> str:
        """Forks a conversation; returns the id of the fork."""
        fork = Fork(self.access, source, new_id(CALLER, None), through, {}, (), (), NEVER, None, datetime.now(UTC))
        return str((await self.forks.fork(fork))["id"])

    async def rewind(self, conversation_id: str, sequence: int) -> None:
        """Rewinds a conversation."""
        await self.rewinds.rewind(Rewind(self.access, conversation_id, sequence, None, None))

    async def append(self, conversation_id: str, count: int) -> None:
        """Appends items."""
        ids = new_item_ids(["msg"] * count, conversation_id)
        columns = (["message"] * count, ["user"] * count, ["completed"] * count, [body()] * count)
        batch = Batch(ids, *columns, (None,) * count)
        await self.items.append(Append(self.access, conversation_id, batch, None, None, datetime.now(UTC)))


def body() -> bytes:
    """A stored item of `BODY_BYTES`."""
    return Item(id="msg_1", unknown=None, created_by="x" * BODY_BYTES).SerializeToString()[:BODY_BYTES]


# What no fork can do without: the same rows, without a condition.
_BARE_COPY = """
    INSERT INTO items (conversation_id, sequence, item_id, version, type, role, status, create_time, body)
    SELECT $2, sequence, item_id, 1, type, role, status, create_time, body FROM items WHERE conversation_id = $1"""


async def backend_of(database: Database) -> int:
    """The process of the only connection of a database."""
    pid = compile_statement(select(func.pg_backend_pid().label("pid")), "read")
    return int((await database.fetch(pid, {}))[0]["pid"])


async def cost(pid: int, work: Callable[[], Awaitable[Any]]) -> tuple[float, float]:
    """The CPU time of the backend and the time until the answer, in milliseconds."""
    before, began = cpu.seconds(pid), time.perf_counter()
    await work()
    return (cpu.seconds(pid) - before) * 1e3, (time.perf_counter() - began) * 1e3


async def measure(stores: Stores, bare: asyncpg.Connection, source: str, rounds: int) -> None:
    """Prints a row for each statement."""
    pid, bare_pid = await backend_of(stores.database), bare.get_server_pid()
    found: dict[str, list[tuple[float, float]]] = {}
    for number in range(rounds + 2):
        forked = await stores.fork(source, ITEMS)
        steps: dict[str, Callable[[], Awaitable[Any]]] = {
            "fork of 10,000 items": partial(stores.fork, source, ITEMS),
            "fork of 1,000 items": partial(stores.fork, source, 1_000),
            "fork of 20 items": partial(stores.fork, source, 20),
            "rewind of 1,000 items": partial(stores.rewind, forked, ITEMS - 1_000),
            "rewind of 2 items": partial(stores.rewind, forked, ITEMS - 1_002),
            "append of 20 items": partial(stores.append, forked, 20),
        }
        copied = await cost(bare_pid, partial(bare.execute, _BARE_COPY, source, new_id(CALLER, None)))
        found.setdefault("bare copy of 10,000 items", []).append(copied)
        for name, work in steps.items():
            row = await cost(pid, work)
            if number > 1:  # the first rounds plan the statements
                found.setdefault(name, []).append(row)
    for name, rows in found.items():
        used, waited = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{name:26} {used:8.2f} ms CPU {waited:8.2f} ms")


async def append_for(stores: Stores, target: str, seconds: float) -> list[float]:
    """Milliseconds of one append after the other."""
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        await stores.append(target, 1)
        found.append((time.perf_counter() - began) * 1e3)
    return found


async def beside(stores: Stores, forking: Stores, source: str, seconds: float) -> None:
    """Prints what appends take alone, and while large conversations are forked one after the other."""
    target = await stores.fork(source, 0)
    alone, busy, count = [], [], 0
    for _ in range(3):
        alone += await append_for(stores, target, seconds)
        ending = asyncio.Event()

        async def keep_forking(ending: asyncio.Event = ending) -> int:
            done = 0
            while not ending.is_set():
                await forking.fork(source, ITEMS)
                done += 1
            return done

        task = asyncio.create_task(keep_forking())
        busy += await append_for(stores, target, seconds)
        ending.set()
        count += await task
    for name, times in (("alone", alone), (f"beside {count} forks", busy)):
        print(f"append {name:20} median {percentile(times, 50):6.2f} ms, 99th {percentile(times, 99):6.2f} ms")


async def main(rounds: int, seconds: float, folder: Path | None) -> None:
    """Fills a database and measures."""
    async with AsyncExitStack() as stack:
        name = stack.enter_context(TemporaryDirectory(dir=folder))
        Path(name).chmod(0o711)  # the server is another user when we are root
        private = await stack.enter_async_context(run_embedded(Path(name) / "data"))
        await migrate(private.url)
        connection = await asyncpg.connect(private.url)
        source = new_id(CALLER, None)
        await connection.execute(_FILL, source, ITEMS, body())
        await connection.execute("VACUUM ANALYZE")
        opened = [await stack.enter_async_context(open_database(private.url, 1, Bounds())) for _ in range(2)]
        first, second = map(Stores.on, opened)
        await measure(first, connection, source, rounds)
        await connection.close()
        await beside(first, second, source, seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--folder", type=Path, help="for the database; by default that of temporary files")
    options = parser.parse_args()
    asyncio.run(main(options.rounds, options.seconds, options.folder))
