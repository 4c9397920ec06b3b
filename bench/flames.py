"""Profiles the server under each workload: ``python -m bench.flames [--only WORD ...] [--seconds 8]``.

It needs py-spy. For each workload it writes a flame graph into ``docs/flames``, and for all of them the table
``docs/flames/README.md`` of where the CPU time of the server goes. py-spy samples the main thread, with the frames of
C libraries. The other threads are gRPC's, and their CPU time comes from the kernel.
"""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # the processes started here are other programs

import argparse
import asyncio
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc.aio
import uvloop

from bench.cpu import family_seconds
from bench.grpc_target import GrpcTarget, ours
from bench.postgres import private_postgres
from bench.stacks import OTHER, PARTS, THREADS, Node, Stack, busy, shares, tree
from bench.window import perform
from bench.workloads import Workload, table

FOLDER = Path(__file__).parents[1] / "docs" / "flames"
_SAMPLES_A_SECOND = "100"
_ATTACH_SECONDS = 2.0
_TRIES = 5
_FEWEST = 200  # operations for enough samples
_LEAST = 0.004  # share of a box that is drawn
_WIDTH, _ROW, _LETTER = 1000, 17, 6.4  # pixels
_COLORS = {
    "gRPC transport": "#f4a261",
    "event loop": "#a8b0b8",
    "interceptors": "#e9c46a",
    "validation": "#8ecae6",
    "services": "#95d5b2",
    "store": "#52b788",
    "asyncpg": "#b79ced",
    "protobuf": "#f28482",
    OTHER: "#d9d9d9",
}


@dataclass(frozen=True)
class Profile:
    """What one workload made the server do."""

    workload: str
    microseconds: float  # of CPU a call, with the samples taken
    stacks: Counter[Stack]
    main: float  # the share of the main thread in the CPU time

    @property
    def path(self) -> Path:
        """The file of the flame graph."""
        return FOLDER / f"{re.sub('[^a-z0-9]+', '-', self.workload.lower()).strip('-')}.svg"


def _main_seconds(pid: int) -> float:
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


async def _prepared(target: GrpcTarget, workload: Workload) -> list[str]:
    """Prepares the workload; again when the service refuses calls that the halts of py-spy have made slow."""
    for _ in range(_TRIES):
        with suppress(grpc.aio.AioRpcError):
            return await workload.ready(target)
        await asyncio.sleep(1)
    return await workload.ready(target)


