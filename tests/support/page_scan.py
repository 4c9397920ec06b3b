"""Finds text in the files of a PostgreSQL: in every tuple of every table, index and toast of a database."""

import struct
from collections.abc import Iterator

import asyncpg

_PAGE = 8192
_HEADER = struct.Struct("<8xHHHHHH4x")  # of it: checksum, flags, lower, upper, special, size and version
_HEADER_BYTES, _POINTER_BYTES = 24, 4
_RELATIONS = """
    SELECT oid::regclass::text AS name, pg_relation_filepath(oid) AS path FROM pg_class
    WHERE relkind IN ('r', 't', 'i', 'm') AND pg_relation_filepath(oid) IS NOT NULL"""


async def relations_with(connection: asyncpg.Connection, text: str) -> set[str]:
    """The names of tables, indexes and toasts with a tuple that has ``text``, live or dead; needs a superuser.

    Text that PostgreSQL has compressed is not found.
    """
    await connection.execute("CHECKPOINT")
    found = set()
    for row in await connection.fetch(_RELATIONS):
        content = await connection.fetchval("SELECT pg_read_binary_file($1, true)", row["path"])
        if content and text.encode() in content and any(text.encode() in each for each in _tuples(content)):
            found.add(row["name"])
    return found


def _tuples(content: bytes) -> Iterator[bytes]:
    """Yields the tuples that the line pointers of all pages lead to; what lies in holes between them is no tuple."""
    for start in range(0, len(content), _PAGE):
        page = content[start : start + _PAGE]
        lower = _HEADER.unpack_from(page)[2]
        for at in range(_HEADER_BYTES, lower, _POINTER_BYTES):
            (pointer,) = struct.unpack_from("<I", page, at)
            offset, length = pointer & 0x7FFF, pointer >> 17
            yield page[offset : offset + length]
