"""Fills in the authors of items that were stored before there was a column for them (docs/adr/0037).

The author stands in the body, as `Item.created_by`, and its field is the last one. So PostgreSQL can tell the items
that the owner of the conversation appended, nearly all, by the end of their bodies; only the others are sent here.
Steps are committed with how far they came, so whoever is interrupted goes on there, and two do no harm.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import asyncpg
from conversations.v1.item_pb2 import Item
from google.protobuf.message import DecodeError

from server.store.steps import count_of

_STEP = 1_000  # items that one step looks at
_SENT_BYTES = 64 * 1024  # a larger body is sent alone

_TAG = Item.DESCRIPTOR.fields_by_name["created_by"].number << 3 | 2  # of a field that has its length in front
_ONE_BYTE = 127  # bytes, of which the length takes one
_MOST_BYTES = 256 + 3  # of the field

_PROGRESS = "SELECT conversation_id, sequence FROM author_progress WHERE NOT is_done FOR UPDATE"
# Of the next items: the last key, and those that somebody else may have appended. Those of the owner end with the field
# that names the owner; a longer name could end with the same bytes, if the byte of the tag is in it.
_FIND = f"""
    WITH scanned AS (
        SELECT conversation_id, sequence, author, body FROM items WHERE (conversation_id, sequence) > ($1, $2)
        ORDER BY conversation_id, sequence LIMIT $3
    ), owned AS (
        SELECT scanned.*, owner, octet_length(body) AS size, convert_to(owner, 'UTF8') AS name
        FROM scanned JOIN conversations ON id = conversation_id WHERE author = '' AND body <> ''
    ), split AS (
        SELECT owned.*, size - octet_length(name) - 2 AS rest, greatest(1, size - {_MOST_BYTES} + 1) AS start,
            CASE WHEN octet_length(name) BETWEEN 1 AND {_ONE_BYTE}
                THEN set_byte('\\x{_TAG:02x}00', 1, octet_length(name)) || name END AS field
        FROM owned
    )
    SELECT conversation_id, sequence, NULL AS owner, NULL::bytea AS body FROM (
        SELECT conversation_id, sequence FROM scanned ORDER BY 1 DESC, 2 DESC LIMIT 1) AS last
    UNION ALL
    SELECT conversation_id, sequence, owner, CASE WHEN size <= {_SENT_BYTES} THEN body END
    FROM split WHERE NOT coalesce(rest >= 0 AND substring(body FROM rest + 1) = field
        AND position('\\x{_TAG:02x}'::bytea IN substring(body FROM start FOR rest - start + 1)) = 0, false)"""  # noqa: S608
_BODY = "SELECT body FROM items WHERE conversation_id = $1 AND sequence = $2"
_FILL = """
    UPDATE items SET author = given.author
    FROM unnest($1::text[], $2::bigint[], $3::text[]) AS given (id, place, author)
    WHERE conversation_id = given.id AND sequence = given.place AND delete_time IS NULL"""
_NOTE = "UPDATE author_progress SET conversation_id = $1, sequence = $2"
_END = "UPDATE author_progress SET is_done = true"


class _Author(NamedTuple):
    """Of an item."""

    conversation_id: str
    sequence: int
    author: str


async def fill_in_authors(connection: asyncpg.Connection) -> int:
    """Fills in what is left to fill in; returns how many items got an author.

    Args:
        connection: With the settings of `server.store.steps.LOOKUPS`, and not in a transaction.
    """
    total = 0
    while True:
        async with connection.transaction():
            progress = await connection.fetchrow(_PROGRESS)
            if progress is None:
                return total
            total += await _fill_step(connection, *progress)


async def _fill_step(connection: asyncpg.Connection, *after: object) -> int:
    found = await connection.fetch(_FIND, *after, _STEP)
    if not found:
        await connection.execute(_END)
        return 0
    last, *foreign = found
    authors = [each for row in foreign if (each := await _author_of(connection, row)).author not in ("", row["owner"])]
    await connection.execute(_NOTE, last["conversation_id"], last["sequence"])
    return await _fill(connection, authors)


async def _author_of(connection: asyncpg.Connection, row: asyncpg.Record) -> _Author:
    key = (row["conversation_id"], row["sequence"])
    body = row["body"]
    if body is None:
        body = await connection.fetchval(_BODY, *key)
    try:
        return _Author(*key, Item.FromString(body).created_by)
    except DecodeError:  # nobody can read it either
        return _Author(*key, "")


async def _fill(connection: asyncpg.Connection, authors: Sequence[_Author]) -> int:
    if not authors:
        return 0
    columns: Iterable[Sequence[object]] = zip(*authors, strict=True)
    return count_of(await connection.execute(_FILL, *columns))
