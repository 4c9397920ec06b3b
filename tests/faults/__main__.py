"""`python -m tests.faults`: runs the rows, prints the table, and fails when a promise was broken."""

import argparse
import asyncio
import secrets
import sys
from collections import Counter

import uvloop

from tests.faults.rows import ROWS, Row
from tests.faults.run import Result, run


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--short", action="store_true", help="only the rows of the short form, each once")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10_000), help="of what is random")
    parser.add_argument("--only", metavar="WORDS", help="only rows whose name holds these words")
    return parser.parse_args()


def _rows(arguments: argparse.Namespace) -> list[Row]:
    rows = [row for row in ROWS if row.short or not arguments.short]
    return [row for row in rows if (arguments.only or "") in row.name]


async def _main(arguments: argparse.Namespace) -> int:
    broken = 0
    async with run(arguments.seed, short=arguments.short) as running:
        for row in _rows(arguments):
            result = await running.row(row)
            broken += len(result.violations)
            _print(result)
    return 1 if broken else 0


def _print(result: Result) -> None:
    times = " / ".join(
        "-" if each is None else f"{each:.2f}" for each in (result.recovery, result.not_ready, result.ready)
    )
    print(
        f"{result.row.name}: {result.operations} operations, {len(result.violations)} violations, recovery / not ready "
        f"/ ready {times} s, {result.peak >> 20} MiB, {result.seconds:.0f} s, {result.codes} {result.facts}",
        flush=True,
    )
    for sentence, count in Counter(result.violations).most_common(20):
        print(f"  - {sentence[:300]}" + (f" ({count} times)" if count > 1 else ""), flush=True)


if __name__ == "__main__":
    arguments = _arguments()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(_main(arguments)))
