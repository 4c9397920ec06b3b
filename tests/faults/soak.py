"""The same work for minutes: memory does not grow with it."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from tests.faults.scene import Scene

Fault = Callable[[Scene], AbstractAsyncContextManager[None]]

_MIB = 1024 * 1024
MOST_GROWTH = 2.0  # MiB a minute, once caches are warm
_WARM = 1 / 3  # of the time, in which caches fill


@asynccontextmanager
async def soaked(scene: Scene) -> AsyncIterator[None]:
    """Nothing is broken; how memory grows is judged at the end."""
    began = time.monotonic()
    yield
    ended = time.monotonic()
    warm = began + (ended - began) * _WARM
    samples = [each for watch in scene.watches for each in watch.memory if each[0] >= warm]
    growth = slope(samples) * 60 / _MIB
    scene.facts["memory"] = f"{samples[0][1] // _MIB} → {samples[-1][1] // _MIB} MiB, {growth:+.2f} MiB a minute"
    scene.expect(growth <= MOST_GROWTH, f"memory grows by {growth:.2f} MiB a minute")


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """The rise of a straight line through ``samples``, by least squares."""
    count = len(samples)
    mean_x = sum(x for x, _ in samples) / count
    mean_y = sum(y for _, y in samples) / count
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread
