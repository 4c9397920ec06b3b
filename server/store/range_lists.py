"""Lists of what lies in index ranges, for a distributed database.

A single server reads the front of each range in one statement, which Citus does not take. So each kind of range is a
statement, and their pages are merged here.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import asyncpg

from server.authorization.index_ranges import IndexRanges
from server.authorization.permission import Permission
from server.store.connection.database import Database
from server.store.sql.bulk_deletes import Matching, find_in
from server.store.sql.conversations import FIXED_BYTES, RangeKind, range_page
from server.store.sql.statement import Statement


async def read_ranges(
    database: Database, read: Permission, ranges: IndexRanges, values: Mapping[str, Any], shape: Mapping[str, Any]
) -> list[asyncpg.Record | dict[str, Any]]:
    """Returns the first ``count`` conversations behind a position, in the order of lists.

    Args:
        database: That is distributed.
        read: To read a conversation.
        ranges: All that it covers lies in them.
        values: Of the parameters, ``count`` among them.
        shape: The arguments ``filters_owner`` and ``descending`` of `range_page`.
    """

    def statement_for(kind: RangeKind) -> Statement:
        return range_page(read, kind, **shape)

    # One without its maps had no room in the page of its kind, so that it has none in the merged one either.
    rows = await _merge(database, statement_for, ranges, values, descending=shape["descending"])
    return list(_fitting(rows, values["page_bytes"]))


async def read_matching(
    database: Database, matching: Matching, ranges: IndexRanges, values: Mapping[str, Any]
) -> list[asyncpg.Record]:
    """Returns the id and create_time of the first ``count`` that match, as `read_ranges` does."""
    return await _merge(database, partial(find_in, matching), ranges, values, descending=False)


async def _merge(
    database: Database,
    statement_for: Callable[[RangeKind], Statement],
    ranges: IndexRanges,
    values: Mapping[str, Any],
    *,
    descending: bool,
) -> list[asyncpg.Record]:
    found: dict[str, asyncpg.Record] = {}
    for kind, extra in _kinds(ranges):
        for row in await database.fetch(statement_for(kind), {**values, **extra}):
            found.setdefault(row["id"], row)
    return sorted(found.values(), key=_place, reverse=descending)[: values["count"]]


def _kinds(ranges: IndexRanges) -> Iterator[tuple[RangeKind, dict[str, Any]]]:
    """Yields the kinds of ranges that there are, with the parameters that `IndexRanges.values` lacks."""
    if len(ranges.owners) == 1:
        yield "owner", {"cover_owner": next(iter(ranges.owners))}
    elif ranges.owners:
        yield "owners", {}
    if ranges.attributes:
        yield "attributes", {}
    if ranges.ids:
        yield "ids", {}


def _place(row: asyncpg.Record) -> tuple[Any, str]:
    return row["create_time"], row["id"]


def _fitting(rows: list[asyncpg.Record], page_bytes: int) -> Iterator[asyncpg.Record | dict[str, Any]]:
    """Yields ``rows``, without maps from where they have more than ``page_bytes`` together; the first always has."""
    total = 0
    for number, row in enumerate(rows):
        if row["metadata"] is None:
            total = page_bytes + 1
        else:
            maps = len(row["metadata"].encode()) + sum(len(each.encode()) for each in row["attributes"])
            total += maps + FIXED_BYTES
        yield row if total <= page_bytes or (not number and row["metadata"] is not None) else {**row, "metadata": None}
