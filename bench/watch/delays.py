"""How late items are told while others append by the clock, and what that takes."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.watch.appenders import Call
from bench.watch.doubts import doubts
from bench.watch.scene import Scene
from bench.watch.sizes import Cell, Sizes
from bench.watch.usage import Usage
from bench.watch.watchers import Arrival

_PATIENCE_SECONDS = 30.0  # for the last item to arrive


class ChangesLost(Exception):
    """Items whose appends were answered have not been told."""


@dataclass(frozen=True)
class Sample:
    """A round of one cell.

    Attributes:
        after_answer: Milliseconds from the answer of an append to its arrival at the watch; negative if it came first.
        after_sending: Milliseconds from sending the append to its arrival.
        per_second: Appends that were answered.
        failed: How many were not, by the status code they ended with.
        usage: CPU time.
    """

    after_answer: Sequence[float]
    after_sending: Sequence[float]
    per_second: float
    failed: Mapping[str, int]
    usage: Usage


async def measure_cell(scene: Scene, cell: Cell, conversations: Sequence[str], sizes: Sizes, seed: int) -> Sample:
    """Measures one round of one cell.

    Raises:
        ChangesLost: Not everything was told.
    """
    written = conversations[: cell.watches or sizes.unwatched]
    async with scene.watched(conversations[: cell.watches]):
        meter = scene.meter()
        calls, failed, late = await _append(scene, cell, written, sizes.seconds, seed)
        appended = meter.read().seconds
        arrivals = await _take(scene, calls) if cell.watches else []
        usage = meter.read()
    answer, sending = join(calls, arrivals) if cell.watches else ([], [])
    sample = Sample(answer, sending, len(calls) / appended, failed, usage)
    lags = [load.lag for load, is_used in ((scene.watchers, cell.watches), (scene.appenders, cell.rate)) if is_used]
    scene.warnings.update(doubts(cell, usage, max(late, *lags, 0.0), sample.per_second, failed))
    return sample


async def _append(
    scene: Scene, cell: Cell, conversations: Sequence[str], seconds: float, seed: int
) -> tuple[list[Call], dict[str, int], float]:
    if not cell.rate:
        await asyncio.sleep(seconds)
        return [], {}, 0.0
    server = scene.other if cell.is_other else scene.holder
    found = await scene.appenders.ask(
        "open_loop",
        address=server.address,
        conversations=conversations,
        rate=cell.rate,
        seconds=seconds,
        seed=seed,
    )
    return found["calls"], found["failed"], found["late"]


async def _take(scene: Scene, calls: Sequence[Call]) -> list[Arrival]:
    """What has arrived once every call has. Items of appends that failed may arrive too: they can have been made."""
    arrivals: list[Arrival] = []
    missing, until = {(number, sequence) for number, sequence, _, _ in calls}, time.monotonic() + _PATIENCE_SECONDS
    while missing and (left := until - time.monotonic()) > 0:
        found = await scene.watchers.ask("take", expected=len(missing), seconds=left)
        missing -= {(number, sequence) for number, sequence, _ in found}
        arrivals += found
    return arrivals


def join(calls: Sequence[Call], arrivals: Sequence[Arrival]) -> tuple[list[float], list[float]]:
    """Returns milliseconds from the answer and from sending of each append to its arrival.

    Raises:
        ChangesLost: An item did not arrive.
    """
    arrived = {(number, sequence): at for number, sequence, at in arrivals}
    missing = sum((number, sequence) not in arrived for number, sequence, _, _ in calls)
    if missing:
        raise ChangesLost(f"{missing} of {len(calls)} items have not been told {_PATIENCE_SECONDS:.0f} s later.")
    pairs = [(arrived[number, sequence], sent, answered) for number, sequence, sent, answered in calls]
    return [(at - answered) / 1e6 for at, _, answered in pairs], [(at - sent) / 1e6 for at, sent, _ in pairs]
