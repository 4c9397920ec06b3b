"""Measures the HTTP edge beside gRPC: CPU time of the server for the same calls, in alternating rounds of one run.

``python -m bench.http_edge`` measures a server without the edge, one whose edge is idle, and one that is called over
HTTP, by the client that calls other services over HTTP too. With ``--ogx`` that client calls OGX as well, and the CPU
time of both services and of PostgreSQL is compared (Python 3.12, or OGX_PYTHON).
"""

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median

import grpc.aio

from bench.grpc_target import service_settings, target
from bench.openai_target import OpenAiTarget, session_at
from bench.process import started
from bench.rounds import Open, Run, measured, peers
from bench.target import Target
from tests.support.ports import free_port

GRPC, IDLE, HTTP, OGX = "gRPC", "gRPC, edge idle", "HTTP", "ogx"
WORKLOADS = ("create", "append 1", "append 20", "newest 20 of 100", "get", "get item")


@asynccontextmanager
async def run_service(name: str, url: str, folder: Path) -> AsyncIterator[Target]:
    """A server on the database at ``url``, and a client of the protocol that is measured."""
    port = free_port()
    settings = service_settings(url)
    if name != GRPC:
        settings["CONVERSATIONS_HTTP_LISTEN"] = f"127.0.0.1:{port}"
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(started(["server"], settings, folder / f"{name}.log"))
        if name != HTTP:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(process.address))
            yield target(name, process.pid, channel)
            return
        yield OpenAiTarget(process.pid, await stack.enter_async_context(session_at(port)), name)


async def report(rounds: int, share: float, *, with_ogx: bool) -> None:
    """Prints the figures; with OGX, its CPU time and PostgreSQL's as a multiple of ours over HTTP."""
    openers: dict[str, Open] = {each: partial(run_service, each) for each in (GRPC, IDLE, HTTP)}
    if with_ogx:
        openers[OGX] = peers()[OGX]
    async with measured(openers, WORKLOADS, rounds, share) as run:
        print(f"\n{'CPU of the server':20} {GRPC:>12} {IDLE:>24} {HTTP:>20}")
        for workload in WORKLOADS:
            _print(run, workload)
        if with_ogx:
            print(f"\n{'server + PostgreSQL':20} {HTTP:>12} {OGX:>24}")
            for workload in WORKLOADS:
                print(run.compare(workload, HTTP, OGX))


def _print(run: Run, workload: str) -> None:
    base = [sample.server_us for sample in run.samples[workload, GRPC]]
    line = f"{workload:20} {median(base):9.1f} µs"
    for name in (IDLE, HTTP):
        own = [sample.server_us for sample in run.samples[workload, name]]
        ratios = sorted(one / other for one, other in zip(own, base, strict=True))
        line += f" {median(own):9.1f} µs {median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
    print(line)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--share", type=float, default=1.0, help="of the operations of a round")
    parser.add_argument("--ogx", action="store_true", help="measure OGX over HTTP too")
    flags = parser.parse_args()
    asyncio.run(report(flags.rounds, flags.share, with_ogx=flags.ogx))
