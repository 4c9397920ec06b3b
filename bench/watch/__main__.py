"""``python -m bench.watch``: measures watches, on one private PostgreSQL, in one run.

It prints how late changes are told, what watches cost, and whether the targets are met.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC would log the processes that are started here
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # the processes started here are other programs

import argparse
import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop

from bench.watch.report import page
from bench.watch.run import PARTS, run
from bench.watch.sizes import FULL, QUICK

PAGE = Path(__file__).parents[1] / "WATCH.md"


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.watch", description=__doc__)
    parser.add_argument("--rounds", type=int, help="measured after a warm-up [7, with --quick 1]")
    parser.add_argument("--quick", action="store_true", help="a smoke test: few watches, meaningless figures")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="measure only these")
    parser.add_argument("--write", action="store_true", help="write bench/WATCH.md")
    flags = parser.parse_args()
    if flags.write and (flags.quick or set(flags.only) != set(PARTS)):
        parser.error("--write needs all figures: not --quick and not --only")
    flags.rounds = flags.rounds or (1 if flags.quick else 7)
    return flags


def main() -> None:
    """Measures, prints, and writes the page if it is asked to."""
    flags = arguments()
    with TemporaryDirectory() as name, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        folder = Path(name)
        folder.chmod(0o711)  # under root, PostgreSQL runs as another user
        found = runner.run(run(folder, QUICK if flags.quick else FULL, flags.rounds, flags.only))
    text = page(found)
    print(text)
    if flags.write:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
