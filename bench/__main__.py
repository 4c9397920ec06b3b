"""``python -m bench``: compares the service with a minimal server, on one private PostgreSQL, in one run.

It prints the CPU time per operation and writes results.json, RESULTS.md and
results.svg. ``--check`` writes nothing: it measures a few rounds of the main
workloads and fails if a ratio to the minimal server is worse than in the
committed results. ``--print`` writes nothing either: it measures this service
without identity beside the minimal server, and prints CPU times and latencies.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC would log the processes that are started here
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # the processes started here are other programs

import argparse
import asyncio
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop

from bench.plot import svg
from bench.postgres import private_postgres
from bench.report import late, latencies, markdown, summary
from bench.results import Results, results_of, worse
from bench.rounds import OWN, Open, Run, opened, peers
from bench.streams import ITEMS, measure_streams
from bench.workloads import Workload, growth, table

HERE = Path(__file__).parent
COMMITTED = HERE / "results.json"
_QUICK_LONG, _QUICK_SHARE = 500, 0.02
_CHECK_SHARE = 0.4


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, help="measured after a warm-up [7, with --check 3]")
    parser.add_argument("--callers", type=int, default=32, help="at once, where a workload does not say [32]")
    parser.add_argument("--peers", action="store_true", help="measure other projects too")
    parser.add_argument("--quick", action="store_true", help="a smoke test: few operations, meaningless figures")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results [bench/]")
    parser.add_argument("--check", action="store_true", help="compare with the committed ratios; write nothing")
    parser.add_argument("--print", action="store_true", help="print CPU times and latencies; write nothing")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="of --print: workloads whose names contain one")
    parser.add_argument("--tolerance", type=float, default=0.25, help="of --check [0.25]")
    flags = parser.parse_args()
    if flags.only and not flags.print:
        parser.error("--only needs --print")
    if flags.quick and not (flags.check or flags.print) and flags.out == HERE:
        parser.error("--quick needs --out: its figures must not replace the real ones")
    flags.rounds = flags.rounds or (3 if flags.check else 7)
    return flags


def chosen(flags: argparse.Namespace, size: dict[str, int]) -> list[Workload]:
    """Returns the workloads that the flags choose."""
    share = _QUICK_SHARE if flags.quick else _CHECK_SHARE if flags.check else 1.0
    words = flags.only or [""]
    workloads = [each for each in table(**size, share=share) if any(word in each.name for word in words)]
    return [each for each in workloads if each.main] if flags.check else workloads


def targets(flags: argparse.Namespace) -> dict[str, Open]:
    """Returns the targets that the flags choose."""
    if flags.print:
        return {name: OWN[name] for name in ("limit", "ours")}
    return OWN | (peers() if flags.peers else {})


async def measured(flags: argparse.Namespace) -> Results:
    """Measures a whole run."""
    size = {"callers": flags.callers, "long": _QUICK_LONG if flags.quick else 10_000}
    workloads, written = chosen(flags, size), not (flags.check or flags.print)
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)  # under root, PostgreSQL runs as another user
        async with private_postgres(folder) as postgres, opened(postgres, folder, targets(flags)) as places:
            run = Run(postgres, places, workloads)
            print("warming up", flush=True)
            await run.warm_up()
            await run.rounds(flags.rounds)
            if written:
                await measure_streams(run, flags.rounds, flags.callers, 320 if flags.quick else ITEMS)
            if written and not flags.quick:
                await run.count_transactions()
            return await results_of(run, growth(**size), rounds=flags.rounds, callers=flags.callers)


def write(results: Results, folder: Path) -> None:
    """Writes the three files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    (folder / "RESULTS.md").write_text(markdown(results))
    (folder / "results.svg").write_text(svg(results))
    print(f"written: {folder}/results.json, RESULTS.md, results.svg")


def check(results: Results, tolerance: float) -> None:
    """Exits with code 1 if a cell is worse than committed."""
    lines = worse(json.loads(COMMITTED.read_text()), results, tolerance)
    if lines:
        sys.exit(f"Worse than the committed results by more than {tolerance:.0%}:\n" + "\n".join(lines))
    print(f"No cell is worse than the committed results by more than {tolerance:.0%}.")


def main() -> None:
    """Measures, then writes or compares."""
    flags = arguments()
    if flags.check and not COMMITTED.exists():
        sys.exit(f"There is nothing to compare with: {COMMITTED.name} comes from `python -m bench`.")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        results = runner.run(measured(flags))
    print("\n".join(summary(results)))
    if flags.print:
        print(latencies(results), late(results), sep="\n\n")
    elif flags.check:
        check(results, flags.tolerance)
    else:
        write(results, flags.out)


if __name__ == "__main__":
    main()
