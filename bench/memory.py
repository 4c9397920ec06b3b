"""Measures the memory of one process over many calls: ``python -m bench.memory [--calls 200000] [--jwt]``.

It runs one worker on a private PostgreSQL and calls every method of the
workloads in turn. A table shows the resident memory after each tenth of the
calls. The last line says how much it grew in the second half, when every pool
and cache is full.
"""

import argparse
import asyncio
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import linear_regression
from tempfile import TemporaryDirectory

import uvloop

from bench.cpu import family_mebibytes
from bench.grpc_target import ours, ours_jwt
from bench.postgres import private_postgres
from bench.target import Target

CALLERS = 32
LOOKS = 10  # readings of the memory
_SETTLING_SECONDS = 3.0  # after the calls: the service gives memory back every two seconds


async def turn(target: Target, conversation: str, item: str, number: int) -> None:
    """Makes the ``number``-th call of a caller."""
    match number % 9:
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
        case 5:
            await target.get_item(conversation, item)
        case 6:
            await target.get_items(conversation, [item])
        case 7:
            await target.update(conversation, {"number": str(number)})
        case 8:
            await target.check_access(conversation)


async def caller(target: Target, numbers: Iterator[int]) -> None:
    """Makes calls until the numbers are used up, in a new conversation every 200 calls."""
    conversation = item = ""
    for count, number in enumerate(numbers):
        if count % 200 == 0:
            conversation = await target.create()
            item, *_ = await target.append(conversation, 20) or [""]
        await turn(target, conversation, item, number)


def slope(calls: Sequence[int], mebibytes: Sequence[float]) -> float:
    """Returns the growth in the second half of the readings, in mebibytes for each 100,000 calls."""
    half = len(calls) // 2
    return linear_regression(calls[half:], mebibytes[half:]).slope * 100_000


async def watch(target: Target, calls: int) -> None:
    """Makes the calls, and prints the memory after each tenth of them."""
    found = [family_mebibytes(target.pid)]
    print(f"{target.name}\n{'calls':>9} {'MiB':>7}\n{0:9} {found[0]:7.1f}")
    for look in range(1, LOOKS + 1):
        numbers = itertools.islice(itertools.count(), calls * 9 // 10 // LOOKS)  # every ninth is two calls
        await asyncio.gather(*(caller(target, numbers) for _ in range(CALLERS)))
        await asyncio.sleep(_SETTLING_SECONDS)
        found.append(family_mebibytes(target.pid))
        print(f"{look * calls // LOOKS:9} {found[-1]:7.1f}", flush=True)
    made = [look * calls // LOOKS for look in range(LOOKS + 1)]
    print(f"{slope(made, found):+.2f} MiB for each 100,000 calls in the second half", flush=True)


async def measure(calls: int, *, jwt: bool) -> None:
    """Measures a service without identity or with tokens and a policy of 50 rules, on an empty database."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)
        opener = ours_jwt if jwt else ours
        async with private_postgres(folder) as postgres, opener(await postgres.database("ours"), folder) as target:
            await watch(target, calls)


def main() -> None:
    """Reads the flags and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--jwt", action="store_true", help="with tokens and a policy of 50 rules")
    flags = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(flags.calls, jwt=flags.jwt))


if __name__ == "__main__":
    main()
