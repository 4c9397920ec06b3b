"""Lists of what lies in index ranges, for a distributed database.

A single server reads the front of each range in one statement, which Citus does not take. So each kind of range is a
statement, at each worker if it reads no other table, and their pages are merged here.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import asyncpg

from server.authorization.index_ranges import IndexRanges
from server.authorization.permission import Permission
from server.store.sql.bulk_deletes import Matching, find_in
from server.store.sql.conversations import FIXED_BYTES, RangeKind, range_page
from server.store.sql.statement import Statement
from server.store.worker_lists import WorkerLists


async def read_ranges(
    lists: WorkerLists, read: Permission, ranges: IndexRanges, values: Mapping[str, Any], shape: Mapping[str, Any]
) -> list[asyncpg.Record | dict[str, Any]]:
    """Returns the first ``count`` conversations behind a position, in the order of lists.

    Args:
        lists: Of a database that is distributed.
        read: To read a conversation.
        ranges: All that it covers lies in them.
        values: Of the parameters, ``count`` among them.
        shape: The arguments ``filters_owner`` and ``descending`` of `range_page`.
    """

    def statement_for(kind: RangeKind) -> Statement:
        return range_page(read, kind, **shape)

    pages = [await lists.fetch(statement_for(kind), {**values, **extra}) for kind, extra in _kinds(ranges)]
    return _page(pages, values, descending=shape["descending"])


async def read_all(
    lists: WorkerLists, statement: Statement, values: Mapping[str, Any], *, descending: bool
) -> list[asyncpg.Record | dict[str, Any]]:
    """Returns the rows of ``statement``, a page of conversations, as `read_ranges` does."""
    return _page([await lists.fetch(statement, values)], values, descending=descending)


async def read_matching(
    lists: WorkerLists, matching: Matching, ranges: IndexRanges, values: Mapping[str, Any]
) -> list[asyncpg.Record]:
    """Returns the id and create_time of the first ``count`` that match, as `read_ranges` does."""
    pages = [await lists.fetch(find_in(matching, kind), {**values, **extra}) for kind, extra in _kinds(ranges)]
    return _merge(pages, values, descending=False)


def _page(
    pages: Iterable[list[asyncpg.Record]], values: Mapping[str, Any], *, descending: bool
) -> list[asyncpg.Record | dict[str, Any]]:
    # One without its maps had no room in the page of its part, so that it has none in the merged one either.
    return list(_fitting(_merge(pages, values, descending=descending), values["page_bytes"]))


def _merge(
    pages: Iterable[list[asyncpg.Record]], values: Mapping[str, Any], *, descending: bool
) -> list[asyncpg.Record]:
    found = {row["id"]: row for page in pages for row in page}
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
