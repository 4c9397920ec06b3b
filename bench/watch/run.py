"""A run: every measurement in every round, so that a slow minute affects all of them alike."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.results import conditions
from bench.turns import in_turn
from bench.watch.append_cost import Cost, measure_costs
from bench.watch.delays import Sample, measure_cell
from bench.watch.fan_out import FanOut, measure_fan_out
from bench.watch.holding import Held, measure_held
from bench.watch.scene import Scene, opened_scene
from bench.watch.sizes import Cell, Sizes

DELAYS, COST, FAN_OUT, MEMORY, MANY = PARTS = ("delays", "cost", "fan-out", "memory", "many")


@dataclass
class Measurements:
    """What a run has measured.

    Attributes:
        delays: The rounds of each cell.
        costs: The passes over the variants of the closed loop.
        fan_outs: The appends of each round.
        held: Idle watches on a fresh server, in each round.
        many: Many watches, held over time.
        warnings: What makes figures doubtful.
        conditions: As of `bench.results.conditions`.
    """

    sizes: Sizes
    rounds: int
    delays: dict[Cell, list[Sample]] = field(default_factory=dict)
    costs: list[dict[str, Cost]] = field(default_factory=list)
    fan_outs: list[Sequence[FanOut]] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    many: Held | None = None
    warnings: Sequence[str] = ()
    conditions: dict[str, Any] = field(default_factory=dict)


class Run:
    """Measures, round by round.

    Args:
        scene: What runs.
        sizes: How much is measured.
        parts: Which of `PARTS`.
    """

    def __init__(self, scene: Scene, sizes: Sizes, parts: Collection[str]) -> None:
        self._scene, self._sizes, self._parts = scene, sizes, parts
        self._conversations: list[str] = []

    async def measure(self, rounds: int) -> Measurements:
        """Measures so many rounds, after one that does not count."""
        found = Measurements(self._sizes, rounds, conditions=await conditions(self._scene.postgres))
        self._conversations = await self._scene.conversations(self._sizes.conversations)
        print("warming up", flush=True)
        short = replace(self._sizes, seconds=self._sizes.seconds / 3, passes=1, fan_outs=1)
        await self._round(Measurements(short, 1), 0)
        self._scene.warnings.clear()
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", flush=True)
            await self._round(found, number)
        if MANY in self._parts:
            print(f"holding {self._sizes.many:,} watches", flush=True)
            many = await self._scene.conversations(self._sizes.many)
            found.many = await measure_held(self._scene, many, self._sizes, windows=rounds)
        found.warnings = [text for _, text in sorted(self._scene.warnings.items())]
        return found

    async def _round(self, found: Measurements, number: int) -> None:
        scene, sizes, conversations = self._scene, found.sizes, self._conversations
        if DELAYS in self._parts:
            await self._cells(found, number)
        if COST in self._parts:
            for turn in range(sizes.passes):
                found.costs.append(await measure_costs(scene, conversations, sizes, number * sizes.passes + turn))
        if FAN_OUT in self._parts:
            found.fan_outs.append(await measure_fan_out(scene, conversations[0], sizes))
        if MEMORY in self._parts:
            found.held.append(await measure_held(scene, conversations[: sizes.idle], sizes))

    async def _cells(self, found: Measurements, number: int) -> None:
        cells = list(found.sizes.cells())
        for place, cell in enumerate(in_turn(cells, number)):
            seed = number * len(cells) + place
            sample = await measure_cell(self._scene, cell, self._conversations, found.sizes, seed)
            found.delays.setdefault(cell, []).append(sample)


async def run(folder: Path, sizes: Sizes, rounds: int, parts: Collection[str]) -> Measurements:
    """Starts what is needed in a folder, and measures."""
    async with opened_scene(folder, sizes.quiet) as scene:
        return await Run(scene, sizes, parts).measure(rounds)
