"""Removes deleted and expired conversations, deleted items, old request ids, and old changes of the log.

A call that deletes only sets ``delete_time``, so it is short. The rows are removed later, in small steps, so that no
lock is held for long and no statement meets its timeout. They are found again by their keys, which a sharded database
can route, and not by their place in a table.

A conversation is marked before its rows are removed, by a ``delete_time`` of 1970: from then on no undelete finds
it, so that none comes back with a part of its rows.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from server.settings.retention import NO_RETENTION, RetentionRules
from server.store.change_log import purge_changes
from server.store.connection.opening import direct_connection
from server.store.purge_session import PURGE_SESSION
from server.store.removal_progress import on_removed
from server.store.retention import apply_limits, mark_expired

_LOCK = 0x70757267  # "purg"
_STEP = 5000  # rows of one statement
_FEW = 500  # of one that also locks conversations
_BROKEN_IMPORTS = timedelta(days=1)  # since something was stored for them
# Rows of conversations that are marked; each statement takes the most rows of a step.
_MARKED = {
    "items": """
        DELETE FROM items WHERE (conversation_id, sequence) IN (
            SELECT items.conversation_id, items.sequence
            FROM items JOIN conversations ON conversations.id = items.conversation_id
            WHERE conversations.delete_time = 'epoch' LIMIT $1)""",
    "attributes": """
        DELETE FROM conversation_attributes WHERE (conversation_id, attribute) IN (
            SELECT conversation_attributes.conversation_id, conversation_attributes.attribute
            FROM conversation_attributes
            JOIN conversations ON conversations.id = conversation_attributes.conversation_id
            WHERE conversations.delete_time = 'epoch' LIMIT $1)""",
    "expirations": """
        DELETE FROM expirations WHERE conversation_id IN (
            SELECT expirations.conversation_id
            FROM expirations JOIN conversations ON conversations.id = expirations.conversation_id
            WHERE conversations.delete_time = 'epoch' LIMIT $1)""",
    "conversations": """
        DELETE FROM conversations WHERE id IN (
            SELECT id FROM conversations WHERE delete_time = 'epoch'
            AND NOT EXISTS (SELECT FROM items WHERE items.conversation_id = conversations.id) LIMIT $1)""",
}
# Rows from before $1, $2 at most.
_OLD = {
    "broken imports": """
        WITH broken AS (
            DELETE FROM imports WHERE conversation_id IN (
                SELECT conversation_id FROM imports WHERE touch_time <= $1 LIMIT $2)
            RETURNING conversation_id
        )
        UPDATE conversations SET delete_time = 'epoch' FROM broken
        WHERE conversations.id = broken.conversation_id AND conversations.delete_time = 'infinity'""",
    # Rows of conversations are locked in the order of their ids, as by every statement that locks several.
    "deleted conversations": """
        WITH old AS (
            SELECT id FROM conversations WHERE delete_time <= $1 AND delete_time > 'epoch' LIMIT $2
        ), locked AS (
            SELECT id FROM conversations WHERE id IN (SELECT id FROM old) AND delete_time <= $1
            ORDER BY id FOR NO KEY UPDATE
        )
        UPDATE conversations SET delete_time = 'epoch' FROM locked WHERE conversations.id = locked.id""",
    # Watches must learn that deletions are gone, so the two go together.
    "items": """
        WITH old AS (
            SELECT conversation_id, sequence, version FROM items WHERE delete_time <= $1 LIMIT $2
        ), locked AS (
            SELECT id FROM conversations WHERE id IN (SELECT conversation_id FROM old) ORDER BY id FOR NO KEY UPDATE
        ), told AS (
            UPDATE conversations SET purged_version = greatest(purged_version, newest.version)
            FROM (SELECT conversation_id, max(version) AS version FROM old GROUP BY conversation_id) AS newest
            WHERE conversations.id = newest.conversation_id AND conversations.id IN (SELECT id FROM locked)
        )
        DELETE FROM items USING old
        WHERE items.conversation_id = old.conversation_id AND items.sequence = old.sequence""",
    "requests": """
        DELETE FROM requests WHERE (conversation_id, principal, method, request_id) IN (
            SELECT conversation_id, principal, method, request_id FROM requests
            WHERE create_time <= $1 LIMIT $2)""",
}


@dataclass(frozen=True)
class PurgeResult:
    """How many rows were removed.

    Attributes:
        expired: How many conversations had ended by themselves; they are among ``conversations`` too.
    """

    conversations: int = 0
    items: int = 0
    requests: int = 0
    changes: int = 0
    expired: int = 0


async def purge(
    url: str,
    keep: timedelta,
    keep_requests: timedelta = timedelta(hours=24),
    retention: RetentionRules = NO_RETENTION,
) -> PurgeResult | None:
    """Removes what has expired or was deleted more than ``keep`` ago; returns None when another process is purging.

    It takes a session advisory lock, so it has a connection of its own.

    Args:
        url: Of PostgreSQL itself, not of PgBouncer.
        keep: How long conversations and items stay after they were deleted.
        keep_requests: How long a request id is remembered.
        retention: Whose limits are applied to older conversations first.

    Raises:
        DatabaseConfigError, DatabaseUnreachable: As `direct_connection`.
        asyncpg.PostgresError, asyncpg.InterfaceError, OSError: A statement failed; steps before it are done.
    """
    async with direct_connection(url, settings=PURGE_SESSION) as connection:
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
            return None
        await apply_limits(connection, retention)
        expired = await mark_expired(connection)
        now = await connection.fetchval("SELECT now()")
        await _run_old(connection, "broken imports", now - _BROKEN_IMPORTS, _FEW)
        await _run_old(connection, "deleted conversations", now - keep, _FEW)
        await _remove_marked(connection, "attributes")
        await _remove_marked(connection, "expirations")
        return PurgeResult(
            items=await _remove_marked(connection, "items") + await _run_old(connection, "items", now - keep, _FEW),
            requests=await _run_old(connection, "requests", now - keep_requests, _STEP),
            conversations=await _remove_marked(connection, "conversations"),
            changes=await purge_changes(connection),
            expired=expired,
        )


async def _remove_marked(connection: asyncpg.Connection, name: str) -> int:
    return await _repeat(connection, _MARKED[name], _STEP)


async def _run_old(connection: asyncpg.Connection, name: str, before: datetime, step: int) -> int:
    return await _repeat(connection, _OLD[name], step, before)


async def _repeat(connection: asyncpg.Connection, statement: str, step: int, *arguments: datetime) -> int:
    """Runs a statement, ``step`` rows at a time, until it finds nothing more; returns how many rows."""
    total = 0
    while True:
        done = await connection.execute(statement, *arguments, step)
        count = int(done.rsplit(" ", 1)[1])
        total += count
        if done.startswith("DELETE"):
            on_removed.get()(count)
        if count < step:
            return total
