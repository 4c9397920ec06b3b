"""A histogram with fixed upper bounds; not thread-safe, for one event loop."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate


class Histogram:
    """Counts values by the first bound that is not below them, and adds them up.

    Args:
        bounds: In ascending order.
    """

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Counts a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self._counts)

    def up_to(self) -> Iterator[tuple[float, int]]:
        """Yields each bound, infinity last, with the number of values that are not above it."""
        return zip((*self._bounds, float("inf")), accumulate(self._counts), strict=True)
