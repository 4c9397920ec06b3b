"""Erases subjects: everything is hidden, what others still do with it ends, and then every row is removed.

Each step is committed with what it has counted, and can be repeated: whoever is interrupted goes on with the next one,
and the receipt is the same. One session erases in a tenant at a time, by an advisory lock, on a connection of its own.
No step waits for the lock of a conversation: what somebody has locked is found again (docs/adr/0037).
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeAlias
from uuid import uuid4

import asyncpg

from server.errors import OperatorError
from server.store import remover
from server.store.authors import fill_in_authors
from server.store.comparison import EARLIEST, Comparison, conversation_filter
from server.store.connection.layout import find_layout
from server.store.connection.opening import direct_connection
from server.store.erased_imports import erase_imports
from server.store.erasures import Subject, begin_values, is_done
from server.store.remover import remove_conversations
from server.store.sql import erasures as sql
from server.store.sql.erasures import ERASED
from server.store.steps import LOOKUPS, count_of

_LOCK = 0x65726173  # "eras"; with a number for the tenant
_SESSION = {"lock_timeout": "5s", "application_name": "conversations erasure", **LOOKUPS}
_SCANNED = 5_000  # conversations, or changes of the log, that one statement looks at
_FEW = 500  # items of one statement that also locks conversations
_PAGES = 1_000  # of the table of request ids that one statement reads
_RETRY_SECONDS = 0.1  # for what another session has locked
_WATCH_SECONDS = 3.0  # for those who follow a conversation to be told what was deleted, before its place goes
_LOG_SECONDS = 40.0  # for those who follow all conversations, before changes go from the log

# Reads the comparisons of a filter.
ParseFilter: TypeAlias = Callable[[str], Sequence[Comparison]]


_RUNNING = "SELECT DISTINCT tenant FROM erasures WHERE end_time IS NULL ORDER BY tenant"
_NEXT = """
    SELECT * FROM erasures WHERE tenant = $1 AND end_time IS NULL AND id = coalesce($2, id)
    ORDER BY begin_time, id LIMIT 1"""
_GET = "SELECT * FROM erasures WHERE tenant = $1 AND id = $2"
_TRY_LOCK = "SELECT pg_try_advisory_lock($1, hashtext($2))"

# Every transaction has a lock with a number of its own, from before its first snapshot until it is seen by all.
_TRANSACTIONS = """
    SELECT virtualxid FROM pg_locks
    WHERE locktype = 'virtualxid' AND mode = 'ExclusiveLock' AND pid <> pg_backend_pid()"""

# The next items of the principal, in all tenants, behind a key. First the index by author: a join with conversations
# could begin with all of those. The UPDATE then looks up what is between the two keys.
_SCAN_ITEMS = """
    WITH scanned AS MATERIALIZED (
        SELECT conversation_id, sequence, version FROM items
        WHERE author = $2 AND author <> '' AND {state} AND (conversation_id, sequence) > ($3, $4)
        ORDER BY conversation_id, sequence LIMIT $5
    ), locked AS (
        SELECT id FROM conversations WHERE id IN (SELECT conversation_id FROM scanned) AND tenant = $1
        ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
    )"""
_BETWEEN = """
    items.author = $2 AND items.author <> '' AND (items.conversation_id, items.sequence) > ($3, $4)
    AND (items.conversation_id, items.sequence) <= (
        SELECT conversation_id, sequence FROM scanned ORDER BY conversation_id DESC, sequence DESC LIMIT 1)"""
# How many of them are in this tenant, and the last key; no row when there are no more.
_SCANNED_ITEMS = """
    SELECT conversation_id, sequence, (SELECT count(*) FROM scanned
        WHERE (SELECT tenant FROM conversations WHERE id = scanned.conversation_id) = $1) AS found
    FROM scanned ORDER BY conversation_id DESC, sequence DESC LIMIT 1"""
_HIDE_ITEMS = f"""
    {_SCAN_ITEMS.format(state="delete_time IS NULL")}, bumped AS (
        UPDATE conversations SET version = version + 1 FROM locked WHERE conversations.id = locked.id
        RETURNING conversations.id, version
    ), emptied AS (
        UPDATE items SET body = '', delete_time = now(), version = bumped.version FROM bumped
        WHERE items.conversation_id = bumped.id AND items.delete_time IS NULL AND {_BETWEEN}
    ) {_SCANNED_ITEMS}"""  # noqa: S608 - our own text
# As the purge does it: watches must learn that deletions are gone, so the two go together.
_REMOVE_ITEMS = f"""
    {_SCAN_ITEMS.format(state="delete_time IS NOT NULL")}, told AS (
        UPDATE conversations SET purged_version = greatest(purged_version, newest.version)
        FROM (SELECT conversation_id, max(version) AS version FROM scanned GROUP BY conversation_id) AS newest
        JOIN locked ON locked.id = newest.conversation_id
        WHERE conversations.id = locked.id
    ), removed AS (
        DELETE FROM items USING locked
        WHERE items.conversation_id = locked.id AND items.delete_time IS NOT NULL AND {_BETWEEN}
        RETURNING 1
    ) {_SCANNED_ITEMS.replace("AS found", "AS found, (SELECT count(*) FROM removed) AS removed")}"""  # noqa: S608 - our own text
_COUNT_ITEMS = """
    SELECT count(*) FROM items
    WHERE author = $2 AND author <> '' AND (SELECT tenant FROM conversations WHERE id = conversation_id) = $1"""

_REQUEST_PAGES = "SELECT pg_relation_size('requests') / current_setting('block_size')::bigint"
# The table has no index by principal, and holds one day. A request id has the tenant of its conversation.
_REQUESTS = """
    FROM requests WHERE ctid >= format('(%s,0)', $3::bigint)::tid AND ctid < format('(%s,0)', $4::bigint)::tid
    AND principal = $2
    AND NOT EXISTS (SELECT FROM conversations WHERE conversations.id = conversation_id AND tenant <> $1)"""
_REMOVE_REQUESTS = f"DELETE {_REQUESTS}"
_COUNT_REQUESTS = f"SELECT count(*) {_REQUESTS}"

# The changes of these conversations, and those that name the principal. Whoever has not read them yet cannot be told
# what has gone, and begins anew.
_REMOVE_CHANGES = f"""
    WITH scanned AS (
        SELECT * FROM changes WHERE (position, conversation_id, version) > ($3, $4, $5)
        ORDER BY position, conversation_id, version LIMIT $6
    ), old AS (
        SELECT scanned.position, scanned.conversation_id, scanned.version
        FROM scanned LEFT JOIN conversations ON conversations.id = scanned.conversation_id
        WHERE (conversations.tenant = $1 AND conversations.delete_time = {ERASED})
            OR ($2 <> '' AND ((scanned.tenant, scanned.owner) = ($1, $2)
                OR (scanned.old_tenant, scanned.old_owner) = ($1, $2)))
    ), removed AS (
        DELETE FROM changes USING old
        WHERE (changes.position, changes.conversation_id, changes.version)
            = (old.position, old.conversation_id, old.version)
        RETURNING changes.position
    ), raised AS (
        UPDATE change_log SET floor = greatest(floor, (SELECT max(position) + 1 FROM removed))
        WHERE EXISTS (SELECT FROM removed)
    )
    SELECT position, conversation_id, version FROM scanned
    ORDER BY position DESC, conversation_id DESC, version DESC LIMIT 1"""  # noqa: S608 - our own text

_FIND_HIDDEN = f"""
    SELECT id FROM conversations WHERE delete_time = {ERASED} AND tenant = $1 AND id > $2 ORDER BY id LIMIT $3"""  # noqa: S608
# Forks of these conversations forget where they come from; how many there were, locked ones included.
_CLEAR_LINEAGE = """
    WITH forks AS (
        SELECT id FROM conversations WHERE tenant = $1 AND forked_from = ANY($2) AND delete_time IS NULL
        UNION ALL
        SELECT id FROM conversations WHERE tenant = $1 AND forked_from = ANY($2) AND delete_time IS NOT NULL
    ), locked AS (
        SELECT id FROM conversations WHERE id IN (SELECT id FROM forks) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
    ), cleared AS (
        UPDATE conversations SET forked_from = NULL, forked_sequence = NULL FROM locked
        WHERE conversations.id = locked.id
    )
    SELECT count(*) FROM forks"""
_IS_HIDDEN = f"SELECT EXISTS (SELECT FROM conversations WHERE delete_time = {ERASED} AND tenant = $1)"  # noqa: S608
_ADD = {
    "conversations": "UPDATE erasures SET conversation_count = conversation_count + $3 WHERE tenant = $1 AND id = $2",
    "items": "UPDATE erasures SET item_count = item_count + $3 WHERE tenant = $1 AND id = $2",
    "foreign_items": "UPDATE erasures SET foreign_item_count = foreign_item_count + $3 WHERE tenant = $1 AND id = $2",
    "requests": "UPDATE erasures SET request_count = request_count + $3 WHERE tenant = $1 AND id = $2",
}
_FORGET_REQUESTER = "UPDATE erasures SET requested_by = '' WHERE tenant = $1 AND requested_by = $2 AND $2 <> ''"
_END = """
    UPDATE erasures SET end_time = now(), principal = '', filter = ''
    WHERE tenant = $1 AND id = $2 AND end_time IS NULL RETURNING *"""
_PURGE = "DELETE FROM erasures WHERE end_time < now() - interval '90 days'"


class ErasureRefused(OperatorError):
    """Nothing can be erased in this database; the text is for the operator and says why."""


async def unfinished_tenants(url: str) -> list[str]:
    """Returns the tenants that have an erasure to carry on; raises as `direct_connection`."""
    async with direct_connection(url, settings=_SESSION) as connection:
        return [row["tenant"] for row in await connection.fetch(_RUNNING)]


async def purge_erasures(connection: asyncpg.Connection) -> None:
    """Removes the receipts of erasures that ended more than 90 days ago."""
    await connection.execute(_PURGE)


async def erase_next(
    url: str, tenant: str, parse: ParseFilter, writers_seconds: float, erasure_id: str | None = None
) -> asyncpg.Record | None:
    """Carries on the oldest erasure of a tenant until it is done.

    Args:
        url: Of PostgreSQL itself, not of PgBouncer.
        tenant: Of the erasure.
        parse: Reads the filter of the erasure, if it has one.
        writers_seconds: How long a statement of the service may run that began before everything was hidden.
        erasure_id: Of the erasure, if it is to be this one.

    Returns:
        Its row, which names the subject no more; None if there is none, or if another session is at it.

    Raises:
        DatabaseConfigError, DatabaseUnreachable: As `direct_connection`.
        asyncpg.PostgresError, asyncpg.InterfaceError, OSError: A statement failed; steps before it are done.
    """
    async with _connection_of(url, tenant) as connection:
        row = await connection.fetchrow(_NEXT, tenant, erasure_id) if connection else None
        if connection is None or row is None:
            return None
        return await _Erasure(connection, row, parse, writers_seconds).run()


@asynccontextmanager
async def _connection_of(url: str, tenant: str) -> AsyncIterator[asyncpg.Connection | None]:
    """Yields a connection that has the lock of a tenant; None if another session has it."""
    async with direct_connection(url, settings=_SESSION) as connection:
        yield connection if await connection.fetchval(_TRY_LOCK, _LOCK, tenant) else None


async def erase_subject(
    url: str, tenant: str, subject: Subject, parse: ParseFilter, writers_seconds: float
) -> asyncpg.Record:
    """Erases a subject for an operator of the database, beside the service or without it; returns the receipt.

    Raises:
        DatabaseConfigError, DatabaseUnreachable: As `direct_connection`.
        asyncpg.PostgresError, asyncpg.InterfaceError, OSError: A statement failed; steps before it are done.
    """
    values = begin_values(tenant, str(uuid4()), subject, requested_by="")
    async with direct_connection(url, settings=_SESSION) as connection:
        await _require_support(connection)
        await connection.execute(sql.BEGIN.text, *sql.BEGIN.arguments(values))
        while True:
            await erase_next(url, tenant, parse, writers_seconds, values["id"])
            row = await connection.fetchrow(_GET, tenant, values["id"])
            if is_done(row):
                return row
            await asyncio.sleep(_RETRY_SECONDS)  # another session erases in this tenant


async def count_rows(url: str, tenant: str, subject: Subject) -> Counter[str]:
    """Returns how many rows an erasure of a subject would remove, by the names of `_ADD`; raises as `erase_next`."""
    counts: Counter[str] = Counter(dict.fromkeys(_ADD, 0))
    async with direct_connection(url, settings=_SESSION) as connection:
        await _require_support(connection)
        if subject.principal:
            await fill_in_authors(connection)
        for deleted in (False, True):
            async for row in _scan(connection, sql.count, tenant, subject, deleted=deleted):
                counts.update({name: row[name] for name in ("conversations", "items", "requests")})
        if subject.principal:
            counts["foreign_items"] = await connection.fetchval(_COUNT_ITEMS, tenant, subject.principal)
            async for pages in _request_pages(connection):
                counts["requests"] += await connection.fetchval(_COUNT_REQUESTS, tenant, subject.principal, *pages)
    return counts


async def _require_support(connection: asyncpg.Connection) -> None:
    """Returns if erasures can be carried out; raises ErasureRefused."""
    if not (await find_layout(connection)).erases:
        raise ErasureRefused(
            "The database is distributed, where nothing can be erased: an erasure removes rows and counts them in one "
            "transaction, which Citus does not take (docs/scale.md)."
        )


async def _scan(
    connection: asyncpg.Connection, build: Any, tenant: str, subject: Subject, *, deleted: bool
) -> AsyncIterator[asyncpg.Record]:
    """Runs a statement of `server.store.sql.erasures` over the conversations of a subject; yields each of its rows."""
    values: dict[str, Any] = conversation_filter(subject.comparisons)
    shape = {"filters_owner": bool(values["owners"]), "filters_source": bool(values["sources"])}
    statement = build(**shape, deleted=deleted)
    after: tuple[Any, ...] = ("", EARLIEST, "")
    while True:
        keys = dict(zip(("after_owner", "after_time", "after_id"), after, strict=True))
        bounds = {"tenant": tenant, "principal": subject.principal, "scanned": _SCANNED}
        row = await connection.fetchrow(statement.text, *statement.arguments({**values, **keys, **bounds}))
        if row is None:
            return
        yield row
        after = (row["owner"], row["create_time"], row["id"])


async def _request_pages(connection: asyncpg.Connection) -> AsyncIterator[tuple[int, int]]:
    """Yields ranges of pages that together are the table of request ids."""
    pages = await connection.fetchval(_REQUEST_PAGES)
    for first in range(0, pages, _PAGES):
        yield first, first + _PAGES


class _Erasure:
    """One erasure, on a connection that has the lock of its tenant."""

    def __init__(
        self, connection: asyncpg.Connection, row: Mapping[str, Any], parse: ParseFilter, writers_seconds: float
    ) -> None:
        self._connection = connection
        self._tenant, self._id, self._principal = row["tenant"], row["id"], row["principal"]
        self._subject = Subject.of_principal(self._principal)
        if not self._principal:
            self._subject = replace(self._subject, filter=row["filter"], comparisons=parse(row["filter"]))
        self._writers_seconds = writers_seconds
        self._hidden_at = float("-inf")  # when something was hidden last, by `time.monotonic`

    async def run(self) -> asyncpg.Record | None:
        """Erases; returns the row of the erasure, None if another session has ended it."""
        if self._principal:
            await fill_in_authors(self._connection)
        is_left = True
        while is_left:
            await self._hide_all()
            removed = await self._remove_all()
            is_left = removed > 0 or await self._connection.fetchval(_IS_HIDDEN, self._tenant)
        return await self._end()

    async def _hide_all(self) -> None:
        """Hides everything, also what a statement that could still see it has copied meanwhile."""
        found = 1
        while found:
            found = await self._hide_conversations()
            found += await erase_imports(self._connection, self._tenant, self._subject)
            if self._principal:
                found += await self._hide_items()
            if found:
                self._hidden_at = time.monotonic()
            await self._wait_for_transactions()

    async def _hide_conversations(self) -> int:
        found = 0
        for deleted in (False, True):
            async for row in _scan(self._connection, sql.hide, self._tenant, self._subject, deleted=deleted):
                found += row["found"]
        return found

    async def _hide_items(self) -> int:
        """Empties the items of the principal in conversations of others, as DeleteItem does."""
        found, after = 0, ("", 0)
        while row := await self._connection.fetchrow(_HIDE_ITEMS, self._tenant, self._principal, *after, _FEW):
            found += row["found"]
            after = (row["conversation_id"], row["sequence"])
        return found

    async def _wait_for_transactions(self) -> None:
        """Returns when every transaction has ended that runs now, or after as long as one of the service may run."""
        deadline = time.monotonic() + self._writers_seconds
        before = left = await self._transactions()
        while left and time.monotonic() < deadline:
            await asyncio.sleep(_RETRY_SECONDS)
            left = before & await self._transactions()

    async def _transactions(self) -> set[str]:
        return {row["virtualxid"] for row in await self._connection.fetch(_TRANSACTIONS)}

    async def _remove_all(self) -> int:
        """Removes everything that is hidden; returns how many rows that were."""
        counts: Counter[str] = Counter()

        async def note(table: str, count: int) -> None:
            counts[table] += count
            if table in _ADD:
                await self._connection.execute(_ADD[table], self._tenant, self._id, count)

        if self._principal:
            await self._remove_items(note)
            await self._remove_requests(note)
        await self._remove_changes()
        after = ""
        while found := await self._connection.fetch(_FIND_HIDDEN, self._tenant, after, remover.CONVERSATIONS):
            ids = [row["id"] for row in found]
            await self._clear_lineage(ids)
            await remove_conversations(self._connection, ids, note, requests=True)
            after = ids[-1]
        return counts.total()

    async def _remove_items(self, note: remover.Note) -> None:
        await self._wait_since_hidden(_WATCH_SECONDS)
        left = 1
        while left:
            left, after = 0, ("", 0)
            while row := await self._remove_next_items(after, note):
                left += row["found"] - row["removed"]
                after = (row["conversation_id"], row["sequence"])
            if left:
                await asyncio.sleep(_RETRY_SECONDS)

    async def _remove_next_items(self, after: tuple[str, int], note: remover.Note) -> asyncpg.Record | None:
        async with self._connection.transaction():
            row = await self._connection.fetchrow(_REMOVE_ITEMS, self._tenant, self._principal, *after, _FEW)
            if row is not None:
                await note("foreign_items", row["removed"])
            return row

    async def _remove_requests(self, note: remover.Note) -> None:
        async for pages in _request_pages(self._connection):
            async with self._connection.transaction():
                done = await self._connection.execute(_REMOVE_REQUESTS, self._tenant, self._principal, *pages)
                await note("requests", count_of(done))

    async def _remove_changes(self) -> None:
        """Removes the changes from the log, if there is one: behind their deletion, which streams are told first."""
        if not await self._connection.fetchval("SELECT EXISTS (SELECT FROM changes)"):
            return
        await self._wait_since_hidden(_LOG_SECONDS)
        after: tuple[Any, ...] = (0, "", 0)
        subject = (self._tenant, self._principal)
        while row := await self._connection.fetchrow(_REMOVE_CHANGES, *subject, *after, _SCANNED):
            after = tuple(row)

    async def _clear_lineage(self, ids: Sequence[str]) -> None:
        before = 0
        while count := await self._connection.fetchval(_CLEAR_LINEAGE, self._tenant, ids):
            if count == before:  # all are locked by others
                await asyncio.sleep(_RETRY_SECONDS)
            before = count

    async def _wait_since_hidden(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, self._hidden_at + seconds - time.monotonic()))

    async def _end(self) -> asyncpg.Record | None:
        async with self._connection.transaction():
            await self._connection.execute(_FORGET_REQUESTER, self._tenant, self._principal)
            return await self._connection.fetchrow(_END, self._tenant, self._id)
