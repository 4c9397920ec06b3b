"""The step in the cost of a grpc.aio call from grpcio 1.83 to 1.84, and its cause (docs/adr/0029).

``python -m bench.grpc_step [VERSION=PYTHON ...]`` starts servers with each interpreter, and calls one unary method of
all of them in turn from this process. Without an interpreter it measures its own. Only ``grpcio`` is needed, and
``uvloop`` is used where it is installed, so that this file can be sent upstream as it is.

Since 1.84 a grpc.aio server starts a task for each call that it takes, and waits with `asyncio.wait` for the next
call of any registered method or of the others. Before, it awaited the next call itself and registered nothing.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import grpc.aio

SERVICE, METHOD = "bench.Step", "Echo"
REQUEST, RESPONSE = b"q" * 300, b"a" * 400
DIRECT = -1  # registered methods: none, and without `asyncio.wait`
_LABELS = {DIRECT: "by name, asyncio.wait replaced", 0: "by name"}


async def _echo(_request: bytes, _context: Any) -> bytes:
    return RESPONSE


async def serve(methods: int) -> None:
    """Serves until standard input ends; prints its port.

    Args:
        methods: So many methods are registered. With 0 or `DIRECT` the only method is known by its name.
    """
    if methods == DIRECT:
        asyncio.wait = _wait_for_one  # type: ignore[assignment]
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(_echo)
    handlers = {METHOD: handler} | {f"Unused{number}": handler for number in range(1, methods)}
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    if methods > 0:
        server.add_registered_method_handlers(SERVICE, handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(None)


async def _wait_for_one(futures: Any, **_how: Any) -> tuple[set[Any], set[Any]]:
    """Does what the server needs of `asyncio.wait` while nothing is registered: it waits for one future only."""
    (only,) = futures
    if not only.done():
        done = only.get_loop().create_future()
        only.add_done_callback(lambda _: done.done() or done.set_result(None))
        await done
    return {only}, set()


@dataclass
class Server:
    """A server process; ``figures``: for each number of callers, microseconds and hand-offs a call by round."""

    name: str
    pid: int
    call: Any
    figures: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    def used(self) -> tuple[float, int]:
        """CPU seconds and voluntary context switches of all threads so far; no thread ends while it serves."""
        seconds, switches = 0.0, 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            seconds += int((task / "schedstat").read_text().split()[0]) / 1e9
            status = (task / "status").read_text()
            switches += int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
        return seconds, switches

    async def measure(self, callers: int, seconds: float) -> None:
        """Calls from ``callers`` tasks for a while, and notes the cost of one call."""
        calls, end = 0, time.monotonic() + seconds

        async def caller() -> None:
            nonlocal calls
            while time.monotonic() < end:
                await self.call(REQUEST)
                calls += 1

        before = self.used()
        await asyncio.gather(*(caller() for _ in range(callers)))
        after = self.used()
        cost = ((after[0] - before[0]) / calls * 1e6, (after[1] - before[1]) / calls)
        self.figures.setdefault(callers, []).append(cost)


@asynccontextmanager
async def started(name: str, python: str, methods: int) -> AsyncIterator[Server]:
    """Runs a server in another process while this is open."""
    process = await asyncio.create_subprocess_exec(
        *(python, __file__, f"--serve={methods}"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            label = _LABELS.get(methods, f"{methods} registered")
            yield Server(f"{name}, {label}", process.pid, channel.unary_unary(f"/{SERVICE}/{METHOD}"))
    finally:
        process.stdin.close()
        await process.wait()


async def compare(flags: argparse.Namespace) -> Sequence[Server]:
    """Measures all servers, round by round and in another order each time; the first round does not count."""
    async with AsyncExitStack() as stack:
        places = (place.partition("=") for place in flags.pythons)
        wanted = [(version, python, methods) for version, _, python in places for methods in flags.methods]
        servers = [await stack.enter_async_context(started(*each)) for each in wanted]
        for number in range(flags.rounds + 1):
            turn = number % len(servers)
            for callers in flags.callers:
                for server in (*servers[turn:], *servers[:turn]):
                    await server.measure(callers, flags.seconds)
            if not number:
                for server in servers:
                    server.figures.clear()
        return servers


def table(servers: Sequence[Server]) -> Iterator[str]:
    """Yields a Markdown table; ratios are medians of those of the rounds, to the first server."""
    yield "| | callers | CPU of the server, µs a call | ratio | voluntary context switches a call |"
    yield "|---|--:|--:|--:|--:|"
    for callers, first in servers[0].figures.items():
        for server in servers:
            costs = server.figures[callers]
            cpu, switches = (median(values) for values in zip(*costs, strict=True))
            ratio = median(ours[0] / its[0] for ours, its in zip(costs, first, strict=True))
            yield f"| {server.name} | {callers} | {cpu:.0f} | {ratio:.2f} | {switches:.1f} |"


def main() -> None:
    """Reads the flags; measures, or serves as one of the processes that are measured."""
    own = f"{grpc.__version__}={sys.executable}"
    parser = argparse.ArgumentParser(prog="python -m bench.grpc_step", description=__doc__)
    parser.add_argument("pythons", nargs="*", default=[own], metavar="VERSION=PYTHON")
    parser.add_argument(
        "--methods", type=int, nargs="+", default=[DIRECT, 0, 16], help=f"registered; {DIRECT}: no asyncio.wait"
    )
    parser.add_argument("--callers", type=int, nargs="+", default=[32, 1], help="at once [32 1]")
    parser.add_argument("--rounds", type=int, default=5, help="after one that does not count [5]")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement [1]")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        if flags.serve is not None:
            runner.run(serve(flags.serve))
        else:
            print("\n".join(table(runner.run(compare(flags)))))


def _loop_factory() -> Any:
    try:
        import uvloop  # noqa: PLC0415 - another interpreter may lack it
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    main()
