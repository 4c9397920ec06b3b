"""Comparisons of a filter, and their values as the parameters of one statement for all filters.

Whatever comparisons a filter has, and in whatever order, the statement is the same: a caller
cannot have new ones compiled.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

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


def filters_owner(comparisons: Iterable[Comparison]) -> bool:
    """Whether all that the comparisons let through is of one owner."""
    return any(each.name == "owner" and each.operator == "=" for each in comparisons)


def filters_source(comparisons: Iterable[Comparison]) -> bool:
    """Whether all that they let through are forks of one conversation."""
    return any(each.name == "forked_from" for each in comparisons)


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


def conversation_filter(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The parameters of a filtered list of conversations."""
    start, end = time_range(comparisons)
    values: dict[str, Any] = {"start_time": start, "end_time": end}
    for name in ("owners", "other_owners", "metadata", "other_metadata", "with_attributes", "other_attributes"):
        values[name] = []
    values["sources"] = [each.value for each in comparisons if each.name == "forked_from"]
    for comparison in comparisons:
        equal = comparison.operator == "="
        match comparison.name:
            case "owner":
                values["owners" if equal else "other_owners"].append(comparison.value)
            case "metadata":
                pair = json.dumps({comparison.key: comparison.value}, ensure_ascii=False)
                values["metadata" if equal else "other_metadata"].append(pair)
            case "attributes":
                pair = f"{comparison.key}={comparison.value}"
                values["with_attributes" if equal else "other_attributes"].append(pair)
    values["filter_owner"] = next(iter(values["owners"]), "")
    values["filter_source"] = next(iter(values["sources"]), "")
    return values


def item_filter(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The parameters of a filtered list of items."""
    start, end = time_range(comparisons)
    values: dict[str, Any] = {"start_time": start, "end_time": end}
    for name in ("type", "role", "status"):
        for suffix, operator in (("is", "="), ("is_not", "!=")):
            same = [each.value for each in comparisons if (each.name, each.operator) == (name, operator)]
            values[f"{name}_{suffix}"] = same
    return values