async def profiled(target: GrpcTarget, workload: Workload, seconds: float, folder: Path) -> Profile:
    """Samples the server while the workload runs; workloads that use up what was prepared run once, the others on."""
    if workload.each:
        workload = workload.paced(2)
    subjects, raw = await _prepared(target, workload), folder / "raw"
    spy = await asyncio.create_subprocess_exec(
        *("py-spy", "record", "--pid", str(target.pid), "--native", "--threads", "--rate", _SAMPLES_A_SECOND),
        *("--duration", "600", "--format", "raw", "--output", str(raw)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    await asyncio.sleep(_ATTACH_SECONDS)
    loop, calls = asyncio.get_running_loop(), 0
    began, all_before, main_before = loop.time(), family_seconds(target.pid), _main_seconds(target.pid)
    while not calls or (loop.time() - began < seconds and not workload.each):
        await perform(target, workload, subjects)
        calls += workload.count
    used, main = family_seconds(target.pid) - all_before, _main_seconds(target.pid) - main_before
    spy.send_signal(signal.SIGINT)
    await spy.wait()
    return Profile(workload.name, used / calls * 1e6, busy(raw.read_text().splitlines()), min(1.0, main / used))


def chosen() -> list[Workload]:
    """Returns the main workloads, without those that are over after a few operations."""
    return [each for each in table() if each.main and not (each.each and each.operations < _FEWEST)]


def svg(profile: Profile) -> str:
    """Returns the flame graph: callers above, a box as wide as its share; the full name is its tooltip."""
    boxes = list(_boxes(tree(profile.stacks, profile.main), 0.0, 0))
    height = (max(row for _, _, row in boxes) + 1) * _ROW + 52
    size = f'viewBox="0 0 {_WIDTH} {height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="4" y="15" font-size="14">{escape(profile.workload)}</text>',
        *_legend(),
        *(_drawn(node, left, row) for node, left, row in boxes),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _boxes(node: Node, left: float, row: int) -> Iterator[tuple[Node, float, int]]:
    yield node, left, row
    for each in sorted(node.below.values(), key=lambda below: -below.weight):
        if each.weight >= _LEAST:
            yield from _boxes(each, left, row + 1)
        left += each.weight


def _legend() -> Iterator[str]:
    for number, (part, color) in enumerate(_COLORS.items()):
        x = 4 + number * 110
        yield f'<rect x="{x}" y="24" width="10" height="10" fill="{color}"/><text x="{x + 14}" y="33">{part}</text>'


def _drawn(node: Node, left: float, row: int) -> str:
    x, y, width = left * _WIDTH, 44 + row * _ROW, node.weight * _WIDTH
    room = int((width - 6) / _LETTER)
    words = f"{node.name} {node.weight:.1%}"
    shown = node.name if len(node.name) <= room else node.name[: room - 1] + "…" if room > 3 else ""
    text = f'<text x="{x + 3:.1f}" y="{y + 12}">{escape(shown)}</text>' if shown else ""
    size = f'x="{x:.1f}" y="{y}" width="{max(0.5, width - 0.5):.1f}" height="{_ROW - 1}"'
    box = f'<rect {size} fill="{_COLORS[node.part]}"/>'
    return f"<g><title>{escape(words)}</title>{box}{text}</g>"


def page(profiles: Sequence[Profile]) -> str:
    """Returns the table: for each workload the share of each part in the CPU time of the server, in per cent."""
    parts = [THREADS, *(part for part, _ in reversed(PARTS)), OTHER]
    rows = ["| | " + " | ".join(parts) + " |", "|---" + "|--:" * len(parts) + "|"]
    for profile in profiles:
        found = shares(profile.stacks, profile.main)
        cells = " | ".join(f"{found.get(part, 0):.0%}".replace("%", "") for part in parts)
        rows.append(f"| [{profile.workload}]({profile.path.name}) | {cells} |")
    return (
        "# Flame graphs\n\nWritten by `python -m bench.flames`; do not edit. The table shows where the CPU time of the "
        "server goes, in per cent.\n[performance.md](../performance.md) tells how to read it.\n\n"
        + "\n".join(rows)
        + "\n"
    )


async def measure(workloads: Sequence[Workload], seconds: float) -> list[Profile]:
    """Profiles one server under each workload in turn."""
    profiles = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)
        async with private_postgres(folder) as postgres, ours(await postgres.database("ours"), folder) as target:
            for workload in workloads:
                await perform(target, workload, await _prepared(target, workload))  # fills pools and caches
                profiles.append(await profiled(target, workload, seconds, folder))
                told = (f"{part} {share:.0%}" for part, share in shares(profiles[-1].stacks, profiles[-1].main).items())
                print(f"{workload.name}: {', '.join(told)}", flush=True)
    return profiles


def main() -> None:
    """Reads the flags, measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="workloads whose names contain one")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each workload [8]")
    flags = parser.parse_args()
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    if shutil.which("py-spy") is None:
        sys.exit("py-spy is missing: `make flames` installs it.")
    workloads = [each for each in chosen() if any(word in each.name for word in flags.only)]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        profiles = runner.run(measure(workloads, flags.seconds))
    FOLDER.mkdir(parents=True, exist_ok=True)
    for profile in profiles:
        profile.path.write_text(svg(profile))
    if flags.only == [""]:
        (FOLDER / "README.md").write_text(page(profiles))
    print(f"written: {FOLDER}")


if __name__ == "__main__":
    main()
