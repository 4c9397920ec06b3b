"""Reads the conversations in the database of a Llama Stack or OGX, of either schema; never writes to it.

| schema | key of `conversation_items` | order of items |
|---|---|---|
| older | `id` | `created_at`, in whole seconds |
| newer | `conversation_id`, `id` | `sort_order`, which rows of the older one do not have |

The newer one keeps the older table as `conversation_items_v1`, and copies its rows once. They are read only if that has
not been done: items that were deleted since are still there.
"""

import asyncio
import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import asyncpg

from server.errors import OperatorError

CONVERSATIONS, ITEMS, OLD_ITEMS = "openai_conversations", "conversation_items", "conversation_items_v1"
_COPIED = "conversation_items_backfill:v2"  # the name of the migration that copies the rows
_PAGE = 500  # conversations that are read at once
Row = dict[str, Any]


@dataclass(frozen=True)
class OgxItem:
    """An item as it is stored there.

    Attributes:
        key: What orders it: its position, or its time if it has none.
        data: JSON.
    """

    id: str
    key: tuple[int, int]
    created_at: int
    owner: str
    data: Any


class OgxDatabase(ABC):
    """A database that has the tables.

    Attributes:
        row_order: The column that says how rows follow each other in a table.
    """

    row_order: str

    @abstractmethod
    def fetch(self, query: str, *arguments: Any) -> list[Row]:
        """Returns the rows of a query, whose parameters are question marks."""

    @abstractmethod
    def columns(self, table: str) -> set[str]:
        """Returns the names of the columns of a table; none if there is no such table."""

    def check(self) -> None:
        """Checks that there is something to read.

        Raises:
            OperatorError: There is no table of conversations.
        """
        if not self.columns(CONVERSATIONS):
            raise OperatorError(f"the database has no table {CONVERSATIONS}: it is not one of a Llama Stack or OGX.")

    def tenants(self) -> list[str]:
        """Returns the tenants that conversations belong to; '' for those without."""
        if "tenant_id" not in self.columns(CONVERSATIONS):
            return [""]
        rows = self.fetch(f"SELECT DISTINCT coalesce(tenant_id, '') AS tenant FROM {CONVERSATIONS} ORDER BY 1")  # noqa: S608 - our own names
        return [row["tenant"] for row in rows]

    def conversations(self, tenant: str | None) -> Iterator[Row]:
        """Yields the conversations of a tenant, or all, oldest first, with the columns that there are."""
        where, chosen = ("WHERE coalesce(tenant_id, '') = ?", (tenant,)) if tenant is not None else ("", ())
        if tenant == "" and "tenant_id" not in self.columns(CONVERSATIONS):
            where, chosen = "", ()
        query = f"SELECT * FROM {CONVERSATIONS} {where} ORDER BY created_at, id LIMIT {_PAGE} OFFSET ?"  # noqa: S608 - our own names
        start = 0
        while rows := self.fetch(query, *chosen, start):
            yield from rows
            start += len(rows)

    def items(self, conversation_id: str) -> list[OgxItem]:
        """Returns the items of a conversation in their order."""
        found = {row["id"]: _item(row) for table in self._tables() for row in self._rows(table, conversation_id)}
        return sorted(found.values(), key=lambda item: item.key)  # stable: else as the table has them

    def count_orphans(self) -> int:
        """Returns how many items belong to no conversation."""
        missing = f"NOT EXISTS (SELECT 1 FROM {CONVERSATIONS} c WHERE c.id = i.conversation_id)"  # noqa: S608 - our own names
        rows = [self.fetch(f"SELECT count(*) AS n FROM {table} i WHERE {missing}") for table in self._tables()]  # noqa: S608 - likewise
        return sum(row[0]["n"] for row in rows)

    def _tables(self) -> Sequence[str]:
        """Returns the tables to read; rows of a later one replace those of an earlier one."""
        tables = [table for table in (OLD_ITEMS, ITEMS) if self.columns(table)]
        return tables if OLD_ITEMS not in tables or not self._is_copied() else tables[1:]

    def _is_copied(self) -> bool:
        if not self.columns("conversation_migrations"):
            return False
        return bool(self.fetch("SELECT name FROM conversation_migrations WHERE name = ?", _COPIED))

    def _rows(self, table: str, conversation_id: str) -> list[Row]:
        query = f"SELECT * FROM {table} WHERE conversation_id = ? ORDER BY {self.row_order}"  # noqa: S608 - our own names
        return self.fetch(query, conversation_id)


def _item(row: Row) -> OgxItem:
    position, created_at = row.get("sort_order"), row["created_at"] or 0
    key = (0, created_at) if position is None else (1, position)  # rows without a position are older
    return OgxItem(row["id"], key, created_at, row.get("owner_principal") or "", decoded(row["item_data"]))


def decoded(value: Any) -> Any:
    """Returns the value of a JSON column, which drivers return as text."""
    return json.loads(value) if isinstance(value, str) else value


class _Sqlite(OgxDatabase):
    row_order = "rowid"

    def __init__(self, path: str) -> None:
        # Read by the thread of each stream, one after the other.
        self._connection = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, check_same_thread=False)
        self._connection.row_factory = sqlite3.Row

    def fetch(self, query: str, *arguments: Any) -> list[Row]:
        return [dict(row) for row in self._connection.execute(query, arguments)]

    def columns(self, table: str) -> set[str]:
        return {row["name"] for row in self.fetch("SELECT name FROM pragma_table_info(?)", table)}

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()


class _Postgres(OgxDatabase):
    row_order = "ctid"

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._connection: asyncpg.Connection = self._loop.run_until_complete(asyncpg.connect(url, timeout=10))
        # One moment for all statements, and no way to write.
        self._loop.run_until_complete(self._connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"))

    def fetch(self, query: str, *arguments: Any) -> list[Row]:
        for number in range(1, query.count("?") + 1):
            query = query.replace("?", f"${number}", 1)
        return [dict(row) for row in self._loop.run_until_complete(self._connection.fetch(query, *arguments))]

    def columns(self, table: str) -> set[str]:
        living = "attnum > 0 AND NOT attisdropped"
        query = f"SELECT attname AS name FROM pg_attribute WHERE attrelid = to_regclass(?) AND {living}"  # noqa: S608 - our own
        return {row["name"] for row in self.fetch(query, table)}

    def close(self) -> None:
        """Closes the connection."""
        self._loop.run_until_complete(self._connection.close())
        self._loop.close()


@contextmanager
def open_ogx(url: str) -> Iterator[OgxDatabase]:
    """Opens a database, named ``sqlite:///path`` or ``postgresql://…``.

    Raises:
        OperatorError: It cannot be opened, or is none of those.
    """
    database = _connected(url)
    try:
        database.check()
        yield database
    except (sqlite3.Error, asyncpg.PostgresError, asyncpg.InterfaceError, KeyError, ValueError) as error:
        raise OperatorError(f"the database cannot be read ({type(error).__name__}).") from None
    finally:
        database.close()


def _connected(url: str) -> _Sqlite | _Postgres:
    scheme, _, rest = url.partition("://")
    try:
        if scheme == "sqlite":
            return _Sqlite(rest.removeprefix("/"))
        if scheme in {"postgresql", "postgres"}:
            return _Postgres(url)
    except (sqlite3.Error, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
        raise OperatorError(f"the database cannot be opened ({type(error).__name__}).") from None
    raise OperatorError("name the database as sqlite:///path/to/file or postgresql://user@host/database.")
