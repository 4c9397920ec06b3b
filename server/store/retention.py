"""Ends conversations whose time has come, and lowers that of those beyond a limit of the retention file.

A conversation that has expired is hidden by a condition of every statement (`server.store.sql.visibility`), whether
anybody has marked it yet or not. Marking it lets the purge remove its rows, and tells those who follow all
conversations.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

import asyncpg

from server.settings.retention import RetentionRules
from server.store.comparison import EARLIEST
from server.store.connection.opening import direct_connection
from server.store.sessions import Session, open_sessions
from server.store.steps import PURGE_SESSION

_STEP = 500  # conversations of one statement, which locks them
_OVERLAP = timedelta(hours=1)  # a process may have created conversations under the former file for a moment

# Nobody waits: a conversation that is locked is looked at by the next run. It is compared after it was locked, because
# an append may have moved its end meanwhile.
_MARK = """
    WITH due AS (
        SELECT conversation_id FROM expirations WHERE check_time <= now() ORDER BY check_time LIMIT $1
    ), locked AS (
        SELECT id, expire_time, coalesce(delete_time <= 'epoch', false) AS is_marked
        FROM conversations WHERE id IN (SELECT conversation_id FROM due)
        ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
    ), marked AS (
        UPDATE conversations SET delete_time = 'epoch', version = version + 1
        FROM locked WHERE conversations.id = locked.id AND locked.expire_time <= now() AND NOT is_marked
        RETURNING conversations.id
    ), moved AS (
        UPDATE expirations SET check_time = locked.expire_time FROM locked
        WHERE conversation_id = locked.id AND NOT is_marked
        AND locked.expire_time > now() AND locked.expire_time < 'infinity'
    ), removed AS (
        SELECT conversation_id AS id FROM due WHERE NOT EXISTS (SELECT FROM conversations WHERE id = conversation_id)
    ), forgotten AS (
        DELETE FROM expirations WHERE conversation_id IN (
            SELECT id FROM marked UNION SELECT id FROM removed
            UNION SELECT id FROM locked WHERE expire_time = 'infinity' OR is_marked)
    )
    SELECT (SELECT count(*) FROM locked) + (SELECT count(*) FROM removed) AS seen,
        (SELECT count(*) FROM marked) AS marked"""

# The tenants, each found behind the one before by the index that lists read.
_TENANTS = """
    WITH RECURSIVE found AS (
        (SELECT tenant FROM conversations WHERE delete_time IS NULL ORDER BY tenant LIMIT 1)
        UNION ALL
        SELECT (SELECT tenant FROM conversations WHERE delete_time IS NULL AND tenant > found.tenant
            ORDER BY tenant LIMIT 1)
        FROM found WHERE found.tenant IS NOT NULL
    )
    SELECT tenant FROM found WHERE tenant IS NOT NULL"""
_APPLIED = "SELECT at_most, applied_through FROM retention_limits WHERE tenant = $1"
_LOWER = """
    WITH page AS (
        SELECT id, create_time, limit_time FROM conversations
        WHERE tenant = $1 AND delete_time IS NULL AND (create_time, id) > ($2, $3)
        ORDER BY create_time, id LIMIT $4
    ), locked AS (
        SELECT id FROM conversations
        WHERE id IN (SELECT id FROM page WHERE limit_time > create_time + $5::interval)
        ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
    ), lowered AS (
        UPDATE conversations SET
            limit_time = create_time + $5, expire_time = least(expire_time, create_time + $5),
            version = version + 1, revision = revision + 1, update_time = greatest(update_time, now())
        FROM locked WHERE conversations.id = locked.id
        RETURNING conversations.id, expire_time
    ), scheduled AS (
        INSERT INTO expirations SELECT id, expire_time FROM lowered
        ON CONFLICT (conversation_id) DO UPDATE SET check_time = least(expirations.check_time, excluded.check_time)
    ), last AS (
        SELECT create_time, id FROM page ORDER BY create_time DESC, id DESC LIMIT 1
    )
    SELECT create_time, id, (SELECT count(*) FROM page WHERE limit_time > create_time + $5)
        - (SELECT count(*) FROM lowered) AS skipped
    FROM last"""
_NOTE = """
    INSERT INTO retention_limits VALUES ($1, $2, $3)
    ON CONFLICT (tenant) DO UPDATE SET at_most = excluded.at_most, applied_through = excluded.applied_through"""


async def mark_all_expired(url: str) -> int:
    """As `mark_expired`, on a connection of its own to PostgreSQL at ``url``.

    Raises:
        DatabaseConfigError, DatabaseUnreachable: As `direct_connection`.
        asyncpg.PostgresError, asyncpg.InterfaceError, OSError: As `mark_expired`.
    """
    async with direct_connection(url, settings=PURGE_SESSION) as connection:
        return await mark_expired(await open_sessions(connection))


async def mark_expired(sessions: Sequence[Session]) -> int:
    """Marks the conversations that have expired, for the purge to remove; returns how many.

    It may run in several processes at once, and beside every other statement.

    Raises:
        asyncpg.PostgresError, asyncpg.InterfaceError, OSError: A statement failed; steps before it are done.
    """
    return sum([await _mark_expired(session) for session in sessions])


async def _mark_expired(session: Session) -> int:
    total: int = 0
    while row := await session.fetchrow(_MARK, _STEP):
        total += row["marked"]
        if not row["seen"]:
            break
    return total


async def apply_limits(connection: asyncpg.Connection, sessions: Sequence[Session], retention: RetentionRules) -> None:
    """Lowers the end of conversations that are older than a limit, or will be before they end.

    Each tenant is walked once when its limit is lowered, and from then on only what is newer than the last walk.
    """
    if not retention.has_limit:
        return
    tenants = {row["tenant"] for session in sessions for row in await session.fetch(_TENANTS)}
    for tenant in sorted(tenants):
        if at_most := retention.rule_of(tenant).at_most:
            await _apply_limit(connection, sessions, tenant, at_most)


async def _apply_limit(
    connection: asyncpg.Connection, sessions: Sequence[Session], tenant: str, at_most: timedelta
) -> None:
    began = await connection.fetchval("SELECT now()")
    applied = await connection.fetchrow(_APPLIED, tenant)
    is_known = applied is not None and applied["at_most"] <= at_most
    start = applied["applied_through"] - _OVERLAP if is_known else EARLIEST
    skipped = sum([await _lower(session, tenant, start, at_most) for session in sessions])
    if not skipped:  # those that were locked are looked at by the next purge
        await connection.execute(_NOTE, tenant, at_most, began)


async def _lower(session: Session, tenant: str, start: datetime, at_most: timedelta) -> int:
    """Lowers the end of a tenant's conversations from ``start`` on; returns how many were locked by others."""
    place, skipped = (start, ""), 0
    while row := await session.fetchrow(_LOWER, tenant, *place, _STEP, at_most):
        place = row["create_time"], row["id"]
        skipped += row["skipped"]
    return skipped
