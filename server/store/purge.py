"""Removes deleted and expired conversations, deleted items, old request ids, and old changes of the log.

A call that deletes only sets ``delete_time``, so it is short. The rows are removed later, in small steps, so that no
lock is held for long and no statement meets its timeout. They are found again by their keys, which a sharded database
can route, and not by their place in a table.

A conversation is marked before its rows are removed, by a ``delete_time`` of 1970: from then on no undelete finds
it, so that none comes back with a part of its rows.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta

from server.settings.retention import NO_RETENTION, RetentionRules
from server.store.change_log import purge_changes
from server.store.connection.opening import direct_connection
from server.store.erasing import purge_erasures
from server.store.removal_progress import on_removed
from server.store.remover import CONVERSATIONS, STEP, remove_conversations
from server.store.retention import apply_limits, mark_expired
from server.store.sessions import Session, open_sessions
from server.store.steps import PURGE_SESSION, run_in_steps

_LOCK = 0x70757267  # "purg"
_FEW = 500  # of one that also locks conversations
_BROKEN_IMPORTS = timedelta(days=1)  # since something was stored for them
# An erasure has marks of its own, and removes and counts what has them (`server.store.erasing`).
_FIND_MARKED = "SELECT id FROM conversations WHERE delete_time = 'epoch' AND id > $1 ORDER BY id LIMIT $2"
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
        sessions = await open_sessions(connection)
        await apply_limits(connection, sessions, retention)
        expired = await mark_expired(sessions)
        now = await connection.fetchval("SELECT now()")
        removed: Counter[str] = Counter()
        for session in sessions:
            removed += await _remove_old(session, now - keep, now - keep_requests, now - _BROKEN_IMPORTS)
        await purge_erasures(connection)
        changes = await purge_changes(connection)
        return PurgeResult(
            conversations=removed["conversations"],
            items=removed["items"],
            requests=removed["requests"],
            changes=changes,
            expired=expired,
        )


async def _remove_old(
    session: Session, deleted_before: datetime, requests_before: datetime, imports_before: datetime
) -> Counter[str]:
    """Removes what is old; returns how many rows of which table."""
    await _run_old(session, "broken imports", imports_before, _FEW)
    await _run_old(session, "deleted conversations", deleted_before, _FEW)
    removed = await _remove_marked(session)
    removed["items"] += await _run_old(session, "items", deleted_before, _FEW)
    removed["requests"] += await _run_old(session, "requests", requests_before, STEP)
    return removed


async def _remove_marked(session: Session) -> Counter[str]:
    """Removes the conversations that are marked, with what belongs to them; returns how many rows of which table."""
    removed: Counter[str] = Counter()

    async def note(table: str, count: int) -> None:
        removed[table] += count
        on_removed.get()(count)

    after = ""
    while found := [row["id"] for row in await session.fetch(_FIND_MARKED, after, CONVERSATIONS)]:
        await remove_conversations(session, found, note)
        after = found[-1]
    return removed


async def _run_old(session: Session, name: str, before: datetime, step: int) -> int:
    return await run_in_steps(session, _OLD[name], step, before)
