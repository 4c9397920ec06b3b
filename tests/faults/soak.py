"""The same work for minutes: memory does not grow with it."""

import time
from bisect import bisect
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from tests.faults.scene import Scene

Fault = Callable[[Scene], AbstractAsyncContextManager[None]]

_MIB = 1024 * 1024
CALLS = 10_000
MOST_GROWTH = 1.0  # MiB in so many calls, once caches are warm
_WARM = 1 / 3  # of the time, in which caches fill
_PAUSE = 0.005  # seconds between two calls of one caller


@asynccontextmanager
async def soaked(scene: Scene) -> AsyncIterator[None]:
    """Nothing is broken; how memory grows is judged at the end."""
    usual, scene.workload.pause = scene.workload.pause, _PAUSE
    began = time.monotonic()
    yield
    ended = time.monotonic()
    scene.workload.pause = usual
    warm = began + (ended - began) * _WARM
    done = sorted(each.ended for each in scene.workload.history.attempts if each.ended)
    samples = [(bisect(done, at) / CALLS, size) for watch in scene.watches for at, size in watch.memory if at >= warm]
    growth = slope(samples) / _MIB
    scene.facts["memory"] = f"{samples[0][1] // _MIB} → {samples[-1][1] // _MIB} MiB"
    scene.facts["growth"] = f"{growth:+.2f} MiB in {CALLS:,} calls"
    scene.expect(growth <= MOST_GROWTH, f"memory grows by {growth:.2f} MiB in {CALLS:,} calls")


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """The rise of a straight line through ``samples``, by least squares."""
    count = len(samples)
    mean_x = sum(x for x, _ in samples) / count
    mean_y = sum(y for _, y in samples) / count
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread
