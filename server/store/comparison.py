"""Comparisons of a filter, and their values as the parameters of one statement for all filters.

Whatever comparisons a filter has, and in whatever order, the statement is the same: a caller
cannot have new ones compiled.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

LATEST, EARLIEST = datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)
_TICK = timedelta(microseconds=1)  # PostgreSQL knows no smaller one


@dataclass(frozen=True)
class Comparison:
    """A comparison of a column with a value.

    Attributes:
        name: A field of the filter language, such as ``metadata``.
        operator: As in SQL.
        key: Of an entry, for fields that are maps; else empty.
        value: A string, or a time in UTC.
    """

    name: str
    operator: str
    key: str
    value: str | datetime


def time_range(comparisons: Iterable[Comparison]) -> tuple[datetime, datetime]:
    """The first create_time that the comparisons let through, and the first that they no longer do."""
    start, end = EARLIEST, LATEST
    for comparison in comparisons:
        moment = comparison.value
        if not isinstance(moment, datetime):
            continue
        after = min(moment, LATEST - _TICK) + _TICK
        match comparison.operator:
            case ">":
                start = max(start, after)
            case ">=":
                start = max(start, moment)
            case "<":
                end = min(end, moment)
            case "<=":
                end = min(end, after)
    return start, end
