"""What an append costs beside watches and with the log of changes: server and PostgreSQL, in a closed loop."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from bench.turns import in_turn
from bench.watch.delays import ChangesLost
from bench.watch.doubts import doubt_others
from bench.watch.scene import Scene
from bench.watch.sizes import Sizes
from server.store import change_log

ALONE, IDLE, WATCHED, LOGGED = "no watches", "idle watches", "every append watched", "log of changes on"
VARIANTS = (ALONE, IDLE, WATCHED, LOGGED)
_FIRST = 0.1  # of the appends: made before, so that statements are planned again when the log is turned on or off
_KEEP = timedelta(hours=1)
_PATIENCE_SECONDS = 20.0  # for the last item to arrive


@dataclass(frozen=True)
class Cost:
    """CPU microseconds of an append."""

    server: float
    postgres: float

    @property
    def total(self) -> float:
        """Of both."""
        return self.server + self.postgres


async def measure_costs(scene: Scene, conversations: Sequence[str], sizes: Sizes, turn: int) -> dict[str, Cost]:
    """Measures every variant once, in another order each turn.

    Raises:
        ChangesLost: Not every append that was watched was told.
    """
    return {variant: await _measure(scene, variant, conversations, sizes) for variant in in_turn(VARIANTS, turn)}


async def _measure(scene: Scene, variant: str, conversations: Sequence[str], sizes: Sizes) -> Cost:
    written, idle = conversations[: sizes.callers], conversations[sizes.callers : sizes.callers + sizes.idle]
    watched = {IDLE: idle, WATCHED: written}.get(variant, ())
    async with _logged(scene.url, is_on=variant == LOGGED), scene.watched(watched):
        await _append(scene, variant, written, round(sizes.appends * _FIRST))
        meter = scene.meter()
        appends = await _append(scene, variant, written, sizes.appends)
        usage = meter.read()
    scene.warnings.update(doubt_others("the cost of an append", usage))
    return Cost(usage.server / appends * 1e6, usage.postgres / appends * 1e6)


@asynccontextmanager
async def _logged(url: str, *, is_on: bool) -> AsyncIterator[None]:
    """Keeps changes meanwhile, if ``is_on``."""
    if not is_on:
        yield
        return
    await change_log.turn_on(url, _KEEP)
    try:
        yield
    finally:
        await change_log.turn_off(url)


async def _append(scene: Scene, variant: str, conversations: Sequence[str], appends: int) -> int:
    """Appends about so many items, each of which has been told if it is watched; returns how many."""
    made = int(
        await scene.appenders.ask(
            "closed_loop", address=scene.holder.address, conversations=conversations, appends=appends
        )
    )
    if variant == WATCHED:
        arrivals = await scene.watchers.ask("take", expected=made, seconds=_PATIENCE_SECONDS)
        if len(arrivals) != made:
            raise ChangesLost(f"{len(arrivals)} of {made} items arrived.")
    return made
