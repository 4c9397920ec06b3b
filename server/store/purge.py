"""Removes deleted conversations, deleted items, old request ids, and old changes of the log.

A call that deletes only sets ``delete_time``, so it is short. The rows are removed later, in small steps, so that no
lock is held for long and no statement meets its timeout. They are found again by their keys, which a sharded database
can route, and not by their place in a table.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from server.store.change_log import purge_changes
from server.store.connection.opening import direct_connection

_LOCK = 0x70757267  # "purg"
_STEP = 5000  # rows of one statement
_FEW = 500  # of one that also locks conversations
_SESSION = {
    "lock_timeout": "5s",
    "application_name": "conversations purge",
    # Each step looks its rows up by their keys. Statistics of a table that grows would make it scan all of it (ADR 10).
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
_STATEMENTS = {
    "items of deleted conversations": """
        DELETE FROM items WHERE (conversation_id, sequence) IN (
            SELECT items.conversation_id, items.sequence
            FROM items JOIN conversations ON conversations.id = items.conversation_id
            WHERE conversations.delete_time <= $1 LIMIT $2)""",
    "attributes of deleted conversations": """
        DELETE FROM conversation_attributes WHERE (conversation_id, attribute) IN (
            SELECT conversation_attributes.conversation_id, conversation_attributes.attribute
            FROM conversation_attributes
            JOIN conversations ON conversations.id = conversation_attributes.conversation_id
            WHERE conversations.delete_time <= $1 LIMIT $2)""",
    "conversations": """
        DELETE FROM conversations WHERE id IN (
            SELECT id FROM conversations WHERE delete_time <= $1
            AND NOT EXISTS (SELECT FROM items WHERE items.conversation_id = conversations.id) LIMIT $2)""",
    # Watches must learn that deletions are gone, so the two go together. Rows of conversations are locked in the order
    # of their ids, as by every statement that locks several.
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
    """How many rows were removed."""

    conversations: int = 0
    items: int = 0
    requests: int = 0
    changes: int = 0


async def purge(url: str, keep: timedelta, keep_requests: timedelta = timedelta(hours=24)) -> PurgeResult | None:
    """Removes what was deleted more than ``keep`` ago; returns None when another process is purging.

    It takes a session advisory lock, so it has a connection of its own.

    Args:
        url: Of PostgreSQL itself, not of PgBouncer.
        keep: How long conversations and items stay after they were deleted.
        keep_requests: How long a request id is remembered.

    Raises:
        DatabaseConfigError, DatabaseUnreachable: As `direct_connection`.
        asyncpg.PostgresError, asyncpg.InterfaceError, OSError: A statement failed; steps before it are done.
    """
    async with direct_connection(url, settings=_SESSION) as connection:
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
            return None
        # One instant for all statements, and conversations after their items: a delete may commit in between.
        now = await connection.fetchval("SELECT now()")
        before = now - keep
        await _delete_all(connection, "attributes of deleted conversations", before)
        return PurgeResult(
            items=await _delete_all(connection, "items of deleted conversations", before)
            + await _delete_all(connection, "items", before, step=_FEW),
            requests=await _delete_all(connection, "requests", now - keep_requests),
            conversations=await _delete_all(connection, "conversations", before),
            changes=await purge_changes(connection),
        )


async def _delete_all(connection: asyncpg.Connection, name: str, before: datetime, step: int = _STEP) -> int:
    """Runs the statement of ``name``, ``step`` rows at a time, until it finds nothing more."""
    total = 0
    while True:
        done = await connection.execute(_STATEMENTS[name], before, step)
        count = int(done.rsplit(" ", 1)[1])
        total += count
        if count < step:
            return total
