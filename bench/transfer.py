"""Measures exports and imports: ``python -m bench.transfer [--rounds 5] [--items 100000]``.

It runs one worker on a private PostgreSQL, and compares in each round, by CPU time of service and PostgreSQL for an
item: an export with the paging through the same conversations, and an import with appends of 20. Both are done by 4
callers. Then it imports and exports 10 conversations of ``--items`` items, and prints how much the memory of the
service has grown at most.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import grpc.aio
import uvloop
from conversations.v1.conversation_pb2 import Conversation
from conversations.v1.transfer_service_pb2 import ExportConversationsRequest, ImportConversationsRequest, Record
from conversations.v1.transfer_service_pb2_grpc import TransferServiceStub

from bench.cpu import family_mebibytes, family_seconds, serving_seconds, spent
from bench.grpc_target import GrpcTarget, service_settings, target
from bench.operations import filled
from bench.postgres import Postgres, private_postgres
from bench.process import started
from server.store.checksum import add_block, digest_of_head, kept_head

CALLERS = 4
LONG = 10_000  # items of a conversation that is compared
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Scene:
    """A service, its PostgreSQL, and clients of both services."""

    target: GrpcTarget
    transfers: Any
    postgres: Postgres


@dataclass(frozen=True)
class Cost:
    """CPU time for an item, in microseconds."""

    service: float
    postgres: float

    @property
    def total(self) -> float:
        """Of both."""
        return self.service + self.postgres


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    """A service with default settings on an empty database."""
    async with private_postgres(folder) as postgres:
        url = await postgres.database("ours")
        async with (
            started(["server"], service_settings(url), folder / "server.log") as process,
            grpc.aio.insecure_channel(process.address) as channel,
        ):
            yield Scene(target("ours", process.pid, channel), TransferServiceStub(channel), postgres)


async def cost(scene: Scene, items: int, work: Callable[[], Awaitable[object]]) -> Cost:
    """The cost of ``work``, which is about so many items."""
    service, database = family_seconds(scene.target.pid), serving_seconds(scene.postgres.pid)
    await work()
    return Cost(
        (family_seconds(scene.target.pid) - service) / items * 1e6,
        spent(database, serving_seconds(scene.postgres.pid)) / items * 1e6,
    )


async def exported(scene: Scene, name: str) -> int:
    """Exports a conversation; returns how many items came."""
    count = 0
    async for record in scene.transfers.ExportConversations(ExportConversationsRequest(conversation_ids=[name])):
        count += len(record.items.items)
    return count


async def records_of(scene: Scene, name: str) -> list[Record]:
    """The records of a conversation."""
    call = scene.transfers.ExportConversations(ExportConversationsRequest(conversation_ids=[name]))
    return [each async for each in call]


def renamed(records: Sequence[Record], name: str) -> list[Record]:
    """The records as those of another conversation."""
    head = Conversation()
    head.CopyFrom(records[0].conversation)
    head.id = name
    digest = digest_of_head(kept_head(head))
    for record in records[1:-1]:
        digest = add_block(digest, record.items.SerializeToString(deterministic=True))
    end = Record.End(item_count=records[-1].end.item_count, digest=digest)
    return [Record(conversation=head), *records[1:-1], Record(end=end)]


async def imported(scene: Scene, records: Iterable[Record]) -> None:
    """Imports a conversation."""
    call = scene.transfers.ImportConversations(ImportConversationsRequest(record=each) for each in records)
    answers = [answer async for answer in call]
    assert answers[-1].imported.created, answers[-1]


async def appended(scene: Scene, items: int) -> None:
    """Appends items to a new conversation, 20 at a time."""
    await filled(scene.target, items)


async def compare(scene: Scene, rounds: int) -> None:
    """Prints the ratios of the costs."""
    names = [(await filled(scene.target, LONG))[0] for _ in range(CALLERS)]
    await scene.postgres.settle("ours")
    records = [await records_of(scene, name) for name in names]
    found: dict[str, list[Cost]] = {"page": [], "export": [], "append 20": [], "import": []}
    items = CALLERS * LONG
    for number in range(rounds):
        copies = [renamed(each, f"conv_{number}_{caller}") for caller, each in enumerate(records)]
        works: dict[str, Callable[[], Awaitable[object]]] = {
            "page": lambda: asyncio.gather(*(scene.target.page(name) for name in names)),
            "export": lambda: asyncio.gather(*(exported(scene, name) for name in names)),
            "append 20": lambda: asyncio.gather(*(appended(scene, LONG) for _ in names)),
            "import": lambda copies=copies: asyncio.gather(*(imported(scene, each) for each in copies)),  # type: ignore[misc]
        }
        for name, work in works.items():
            found[name].append(await cost(scene, items, work))
    for name, costs in found.items():
        service, postgres = median(each.service for each in costs), median(each.postgres for each in costs)
        print(f"{name:10} {service:6.2f} + {postgres:5.2f} µs of service and PostgreSQL for an item")
    for name, other in (("export", "page"), ("import", "append 20")):
        ratios = [mine.total / theirs.total for mine, theirs in zip(found[name], found[other], strict=True)]
        print(f"{name} / {other}: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)


async def hold(scene: Scene, items: int) -> None:
    """Prints the memory of the service while 10 long conversations are imported, and then exported."""
    names = [f"conv_long_{number}" for number in range(10)]
    template = (await records_of(scene, (await filled(scene.target, 1_000))[0]))[1].items
    start = family_mebibytes(scene.target.pid)
    print(f"memory of the service before: {start:.0f} MiB")
    for what, works in (
        ("import", [imported(scene, long_records(name, template, items)) for name in names]),
        ("export", [exported(scene, name) for name in names[:CALLERS]]),
    ):
        print(f"{what}: {await peak(scene.target.pid, works) - start:+.0f} MiB at most", flush=True)
    for name in names[CALLERS:]:
        assert await exported(scene, name) == items


def long_records(name: str, template: Record.Items, items: int) -> Iterable[Record]:
    """The records of a conversation of so many items, made one after the other."""
    head = Conversation(id=name, last_sequence=items)
    head.create_time.seconds = head.update_time.seconds = 1_700_000_000
    digest = digest_of_head(kept_head(head))
    yield Record(conversation=head)
    for start in range(0, items, len(template.items)):
        block = Record.Items()
        block.CopyFrom(template)
        for number, item in enumerate(block.items, start + 1):
            item.sequence, item.id = number, f"msg_{number}"
        digest = sha256(digest + block.SerializeToString(deterministic=True)).digest()
        yield Record(items=block)
    yield Record(end=Record.End(item_count=items, digest=digest))


async def peak(pid: int, works: Sequence[Awaitable[object]]) -> float:
    """The most memory of a process while all works are done at once."""
    doing, most = asyncio.gather(*works), family_mebibytes(pid)
    while not doing.done():
        await asyncio.wait((doing,), timeout=_LOOK_SECONDS)
        most = max(most, family_mebibytes(pid))
    await doing
    return most


async def measure(rounds: int, items: int) -> None:
    """Measures all of it."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)
        async with scene(folder) as prepared:
            if rounds:
                await compare(prepared, rounds)
            if items:
                await hold(prepared, items)


def main() -> None:
    """Reads the flags and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, default=100_000, help="a multiple of 1,000")
    flags = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(flags.rounds, flags.items))


if __name__ == "__main__":
    main()
