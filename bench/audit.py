"""Compares what concurrent appenders were acknowledged with what is stored."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise


@dataclass(frozen=True)
class Audit:
    """Counts of each kind of fault."""

    lost: int = 0  # acknowledged, but not listed
    duplicates: int = 0  # additional occurrences of an id, listed or acknowledged
    ties: int = 0  # additional items at the position of another
    inversions: int = 0  # acknowledged in one order, but positioned or listed in the other
    gaps: int = 0  # positions without an item
    unknown: int = 0  # listed, but never acknowledged

    @property
    def clean(self) -> bool:
        """Whether there were no faults."""
        return not any(getattr(self, field.name) for field in fields(self))

    def __add__(self, other: "Audit") -> "Audit":
        return Audit(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def __str__(self) -> str:
        return ", ".join(f"{getattr(self, field.name)} {field.name}" for field in fields(self))


def audit(acknowledged: Sequence[Sequence[str]], listed: Sequence[tuple[int, str]]) -> Audit:
    """Counts the faults of a run.

    Args:
        acknowledged: For each appender, the ids of its items in the order in which it received them.
        listed: Position, from 1, and id of every item, in the order in which the service lists them.
    """
    told, there = Counter(name for names in acknowledged for name in names), Counter(name for _, name in listed)
    places = [place for place, _ in listed]
    place_of = {name: place for place, name in listed}
    promised = [[place_of[name] for name in names if name in place_of] for names in acknowledged]
    return Audit(
        lost=len(told.keys() - there.keys()),
        duplicates=_repeats(told) + _repeats(there),
        ties=_repeats(Counter(places)),
        inversions=_descents(places) + sum(map(_descents, promised)),
        gaps=_gaps(places),
        unknown=len(there.keys() - told.keys()),
    )


def audit_of_count(expected: int, listed: Sequence[tuple[int, str]]) -> Audit:
    """Counts the faults for a target that acknowledges without ids, so that only the number of items is known."""
    there, places = Counter(name for _, name in listed), [place for place, _ in listed]
    return Audit(
        lost=max(0, expected - len(there)),
        duplicates=_repeats(there),
        ties=_repeats(Counter(places)),
        inversions=_descents(places),
        gaps=_gaps(places),
        unknown=max(0, len(there) - expected),
    )


def _gaps(places: Sequence[int]) -> int:
    """Counts positions without an item, beginning at 1 or at the first position that the target uses."""
    return max(places) - min(1, *places) + 1 - len(set(places)) if places else 0


def _repeats(counted: Counter[str] | Counter[int]) -> int:
    return sum(times - 1 for times in counted.values())


def _descents(places: Sequence[int]) -> int:
    """Counts neighbours in the wrong order."""
    return sum(later < earlier for earlier, later in pairwise(places))
