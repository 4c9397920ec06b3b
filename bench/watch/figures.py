"""A figure of every round, and the target that it is held to."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Figure:
    """What was measured.

    Attributes:
        values: One of each round or pass.
        digits: Behind the point, in tables.
        target: The most that the median may be.
    """

    values: Sequence[float]
    digits: int = 1
    target: float | None = None

    @property
    def median(self) -> float:
        """Over the rounds."""
        return median(self.values)

    @property
    def is_met(self) -> bool:
        """Whether the median is within the target, if there is one."""
        return self.target is None or self.median <= self.target

    @property
    def verdict(self) -> str:
        """The target, and whether it is met; nothing without one."""
        if self.target is None:
            return ""
        within = sum(value <= self.target for value in self.values)
        return f"≤ {self.target:g}: {'met' if self.is_met else 'MISSED'} ({within} of {len(self.values)})"

    def __str__(self) -> str:
        least, most = (f"{value:,.{self.digits}f}" for value in (min(self.values), max(self.values)))
        return f"{self.median:,.{self.digits}f} ({least} … {most})"
