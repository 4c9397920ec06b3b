"""Measures the cost of observing calls: CPU time of server and PostgreSQL, compared with a server that counts nothing.

``python -m bench.observe_cost`` measures four servers in alternating rounds of one run: without
counting, with default settings, with metrics exposed, and with the access log in a file too.
None of them traces: with tracing off, no tracing code runs.
"""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median, quantiles

import aiohttp

from bench.cpu import family_seconds
from bench.grpc_target import GrpcTarget, service_settings, serving
from bench.rounds import Open, Run, measured

_PORTS = count(39464)
WORKLOADS = {"get": "GetConversation", "append 1": "CreateItems"}
BARE = "nothing"
METRICS = {"CONVERSATIONS_METRICS_LISTEN": "127.0.0.1"}  # a port is added
LINES = {"CONVERSATIONS_ACCESS_LOG": "true", "CONVERSATIONS_LOG_FORMAT": "json"}
VARIANTS: dict[str, Mapping[str, str]] = {
    BARE: {},
    "as it starts": {},
    "metrics": METRICS,
    "metrics and access log": METRICS | LINES,
}
_SCRAPES = 50


@asynccontextmanager
async def run_service(name: str, url: str, folder: Path) -> AsyncIterator[GrpcTarget]:
    """A server on the database at ``url``."""
    settings = service_settings(url) | dict(VARIANTS[name])
    if "CONVERSATIONS_METRICS_LISTEN" in settings:
        settings["CONVERSATIONS_METRICS_LISTEN"] += f":{next(_PORTS)}"
    module = ("bench.observe_cost", "--serve-bare") if name == BARE else ("server",)
    async with serving(name, module, settings, folder) as found:
        yield found


def serve_bare() -> None:
    """Serves without the interceptor that counts and without the counts of the store."""
    from server.cli.commands import main  # noqa: PLC0415 - only this process needs it
    from server.interceptors.observe import Observe  # noqa: PLC0415
    from server.observability.histogram import Histogram  # noqa: PLC0415

    Observe.wrap = lambda _self, _method, handler: handler  # type: ignore[method-assign,assignment]
    Histogram.add = lambda _self, _value: None  # type: ignore[method-assign,assignment]
    sys.argv = ["server"]
    main()


async def report(rounds: int, share: float) -> None:
    """Prints the figures."""
    openers: dict[str, Open] = {variant: partial(run_service, variant) for variant in VARIANTS}
    async with measured(openers, WORKLOADS, rounds, share) as run:
        for workload in WORKLOADS:
            _print(run, workload)
        await _scrape(run.targets[-1].pid)


def _print(run: Run, workload: str) -> None:
    base = [sample.cpu_us for sample in run.samples[workload, BARE]]
    print(f"\n{WORKLOADS[workload]}")
    for variant in VARIANTS:
        cpu = [sample.cpu_us for sample in run.samples[workload, variant]]
        ratios = [own / bare for own, bare in zip(cpu, base, strict=True)]
        low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        print(f"  {variant:24} {median(cpu):8.1f} µs   {median(ratios):.3f} (middle half {low:.3f} to {high:.3f})")


async def _scrape(pid: int) -> None:
    """Prints the size and the time of one scrape."""
    address = f"http://127.0.0.1:{next(_PORTS) - 1}/metrics"
    async with aiohttp.ClientSession() as session:
        before = family_seconds(pid)
        for _ in range(_SCRAPES):
            async with session.get(address) as answer:
                text = await answer.read()
        milliseconds = (family_seconds(pid) - before) / _SCRAPES * 1e3
    print(f"\na scrape: {milliseconds:.1f} ms of CPU, {len(text) / 1024:.0f} KiB")


def main() -> None:
    """Reads the flags and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--share", type=float, default=1.0, help="of the operations of a round")
    parser.add_argument("--serve-bare", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.serve_bare:
        serve_bare()
    else:
        asyncio.run(report(flags.rounds, flags.share))


if __name__ == "__main__":
    main()
