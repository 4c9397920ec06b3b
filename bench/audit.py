"""Whether the order that concurrent appenders were promised is the order that is there."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise


@dataclass(frozen=True)
class Audit:
    """How often each thing happened that never may."""

    lost: int = 0  # acknowledged and not there
    duplicates: int = 0  # there, or acknowledged, once too often
    ties: int = 0  # two items in one place
    inversions: int = 0  # acknowledged one after the other and there the other way round, or listed so
    gaps: int = 0  # places without an item
    unknown: int = 0  # there and not acknowledged

    @property
    def clean(self) -> bool:
        """Whether none of it happened."""
        return not any(getattr(self, field.name) for field in fields(self))

    def __add__(self, other: "Audit") -> "Audit":
        return Audit(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def __str__(self) -> str:
        return ", ".join(f"{getattr(self, field.name)} {field.name}" for field in fields(self))


def audit(acknowledged: Sequence[Sequence[str]], listed: Sequence[tuple[int, str]]) -> Audit:
    """What went wrong.

    Args:
        acknowledged: For each appender, its items' ids in the order in which it learned of them.
        listed: Place, from 1, and id of every item, as the service lists them.
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
    """The same for a target that acknowledges without ids: only the number of items is known then."""
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
    """Places without an item, from the first possible one, 1 or what the target begins with."""
    return max(places) - min(1, *places) + 1 - len(set(places)) if places else 0


def _repeats(counted: Counter[str] | Counter[int]) -> int:
    return sum(times - 1 for times in counted.values())


def _descents(places: Sequence[int]) -> int:
    """Neighbours of which the later one is before the earlier."""
    return sum(later < earlier for earlier, later in pairwise(places))
