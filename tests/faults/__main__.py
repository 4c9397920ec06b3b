"""`python -m tests.faults`: runs the rows, prints the table, and fails when a promise was broken."""

import argparse
import asyncio
import secrets
import sys

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
    print(
        f"{result.row.name}: {result.operations} operations, {len(result.violations)} violations, recovery "
        f"{result.recovery}, not ready {result.not_ready}, ready {result.ready}, {result.peak >> 20} MiB, "
        f"{result.seconds:.0f} s, {result.codes} {result.facts}",
        flush=True,
    )
    for sentence in result.violations[:20]:
        print(f"  - {sentence}", flush=True)


if __name__ == "__main__":
    arguments = _arguments()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(_main(arguments)))
