"""Moves the times by which lists are ordered: what appends leave to it (docs/adr/0039).

An append writes the time of its conversation, which no index has, and puts the conversation in the queue. Here the time
gets to `activity` and `conversation_attributes`, at most once a second for each conversation. One session works at a
time, by an advisory lock. It is interrupted without harm: each statement does all that it does for a conversation.
"""

import time
from collections.abc import Awaitable, Callable

import asyncpg

from server.store.steps import LOOKUPS, count_of

_LOCK = 0x61637476  # "actv"
# A crash of the database loses times and queue alike, so they fit; no append waits for a disk behind the lock of a row.
SESSION = {
    "lock_timeout": "5s",
    "synchronous_commit": "off",
    "application_name": "conversations activity",
    **LOOKUPS,
}
_STEP = 100  # conversations of one statement, which locks them
_SCANNED = 1_000  # conversations that one step of the comparison looks at
_MANY = 100_000  # no more are counted

_TRY_LOCK = "SELECT pg_try_advisory_lock($1)"
_NOW = "SELECT now()"
_STATE = f"""
    SELECT count(*) AS count, coalesce(extract(epoch FROM now() - min(since)), 0)::float8 AS oldest_seconds
    FROM (SELECT since FROM pending LIMIT {_MANY}) AS counted"""  # noqa: S608 - our own text

# Without the lock of the row, an append that finds its conversation in the queue and commits after that was taken out
# would be lost. One that has changed since the snapshot of the statement is left for the next pass: the statement does
# not see attributes that it got meanwhile. Nobody is waited for: that deadlocks with appends to several conversations.
_LOCKED = """
    locked AS MATERIALIZED (
        SELECT conversations.id, conversations.active_time,
            coalesce(conversations.active_time, conversations.create_time) AS listed, conversations.create_time
        FROM conversations JOIN seen ON conversations.id = seen.id
        WHERE conversations.version = seen.version
        ORDER BY conversations.id FOR NO KEY UPDATE OF conversations SKIP LOCKED
    )"""
_MOVED = """
    moved AS (
        UPDATE activity SET active_time = {source}.listed FROM {source}
        WHERE activity.conversation_id = {source}.id AND activity.active_time <> {source}.listed
    ), marked AS (
        UPDATE conversation_attributes AS held SET active_time = {source}.listed FROM {source}
        WHERE held.conversation_id = {source}.id AND coalesce(held.active_time, held.create_time) <> {source}.listed
    )"""
# The next conversations of the queue behind the id $1 that were there at $2; the last id, how many there were, and how
# many could be settled.
_SETTLE = f"""
    WITH queued AS MATERIALIZED (
        SELECT conversation_id FROM pending WHERE conversation_id > $1 AND since <= $2
        ORDER BY conversation_id LIMIT $3
    ), seen AS MATERIALIZED (
        SELECT id, version FROM queued JOIN conversations ON id = conversation_id
    ), {_LOCKED}, {_MOVED.format(source="locked")}, settled AS (
        DELETE FROM pending WHERE conversation_id IN (
            SELECT id FROM locked
            UNION ALL SELECT conversation_id FROM queued
            WHERE NOT EXISTS (SELECT FROM conversations WHERE id = conversation_id))
        RETURNING 1
    )
    SELECT max(conversation_id) AS last, count(*) AS found, (SELECT count(*) FROM settled) AS settled FROM queued"""  # noqa: S608

_PROGRESS = "SELECT conversation_id FROM activity_progress WHERE NOT is_done FOR UPDATE"
# Of the next conversations behind the id $1: those whose time is not known, since they were appended to before there
# was a column for it, and those whose times in lists are not the same.
_COMPARE = f"""
    WITH page AS MATERIALIZED (
        SELECT id FROM conversations WHERE id > $1 ORDER BY id LIMIT $2
    ), seen AS MATERIALIZED (
        SELECT id, version FROM page JOIN conversations USING (id) JOIN activity ON conversation_id = id
        WHERE (conversations.active_time IS NULL AND last_sequence > 0)
            OR activity.active_time <> coalesce(conversations.active_time, create_time)
    ), {_LOCKED}, newest AS MATERIALIZED (
        SELECT id, coalesce(active_time, greatest(create_time, (
            SELECT items.create_time FROM items WHERE conversation_id = id ORDER BY sequence DESC LIMIT 1))) AS listed
        FROM locked
    ), found AS (
        UPDATE conversations SET active_time = listed FROM newest WHERE conversations.id = newest.id
    ), {_MOVED.format(source="newest")}
    SELECT max(id) AS last, (SELECT count(*) FROM seen) - (SELECT count(*) FROM locked) AS skipped FROM page"""  # noqa: S608
_NOTE = "UPDATE activity_progress SET conversation_id = $1"
_END = "UPDATE activity_progress SET is_done = true"
_BEGIN = "UPDATE activity_progress SET conversation_id = '', is_done = false WHERE is_done OR conversation_id <> ''"


Work = Callable[[asyncpg.Connection], Awaitable[object]]


async def acquire_lock(connection: asyncpg.Connection) -> bool:
    """Returns whether this session may work, from now on until it ends; False while another one does."""
    return bool(await connection.fetchval(_TRY_LOCK, _LOCK))


async def settle(connection: asyncpg.Connection) -> int:
    """Moves the times of the conversations that are in the queue now; returns how many were taken out.

    Those that somebody has locked stay.

    Args:
        connection: With the settings `SESSION`, and not in a transaction.
    """
    began, after = await connection.fetchval(_NOW), ""
    total: int = 0
    while True:
        row = await connection.fetchrow(_SETTLE, after, began, _STEP)
        total += row["settled"]
        if row["found"] < _STEP:
            return total
        after = row["last"]


async def compare(connection: asyncpg.Connection, seconds: float) -> bool:
    """Goes on comparing all times with those of the conversations, for some seconds; returns whether it is through.

    Steps are committed with how far they came. One that finds a conversation locked is tried again by the next call.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        async with connection.transaction():
            after = await connection.fetchval(_PROGRESS)
            if after is None:
                return True
            row = await connection.fetchrow(_COMPARE, after, _SCANNED)
            if row["last"] is None:
                await connection.execute(_END)
            elif row["skipped"]:
                return False
            else:
                await connection.execute(_NOTE, row["last"])
    return False


async def begin_comparison(connection: asyncpg.Connection) -> bool:
    """Has all times compared from the first on, because appends leave nothing in the queue; whether that is new."""
    return count_of(await connection.execute(_BEGIN)) > 0


async def queue_state(connection: asyncpg.Connection) -> tuple[int, float]:
    """Returns how many conversations are in the queue, and for how many seconds the oldest one has been."""
    row = await connection.fetchrow(_STATE)
    return row["count"], row["oldest_seconds"]
