"""`python -m tests.faults`: runs the rows, prints the table, and fails when a promise was broken.

With `--mutations` it puts defects into copies of the service, and fails when a row does not see its own.
"""

import argparse
import asyncio
import os
import secrets
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop

from tests.faults import report
from tests.faults.mutations import MUTATIONS, Mutation, mutate
from tests.faults.report import Trial
from tests.faults.rows import ROWS, Row
from tests.faults.run import Result, run
from tests.faults.server import ROOT


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--short", action="store_true", help="only the rows of the short form, each once")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10_000), help="of what is random")
    parser.add_argument(
        "--only", default="", metavar="WORDS", help="only rows, or mutations, whose name holds these words"
    )
    parser.add_argument("--mutations", action="store_true", help="see that the rows see defects")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    return parser.parse_args()


async def _main(arguments: argparse.Namespace) -> int:
    command = shlex.join(("python", "-m", "tests.faults", *sys.argv[1:]))
    if arguments.mutations:
        trials = [trial async for trial in _trials(arguments)]
        table, failed = report.table_of_trials(trials, command), not all(trial.seen for trial in trials)
    else:
        results = [result async for result in _results(arguments)]
        table, failed = report.table_of_results(results, command), any(result.violations for result in results)
    print(table)
    if arguments.write:
        report.write(table, "mutations" if arguments.mutations else "faults")
    return int(failed)


async def _results(arguments: argparse.Namespace) -> AsyncIterator[Result]:
    async with run(arguments.seed, short=arguments.short) as running:
        for row in ROWS:
            if row.layout.small_disk and os.geteuid() != 0:
                print(f"skipped: {row.name}: only root can make a small disk", flush=True)
            elif arguments.only in row.name and (row.short or not arguments.short):
                result = await running.row(row)
                _tell(result)
                yield result


async def _trials(arguments: argparse.Namespace) -> AsyncIterator[Trial]:
    for mutation in MUTATIONS:
        if arguments.only in mutation.name:
            async with _copy(mutation) as code, run(arguments.seed, short=True, code=code) as running:
                result = await running.row(_row_of(mutation))
            _tell(result)
            yield Trial(mutation, result)


@asynccontextmanager
async def _copy(mutation: Mutation) -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        yield mutate(mutation, Path(folder)) if mutation.changes else ROOT


def _row_of(mutation: Mutation) -> Row:
    return next(row for row in ROWS if mutation.row in row.name)


def _tell(result: Result) -> None:
    """Says at once what a row showed: a run takes long."""
    print(f"{result.row.name}: {report.summary(result)}", flush=True)
    for sentence, count in Counter(result.violations).most_common(20):
        print(f"  - {sentence[:300]}" + (f" ({count} times)" if count > 1 else ""), flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(_main(_arguments())))
