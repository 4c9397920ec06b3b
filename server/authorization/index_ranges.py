"""Index ranges: where a list finds what its caller may see, without reading the whole tenant (ADR 7)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from server.policy.plan import Conditional, Plan
from server.policy.residual import And, HasId, IdMatches, Not, Or, Owned, Residual, Shares, Unowned


@dataclass(frozen=True)
class IndexRanges:
    """Every row that a residual permits has one of these owners, attributes or ids.

    Attributes:
        owners: '' for unowned rows.
        attributes: Each ``name=value``.
    """

    owners: frozenset[str] = frozenset()
    attributes: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        """The number of ranges to read."""
        return len(self.owners) + len(self.attributes) + len(self.ids)

    def values(self) -> dict[str, Any]:
        """Returns the SQL parameters of the ranges."""
        return {
            "cover_owners": list(self.owners),
            "cover_attributes": list(self.attributes),
            "cover_ids": list(self.ids),
        }


def index_ranges(plan: Plan) -> IndexRanges | None:
    """Returns ranges that contain every row ``plan`` permits, or None if only the whole tenant does."""
    return _ranges_of(plan.residual) if isinstance(plan, Conditional) else None


def _ranges_of(residual: Residual) -> IndexRanges | None:
    match residual:
        case Owned(by):
            return IndexRanges(owners=frozenset((by,)))
        case Unowned():
            return IndexRanges(owners=frozenset(("",)))
        case Shares(pairs):
            return IndexRanges(attributes=frozenset(pairs))
        case HasId(ids):
            return IndexRanges(ids=frozenset(ids))
        case And(parts):
            return min((each for each in map(_ranges_of, parts) if each), key=lambda each: each.size, default=None)
        case Or(parts):
            return _union(map(_ranges_of, parts))
        case Not() | IdMatches():
            return None


def _union(ranges: Iterable[IndexRanges | None]) -> IndexRanges | None:
    """All of ``ranges`` together; None if one of them is unbounded."""
    owners: set[str] = set()
    attributes: set[str] = set()
    ids: set[str] = set()
    for each in ranges:
        if each is None:
            return None
        owners |= each.owners
        attributes |= each.attributes
        ids |= each.ids
    return IndexRanges(frozenset(owners), frozenset(attributes), frozenset(ids))
