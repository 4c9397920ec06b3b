"""Measures what the order by activity costs: calls with it and without, and its pages beside those by create_time.

``python -m bench.activity_cost`` measures two servers of this build in alternating rounds of one run, by CPU time of
server and PostgreSQL. Then it measures calls for a page of 20 by both orders likewise, and times their statements
one after the other, of 100,000 conversations of which the caller sees 20, or all.
"""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from conversations.v1 import conversations_service_pb2 as pb

from bench.grpc_target import GrpcTarget, service_settings, serving
from bench.list_cost import CALLERS, fill
from bench.operations import none
from bench.postgres import private_postgres
from bench.rounds import Open, Run, measured, opened
from bench.workloads import Workload
from server.authorization.access import Access, AccessCache
from server.policy.load import load
from server.policy.rules import DEFAULT
from server.store.connection.bounds import Bounds
from server.store.connection.opening import open_database
from server.store.conversations import ConversationStore
from server.store.embedded import run_embedded
from server.store.migrate import migrate

WORKLOADS = ("create", "append 1", "append 1, 1 caller", "append 20", "get")
OFF, ON = "without", "with the order"
ORDERS = {"create_time": "create_time desc", "active_time": "active_time desc"}
_ROWS = 100_000
_PAGES = 300  # of each order
_EVERYBODY = load("- permit: {actions: [read]}\n")


@dataclass(frozen=True)
class ListingTarget(GrpcTarget):
    """A client that lists conversations in the order of its name."""

    async def list_page(self) -> None:
        """One ListConversations."""
        request = pb.ListConversationsRequest(page_size=20, order_by=ORDERS[self.name])
        assert len((await self.stub.ListConversations(request)).conversations) == 20


@asynccontextmanager
async def run_filled(name: str, url: str, folder: Path) -> AsyncIterator[GrpcTarget]:
    """A server on a database with many conversations."""
    async with run_service(ON, url, folder) as found:
        await fill(url, _ROWS)
        yield ListingTarget(name, found.pid, found.stub, found.access)


async def list_page(found: Any, _conversation: str, _turn: int) -> None:
    """The operation."""
    await found.list_page()


@asynccontextmanager
async def run_service(name: str, url: str, folder: Path) -> AsyncIterator[GrpcTarget]:
    """A server on the database at ``url``."""
    settings = service_settings(url) | {"CONVERSATIONS_ACTIVITY": str(name == ON)}
    async with serving(name, ["server"], settings, folder) as found:
        yield found


async def report_calls(rounds: int, share: float) -> None:
    """Prints the figures of calls."""
    openers: dict[str, Open] = {each: partial(run_service, each) for each in (OFF, ON)}
    async with measured(openers, WORKLOADS, rounds, share) as run:
        print(f"\n{'server + PostgreSQL':20} {OFF:>12} {ON:>16}")
        for workload in WORKLOADS:
            print(run.compare(workload, OFF, ON))


async def report_lists(rounds: int, share: float) -> None:
    """Prints the figures of calls for a page."""
    page = Workload("page of 20", list_page, 1200, 32, none()).paced(share)
    openers: dict[str, Open] = {each: partial(run_filled, each) for each in ORDERS}
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)
        async with private_postgres(folder) as postgres, opened(postgres, folder, openers) as places:
            run = Run(postgres, places, [page])
            await run.warm_up()
            await run.rounds(rounds)
            print(f"\n{'server + PostgreSQL':20} {'create_time':>12} {'active_time':>12}")
            print(run.compare(page.name, *ORDERS))


async def report_pages() -> None:
    """Prints the figures of statements."""
    accesses = {name: AccessCache(DEFAULT).of(caller) for name, caller in CALLERS.items()}
    accesses["everything"] = AccessCache(_EVERYBODY).of(CALLERS["by owner"])
    with TemporaryDirectory() as name:
        Path(name).chmod(0o711)
        async with run_embedded(Path(name) / "data") as private:
            await migrate(private.url)
            await fill(private.url, _ROWS)
            async with open_database(private.url, 2, Bounds()) as database:
                print(f"\n{'page of 20':20} {'create_time':>12} {'active_time':>15}")
                for who, access in accesses.items():
                    print(f"{who:20} {await _compare(ConversationStore(database, 2**20), access)}")


async def _compare(store: ConversationStore, access: Access) -> str:
    """Returns the medians of both orders, and the second as a multiple of the first."""
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(_PAGES):
        for by_activity, found in times.items():
            began = time.perf_counter()
            await store.page(access, (), None, 20, descending=True, by_activity=by_activity)
            found.append((time.perf_counter() - began) * 1e6)
    first, second = (median(found[_PAGES // 10 :]) for found in times.values())
    return f"{first:9.1f} µs {second:12.1f} µs {second / first:.2f}"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--share", type=float, default=1.0, help="of the operations of each workload")
    arguments = parser.parse_args()
    asyncio.run(report_calls(arguments.rounds, arguments.share))
    asyncio.run(report_lists(arguments.rounds, arguments.share))
    asyncio.run(report_pages())


if __name__ == "__main__":
    main()
