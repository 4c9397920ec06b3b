"""Where a list finds what a caller may see: a few short ranges of indexes instead of the whole tenant."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from server.policy.plan import Conditional, Plan
from server.policy.residual import And, HasId, IdMatches, Not, Or, Owned, Residual, Shares, Unowned


@dataclass(frozen=True)
class IndexRanges:
    """Every row that a residual lets through has one of these owners, attributes or ids."""

    owners: frozenset[str] = frozenset()  # '' for rows of nobody
    attributes: frozenset[str] = frozenset()  # name=value
    ids: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        """How many ranges there are to read."""
        return len(self.owners) + len(self.attributes) + len(self.ids)

    def values(self) -> dict[str, Any]:
        """The parameters of the ranges."""
        return {
            "cover_owners": list(self.owners),
            "cover_attributes": list(self.attributes),
            "cover_ids": list(self.ids),
        }


def index_ranges(plan: Plan) -> IndexRanges | None:
    """The ranges that hold all that ``plan`` lets through; None when only the tenant as a whole does."""
    return _cover(plan.residual) if isinstance(plan, Conditional) else None


def _cover(residual: Residual) -> IndexRanges | None:
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
            return min((each for each in map(_cover, parts) if each), key=lambda each: each.size, default=None)
        case Or(parts):
            return _union(map(_cover, parts))
        case Not() | IdMatches():
            return None


def _union(covers: Iterable[IndexRanges | None]) -> IndexRanges | None:
    """All of ``covers`` together; None if one of them is unbounded."""
    owners: set[str] = set()
    attributes: set[str] = set()
    ids: set[str] = set()
    for each in covers:
        if each is None:
            return None
        owners |= each.owners
        attributes |= each.attributes
        ids |= each.ids
    return IndexRanges(frozenset(owners), frozenset(attributes), frozenset(ids))
