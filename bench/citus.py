"""Measures what a distributed database costs, as multiples of one PostgreSQL in the same run.

``python -m bench.citus --bin DIR`` starts a PostgreSQL, a coordinator with two workers, and a server for each, and runs
the same calls on both in turn. ``DIR`` is as of `tests.support.citus`. Figures are CPU time per call of the server, the
coordinator or the only PostgreSQL, and the workers.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC would log the processes that are started here
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # the processes started here are other programs

import argparse
import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from conversations.v1 import conversations_service_pb2 as pb

from bench.cpu import family_seconds, serving_seconds, spent
from bench.grpc_target import GrpcTarget, ours
from bench.operations import append, create, get, newest, none, own
from bench.percentiles import percentile
from bench.postgres import private_postgres
from bench.window import perform
from bench.workloads import Workload
from server.store.distribution import distribute
from server.store.migrate import migrate
from tests.support.citus import running_cluster

SHARDS = 32


async def list_owned(target: GrpcTarget, _subject: str, _number: int) -> None:
    """Lists the newest conversations of one owner."""
    await target.stub.ListConversations(pb.ListConversationsRequest(filter='owner = "local"'))


WORKLOADS = (
    Workload("append 1, 32 conversations", append(1), 1600, 32, own(0)),
    Workload("append 1, one conversation", append(1), 1600, 32, own(0, most=1)),
    Workload("append 20", append(20), 480, 32, own(0)),
    Workload("create", create, 800, 32, none()),
    Workload("GetConversation", get, 1600, 32, own(20)),
    Workload("newest 20", newest(), 1600, 32, own(20)),
    Workload("list of one owner", list_owned, 400, 8, none()),  # type: ignore[arg-type]
)


@dataclass(frozen=True)
class Place:
    """A server, and the postmasters of its database, that of the coordinator first."""

    target: GrpcTarget
    postmasters: Sequence[int]

    def databases(self) -> list[dict[int, float]]:
        """CPU time of each process of each PostgreSQL so far."""
        return list(map(serving_seconds, self.postmasters))


@dataclass(frozen=True)
class Figures:
    """Of one round, per call."""

    server_us: float
    coordinator_us: float
    workers_us: float
    p50_ms: float

    @property
    def cpu_us(self) -> float:
        """Of all together."""
        return self.server_us + self.coordinator_us + self.workers_us


async def measure(place: Place, workload: Workload) -> Figures:
    """Runs a round."""
    subjects = await workload.ready(place.target)
    server, databases = family_seconds(place.target.pid), place.databases()
    done = await perform(place.target, workload, subjects)
    coordinator, *workers = map(spent, databases, place.databases())
    each = 1e6 / workload.count
    return Figures(
        (family_seconds(place.target.pid) - server) * each,
        coordinator * each,
        sum(workers) * each,
        percentile(done.latencies, 50) * 1e3,
    )


async def report(programs: Path, rounds: int, share: float) -> None:
    """Prints the medians, and the ratios with their spread."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        folder.chmod(0o711)  # under root, PostgreSQL runs as another user
        single = await stack.enter_async_context(private_postgres(folder))
        cluster = await stack.enter_async_context(running_cluster(programs))
        await migrate(cluster.url)
        await distribute(cluster.url, SHARDS)
        urls = {"one": await single.database("one"), "citus": cluster.url}
        pids = {"one": [single.pid], "citus": [node.pid for node in cluster.nodes]}
        places = []
        for name, url in urls.items():
            (folder / name).mkdir()
            places.append(Place(await stack.enter_async_context(ours(url, folder / name)), pids[name]))
        for workload in (each.paced(share) for each in WORKLOADS):
            await compare(places, workload, rounds)


async def compare(places: Sequence[Place], workload: Workload, rounds: int) -> None:
    """Prints a row."""
    found: list[list[Figures]] = [[] for _ in places]
    for number in range(rounds + 1):
        for place, figures in zip(places, found, strict=True):
            figures.append(await measure(place, workload))
        if number == 0:  # fills caches, and does not count
            found = [[] for _ in places]
    one, citus = found
    ratios = sorted(second.cpu_us / first.cpu_us for first, second in zip(one, citus, strict=True))
    spread = f"{median(ratios):5.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
    print(f"{workload.name:28} {describe(one)}  {describe(citus)}  {spread}")


def describe(rounds: Sequence[Figures]) -> str:
    """The medians of the server + the coordinator, or the only PostgreSQL, + the workers."""
    server, coordinator, workers, milliseconds = (
        median(each) for each in zip(*(astuple(figures) for figures in rounds), strict=True)
    )
    return f"{server:6.0f} + {coordinator:4.0f} + {workers:4.0f} µs {milliseconds:6.1f} ms"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, required=True, help="Folder of the programs of a PostgreSQL with Citus.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--share", type=float, default=1.0, help="of the operations of each workload")
    arguments = parser.parse_args()
    asyncio.run(report(arguments.bin, arguments.rounds, arguments.share))


if __name__ == "__main__":
    main()
