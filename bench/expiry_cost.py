"""Measures what an end costs: CPU time of server and PostgreSQL, for conversations that never end and for others.

``python -m bench.expiry_cost`` measures two servers of this build in alternating rounds of one run. The conversations
of one have an ``idle_ttl``, so that every append moves their end.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from conversations.v1 import conversation_pb2
from conversations.v1 import conversations_service_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from bench.grpc_target import GrpcTarget, service_settings, serving
from bench.rounds import Open, measured

WORKLOADS = ("create", "append 1", "append 20", "get", "newest 20 of 100")
NEVER, IDLE = "never", "idle_ttl"
_DAY = Duration(seconds=86_400)


class ExpiringTarget(GrpcTarget):
    """A client whose conversations end a day after the last append."""

    async def create(self) -> str:
        """The new id."""
        request = pb.CreateConversationRequest(conversation=conversation_pb2.Conversation(idle_ttl=_DAY))
        return str((await self.stub.CreateConversation(request)).id)


@asynccontextmanager
async def run_service(name: str, url: str, folder: Path) -> AsyncIterator[GrpcTarget]:
    """A server on the database at ``url``."""
    async with serving(name, ["server"], service_settings(url), folder) as never:
        yield never if name == NEVER else ExpiringTarget(name, never.pid, never.stub, never.access)


async def report(rounds: int, share: float) -> None:
    """Prints the figures."""
    openers: dict[str, Open] = {each: partial(run_service, each) for each in (NEVER, IDLE)}
    async with measured(openers, WORKLOADS, rounds, share) as run:
        print(f"\n{'server + PostgreSQL':20} {NEVER:>12} {IDLE:>24}")
        for workload in WORKLOADS:
            print(run.compare(workload, NEVER, IDLE))


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--share", type=float, default=1.0, help="of the operations of each workload")
    arguments = parser.parse_args()
    asyncio.run(report(arguments.rounds, arguments.share))


if __name__ == "__main__":
    main()
