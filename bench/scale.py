"""``python -m bench.scale``: compares the cost of a call in a large database with that in a small one.

Two databases on one private PostgreSQL, each with a server of its own: many
conversations of 100 items, and one of 10,000. The calls go to conversations
picked at random, so that almost nothing of the large database is in
PostgreSQL's buffers: the worst case. Figures are CPU time of the server and of
PostgreSQL per call; rounds alternate between the two. Writes scale.json.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC would log the processes that are started here
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # the processes started here are other programs

import argparse
import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from hashlib import md5
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import asyncpg
import uvloop
from conversations.v1 import conversations_service_pb2 as pb

from bench.grpc_target import message, ours
from bench.operations import Operation, append, get, newest, none
from bench.postgres import Postgres, private_postgres
from bench.results import spread
from bench.window import Sample, measure
from bench.workloads import Workload
from server.services.new_items import BatchBuilder
from server.store.batch import Batch
from server.store.embedded import launch
from server.store.migrate import migrate

EACH = 100  # items of a conversation
LONG = 10_000  # items of the long conversation, which has number 0
_FIRST_SECOND = 1_700_000_000  # of the conversations; each has a second of its own
_LOADERS = 2  # connections that fill a database
_OWNER = "local"  # the principal without identity
# Only while filling, when a crash would lose nothing else.
_HASTY = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "autovacuum": "off",
    "max_wal_size": "'16GB'",
    "checkpoint_timeout": "'1h'",
}
_CONVERSATIONS = """
    INSERT INTO conversations
    SELECT id, '', $5, '{}', '{}', $4, $4, 1, at, at, NULL FROM (
        SELECT 'conv_' || to_hex($3 + n) || md5(n::text) || substr(md5('x' || n), 1, 8) AS id,
               to_timestamp($3 + n) AS at
        FROM generate_series($1::int, $2::int) AS n) AS made"""
_ITEMS = """
    INSERT INTO items (conversation_id, sequence, item_id, version, type, role, status, create_time, body)
    SELECT id, sequence, item_id, sequence, $4, $5, $6, at, $7 || convert_to(item_id, 'UTF8') || $8 FROM (
        SELECT id, sequence, create_time AS at,
               'msg_' || substr(id, 6, 8) || substr(md5(id || ':' || sequence), 1, 24) || right(id, 16) AS item_id
        FROM generate_series(1, $3::int) AS sequence, conversations
        WHERE id BETWEEN 'conv_' || to_hex($1::int) AND 'conv_' || to_hex($2::int + 1)
        ORDER BY sequence, id) AS made"""
# Reads by index, because PostgreSQL keeps scans of whole tables from filling the buffers.
_WARMING = (
    "SET enable_seqscan = off",
    "SET enable_bitmapscan = off",
    "SET max_parallel_workers_per_gather = 0",
    "SELECT sum(octet_length(body)) FROM items WHERE conversation_id > ''",
    "SELECT count(*) FROM (SELECT conversation_id, item_id FROM items ORDER BY 1, 2) AS by_id",
    "SELECT sum(version) FROM conversations WHERE id > ''",
)
_HOT = "SELECT n_tup_upd AS updates, n_tup_hot_upd AS hot FROM pg_stat_user_tables WHERE relname = 'conversations'"


@dataclass(frozen=True)
class Database:
    """A filled database."""

    name: str
    url: str
    items: int

    @property
    def conversations(self) -> int:
        """The number of conversations besides the long one; they are numbered from 1."""
        return self.items // EACH


def conversation_id(number: int) -> str:
    """The id that `_CONVERSATIONS` makes, in the form of server.store.ids."""
    return f"conv_{_FIRST_SECOND + number:08x}{_digest(str(number))}{_digest(f'x{number}')[:8]}"


def item_id(conversation: str, sequence: int) -> str:
    """The id that `_ITEMS` makes."""
    return f"msg_{conversation[5:13]}{_digest(f'{conversation}:{sequence}')[:24]}{conversation[-16:]}"


def _digest(text: str) -> str:
    return md5(text.encode(), usedforsecurity=False).hexdigest()


# -- the fill


async def filled(postgres: Postgres, name: str, items: int, at_once: int) -> Database:
    """Fills a database with many items and a long conversation."""
    database = Database(name, await postgres.database(name), items)
    await migrate(database.url)
    began = time.monotonic()
    last = database.conversations
    spans = iter([(first, min(first + at_once - 1, last)) for first in range(1, last + 1, at_once)])
    pool = await asyncpg.create_pool(database.url, min_size=_LOADERS, max_size=_LOADERS)
    try:
        async with pool.acquire() as connection:
            await _insert(connection, 0, 0, LONG)
        await asyncio.gather(*(_load(pool, spans) for _ in range(_LOADERS)))
    finally:
        await pool.close()
    print(f"{name}: {items:,} items in {time.monotonic() - began:.0f} s", flush=True)
    await postgres.settle(name)
    print(f"{name}: with VACUUM ANALYZE {time.monotonic() - began:.0f} s", flush=True)
    return database


async def _load(pool: asyncpg.Pool, spans: Iterator[tuple[int, int]]) -> None:
    async with pool.acquire() as connection:
        for first, last in spans:
            await _insert(connection, first, last, EACH)


async def _insert(connection: asyncpg.Connection, first: int, last: int, items: int) -> None:
    batch, prefix, suffix = _example()
    kind = (batch.types[0], batch.roles[0], batch.statuses[0])
    await connection.execute(_CONVERSATIONS, first, last, _FIRST_SECOND, items, _OWNER)
    await connection.execute(
        _ITEMS, _FIRST_SECOND + first, _FIRST_SECOND + last, items, *kind, prefix, suffix, timeout=600
    )


def _example() -> tuple[Batch, bytes, bytes]:
    """Returns a stored item, and its bytes before and after its id."""
    batch = BatchBuilder(2**20, 2**20).build([message()], conversation_id(1), _OWNER, datetime.now(UTC))
    prefix, suffix = batch.bodies[0].split(batch.item_ids[0].encode())
    return batch, prefix, suffix


async def _configure(postgres: Postgres, statements: Sequence[str]) -> None:
    for statement in statements:
        await postgres.connection.execute(statement)
    await postgres.connection.execute("SELECT pg_reload_conf()")
    await asyncio.sleep(0.5)  # until all processes have seen it


async def fill(folder: Path, sizes: Mapping[str, int], at_once: int) -> list[Database]:
    """Fills the databases and writes them to disk."""
    async with private_postgres(folder) as postgres:
        await _configure(postgres, [f"ALTER SYSTEM SET {name} = {value}" for name, value in _HASTY.items()])
        databases = [await filled(postgres, name, items, at_once) for name, items in sizes.items()]
        await _configure(postgres, ["ALTER SYSTEM RESET ALL"])
        await postgres.connection.execute("CHECKPOINT")
    await asyncio.to_thread(os.sync)  # data written while fsync was off
    return databases


# -- the measurement


async def get_item(target: Any, conversation: str, turn: int) -> None:
    """Reads one of the first items."""
    request = pb.GetItemRequest(conversation_id=conversation, item_id=item_id(conversation, turn % EACH + 1))
    await target.stub.GetItem(request)


def workloads(operations: int, callers: int) -> list[Workload]:
    """The workloads on random conversations, then those on the long one."""

    def one(name: str, operation: Operation, *, each: bool = True) -> Workload:
        return Workload(name, operation, operations, callers, none(), each=each)

    return [
        one("append 1", append(1)),
        one("newest 20", newest()),
        one("get conversation", get),
        one("get item", get_item),
        one(f"append 1 to {LONG:,}", append(1), each=False),
        one(f"newest 20 of {LONG:,}", newest(), each=False),
    ]


def picked(database: Database, workload: Workload, chance: random.Random) -> list[str]:
    """The conversations of a round."""
    if not workload.each:
        return [conversation_id(0)]
    return [conversation_id(chance.randint(1, database.conversations)) for _ in range(workload.count)]


Answer = TypeVar("Answer")
Samples = dict[tuple[str, str], list[Sample]]


async def measured(folder: Path, databases: Sequence[Database], flags: argparse.Namespace) -> dict[str, Any]:
    """Measures the cells, and the share of HOT updates of conversations."""
    chance = random.Random(flags.seed)  # noqa: S311 - a sample
    samples: Samples = {}
    async with private_postgres(folder) as postgres:
        async with AsyncExitStack() as stack:
            places = []
            for database in databases:
                own = folder / f"{database.name}-{time.monotonic_ns()}"
                own.mkdir()
                places.append((database, await stack.enter_async_context(ours(database.url, own))))
            for database in reversed(databases):  # fills the buffers; the small one, last, fits
                await _asked(database.url, _warm)
            await postgres.connection.execute("CHECKPOINT")
            for number in range(-1, flags.rounds):
                print(f"round {number + 1} of {flags.rounds}" if number >= 0 else "warming up", flush=True)
                for workload in workloads(flags.operations, flags.callers):
                    for database, target in places[:: 1 if number % 2 else -1]:
                        # The buffers hold the other database, so the first turn does not count.
                        await measure(target, workload, picked(database, workload, chance), postgres)
                        sample, _ = await measure(target, workload, picked(database, workload, chance), postgres)
                        if number >= 0:
                            samples.setdefault((workload.name, database.name), []).append(sample)
        found = {
            "shared_buffers": await postgres.connection.fetchval("SELECT current_setting('shared_buffers')"),
            "settings": await postgres.settings(),
            "databases": {each.name: await _asked(each.url, _facts) for each in databases},
        }
    return found | {"cells": cells(samples)}


async def _asked(url: str, ask: Callable[[asyncpg.Connection], Awaitable[Answer]]) -> Answer:
    connection = await asyncpg.connect(url)
    try:
        return await ask(connection)
    finally:
        await connection.close()


async def _warm(connection: asyncpg.Connection) -> None:
    for statement in _WARMING:
        await connection.execute(statement)


async def _facts(connection: asyncpg.Connection) -> dict[str, Any]:
    """The size of a database, and the share of HOT updates of conversations; its servers have ended."""
    size = await connection.fetchval("SELECT pg_database_size(current_database())")
    return {"mebibytes": size >> 20, **dict(await connection.fetchrow(_HOT))}


def cells(samples: Samples) -> dict[str, Any]:
    """The figures of each workload and database, and the ratio of the two in each round."""
    found: dict[str, Any] = {}
    for (workload, name), own in samples.items():
        figures = {field.name: spread([getattr(each, field.name) for each in own]) for field in fields(Sample)}
        found.setdefault(workload, {})[name] = figures
    for workload, cell in found.items():
        pairs = list(zip(samples[workload, "small"], samples[workload, "large"], strict=True))
        for name in ("cpu_us", "server_us", "postgres_us"):
            cell.setdefault("ratio", {})[name] = spread(
                [getattr(large, name) / getattr(small, name) for small, large in pairs]
            )
    return found


def table(run: Mapping[str, Any]) -> str:
    """Formats the medians for the terminal: µs of CPU time per operation."""
    lines = [f"{'µs, server + PostgreSQL':24} {'small':>17} {'large':>17}  ratio (PostgreSQL's)"]
    for workload, cell in run["cells"].items():
        sums = [f"{cell[n]['server_us']['median']:7.0f} +{cell[n]['postgres_us']['median']:6.0f}" for n in _NAMES]
        ratios = [cell["ratio"][name]["median"] for name in ("cpu_us", "postgres_us")]
        lines.append(f"{workload:24} {sums[0]:>17} {sums[1]:>17}  {ratios[0]:.2f} ({ratios[1]:.2f})")
    for name, facts in run["databases"].items():
        share = facts["hot"] / max(1, facts["updates"])
        lines.append(f"{name}: {facts['mebibytes']:,} MiB, {facts['hot']:,} of {facts['updates']:,} HOT ({share:.1%})")
    return "\n".join(lines)


_NAMES = ("small", "large")


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--items", type=int, default=10_000_000, help="of the large database [10000000]")
    parser.add_argument("--small", type=int, default=100_000, help="items of the small one [100000]")
    parser.add_argument(
        "--at-once", type=int, default=1000, help="conversations that grow together, their items mixed on disk [1000]"
    )
    parser.add_argument("--rounds", type=int, default=7, help="measured after a warm-up [7]")
    parser.add_argument("--callers", type=int, default=16, help="at once [16]")
    parser.add_argument("--operations", type=int, default=1600, help="of a round [1600]")
    parser.add_argument("--buffers", nargs="+", default=["128MB"], help="shared_buffers, a run for each [128MB]")
    parser.add_argument("--seed", type=int, default=1, help="of the sample of conversations [1]")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "scale.json")
    return parser.parse_args()


async def main(flags: argparse.Namespace) -> None:
    """Fills, measures and writes."""
    sizes = dict(zip(_NAMES, (flags.small, flags.items), strict=True))
    runs = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)  # under root, PostgreSQL runs as another user
        databases = await fill(folder, sizes, flags.at_once)
        own: Any = launch._SETTINGS  # noqa: SLF001 - the private PostgreSQL has no setting for its memory
        for buffers in flags.buffers:
            launch._SETTINGS = (*own, f"shared_buffers={buffers}")  # noqa: SLF001
            runs.append(await measured(folder, databases, flags))
            print(f"\nshared_buffers = {buffers}\n{table(runs[-1])}\n", flush=True)
    made = {
        "items": sizes,
        "long": LONG,
        "rounds": flags.rounds,
        "at_once": flags.at_once,
        "callers": flags.callers,
        "operations": flags.operations,
        "body_bytes": len(_example()[0].bodies[0]),
        "runs": runs,
    }
    flags.out.write_text(json.dumps(made, indent=1) + "\n")
    print(f"written: {flags.out}")


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(arguments()))
