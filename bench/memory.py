"""Measures the memory of one process over many calls: ``python -m bench.memory [--calls 200000]``.

It runs one worker on a private PostgreSQL and calls every method of the
workloads in turn. A table shows the resident memory after each tenth of the calls.
"""

import argparse
import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop

from bench.cpu import family_mebibytes
from bench.grpc_target import ours
from bench.postgres import private_postgres
from bench.target import Target

CALLERS = 32
LOOKS = 10  # readings of the memory


async def turn(target: Target, conversation: str, number: int) -> None:
    """Makes the ``number``-th call of a caller."""
    match number % 5:
        case 0:
            await target.append(conversation, 1)
        case 1:
            await target.append(conversation, 20)
        case 2:
            await target.get(conversation)
        case 3:
            await target.delete(await target.create())  # two calls
        case 4:
            await target.newest(conversation)


async def caller(target: Target, numbers: Iterator[int]) -> None:
    """Makes calls until the numbers are used up, in a new conversation every 200 calls."""
    conversation = ""
    for count, number in enumerate(numbers):
        if count % 200 == 0:
            conversation = await target.create()
            await target.append(conversation, 20)
        await turn(target, conversation, number)


async def measure(calls: int) -> None:
    """Prints the memory after each tenth of the calls."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)
        async with private_postgres(folder) as postgres, ours(await postgres.database("ours"), folder) as target:
            print(f"{'calls':>9} {'MiB':>7}\n{0:9} {family_mebibytes(target.pid):7.1f}")
            for look in range(1, LOOKS + 1):
                numbers = itertools.islice(itertools.count(), calls * 5 // 6 // LOOKS)  # every fifth is two calls
                await asyncio.gather(*(caller(target, numbers) for _ in range(CALLERS)))
                print(f"{look * calls // LOOKS:9} {family_mebibytes(target.pid):7.1f}", flush=True)


def main() -> None:
    """Reads the flags and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=200_000)
    flags = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(flags.calls))


if __name__ == "__main__":
    main()
