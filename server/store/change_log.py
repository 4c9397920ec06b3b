"""Turns the log of changes on and off: what WatchConversations reads (docs/adr/0032).

Triggers write the log, so that every writer is in it, also a process of an older version and an operator's SQL. The
position of a change is the id of its transaction, and never lower than that of the change of the same conversation
before: a transaction takes its id before it waits for a row, so ids alone would turn two changes around. All
transactions below the oldest one that still runs have ended, so whoever reads up to there misses none.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import asyncpg

from server.errors import OperatorError
from server.store.connection.layout import DISTRIBUTED, find_layout
from server.store.connection.opening import direct_connection
from server.store.lock_retries import LOCK_TIMEOUT, try_until_locked
from server.store.migrate import require_schema
from server.store.sql.schema import EPOCH_BITS
from server.store.steps import run_in_steps

_SESSION = {"lock_timeout": LOCK_TIMEOUT, "application_name": "conversations changes"}
_LOCK = "LOCK TABLE conversations IN SHARE ROW EXCLUSIVE MODE"  # what CREATE TRIGGER needs; readers go on

_POSITION = "conversations_set_position"
_LOG = "conversations_log_change"
# Names of the triggers, and what they do. The purge changes no version, so it is not logged.
_TRIGGERS = {
    "set_position_of_new": f"BEFORE INSERT ON conversations FOR EACH ROW EXECUTE FUNCTION {_POSITION}()",
    "set_position": "BEFORE UPDATE OF version ON conversations FOR EACH ROW "
    f"WHEN (NEW.version <> OLD.version) EXECUTE FUNCTION {_POSITION}()",
    "log_new": f"AFTER INSERT ON conversations FOR EACH ROW EXECUTE FUNCTION {_LOG}()",
    "log_change": "AFTER UPDATE OF version ON conversations FOR EACH ROW "
    f"WHEN (NEW.version <> OLD.version) EXECUTE FUNCTION {_LOG}()",
}

# {base} is the epoch in the upper bits; {schema} makes the writer's search_path irrelevant.
_FUNCTIONS = {
    _POSITION: """
        BEGIN
            NEW.position := greatest(OLD.position, {base} + pg_current_xact_id()::text::bigint);
            RETURN NEW;
        END""",
    _LOG: """
        DECLARE
            moved boolean := TG_OP = 'UPDATE'
                AND (OLD.tenant, OLD.owner, OLD.attributes) IS DISTINCT FROM (NEW.tenant, NEW.owner, NEW.attributes);
        BEGIN
            INSERT INTO {schema}.changes VALUES (
                NEW.position, NEW.id, NEW.version, coalesce(OLD.last_sequence, 0), NEW.last_sequence,
                NEW.tenant, NEW.owner, NEW.attributes,
                CASE WHEN moved THEN OLD.tenant END,
                CASE WHEN moved THEN OLD.owner END,
                CASE WHEN moved THEN OLD.attributes END,
                now());
            RETURN NULL;
        END""",
}

_BASE = f"(epoch << {EPOCH_BITS})"
_OLDEST = "pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
_NEWEST = "pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
# Of another database, as after a dump was restored: no transaction of this one can have written that position.
_IS_FOREIGN = f"coalesce((SELECT max(position) FROM changes) >= {_BASE} + {_NEWEST}, false)"  # noqa: S608 - our own text
_MANY = 100_000  # rows are estimated, not counted
_STATUS = f"""
    SELECT is_on, keep, since, floor, {_BASE} + {_OLDEST} AS horizon, {_IS_FOREIGN} AS is_foreign,
        (SELECT CASE WHEN reltuples > {_MANY} THEN reltuples::bigint ELSE (SELECT count(*) FROM changes) END
            FROM pg_class WHERE oid = 'changes'::regclass) AS rows,
        (SELECT min(change_time) FROM changes WHERE position >= {_BASE} + {_OLDEST}) AS held_since,
        now() AS now
    FROM change_log"""  # noqa: S608 - our own text
_TURN_ON = f"""
    UPDATE change_log SET is_on = true, keep = $1, epoch = epoch + 1, since = now(),
        floor = ((epoch + 1) << {EPOCH_BITS}) + {_OLDEST}
    RETURNING (epoch << {EPOCH_BITS}) AS base, quote_ident(current_schema()) AS schema"""  # noqa: S608 - our own text
_TURN_OFF = "UPDATE change_log SET is_on = false, since = now()"
_KEEP = "UPDATE change_log SET keep = $1"

# The oldest changes, up to the first that is kept: all from the floor on are there.
_PURGE = """
    WITH oldest AS (
        SELECT position, conversation_id, version, change_time FROM changes
        ORDER BY position, conversation_id, version LIMIT $1
    ), kept AS (
        SELECT position FROM oldest, change_log WHERE change_time > now() - keep
        ORDER BY position, conversation_id, version LIMIT 1
    ), old AS (
        SELECT * FROM oldest WHERE position < coalesce((SELECT position FROM kept), 9223372036854775807)
    ), raised AS (
        UPDATE change_log SET floor = greatest(floor, (SELECT max(position) + 1 FROM old))
        WHERE EXISTS (SELECT FROM old)
    )
    DELETE FROM changes USING old
    WHERE (changes.position, changes.conversation_id, changes.version)
        = (old.position, old.conversation_id, old.version)"""
_STEP = 5000  # rows of one statement


Turn = Callable[[asyncpg.Connection], Awaitable[None]]


class ChangesNotTurned(OperatorError):
    """The log of changes could not be turned on or off; the text is for the operator."""


@dataclass(frozen=True)
class ChangeLogStatus:
    """The state of the log.

    Attributes:
        is_on: Whether changes are kept.
        is_foreign: Whether it was written in another database, as after a restored dump: it has to be turned on again.
        keep: How long changes are kept.
        since: When it was turned on or off.
        rows: How many changes it has; from `_MANY` on an estimate.
        held: How long the oldest change has been waiting to be told, because an older transaction still runs.
    """

    is_on: bool
    is_foreign: bool
    keep: timedelta
    since: datetime
    rows: int
    held: timedelta


async def read_status(url: str) -> ChangeLogStatus:
    """Returns the state of the log.

    Raises:
        SchemaTooOld: As `require_schema`.
        DatabaseConfigError, DatabaseUnreachable: As `direct_connection`.
    """
    await require_schema(url)
    async with direct_connection(url, settings=_SESSION) as connection:
        row = await connection.fetchrow(_STATUS)
    held = row["now"] - row["held_since"] if row["held_since"] else timedelta()
    return ChangeLogStatus(row["is_on"], row["is_foreign"], row["keep"], row["since"], row["rows"], held)


async def turn_on(url: str, keep: timedelta, wait_seconds: float = 60) -> bool:
    """Has changes kept for ``keep``; returns whether that is new, so that every token from before has expired.

    The service may run meanwhile: writers wait for a moment, and every write from then on is logged.

    Raises:
        SchemaTooOld: As `require_schema`.
        ChangesNotTurned: PostgreSQL refuses it, or a transaction held the table for longer than ``wait_seconds``.
        DatabaseConfigError, DatabaseUnreachable: As `direct_connection`.
    """
    await _refuse_distributed(url)
    status = await read_status(url)
    if status.is_on and not status.is_foreign:
        async with direct_connection(url, settings=_SESSION) as connection:
            await connection.execute(_KEEP, keep)
        return False

    async def turn(connection: asyncpg.Connection) -> None:
        await _drop_triggers(connection)
        await connection.execute("TRUNCATE changes")
        row = await connection.fetchrow(_TURN_ON, keep)
        for name, body in _FUNCTIONS.items():
            text = body.format(base=row["base"], schema=row["schema"])
            await connection.execute(
                f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $${text}$$"
            )
        for name, what in _TRIGGERS.items():
            await connection.execute(f"CREATE TRIGGER {name} {what}")

    await _turn(url, turn, wait_seconds)
    return True


async def _refuse_distributed(url: str) -> None:
    """Returns if changes can be kept in this database.

    Raises:
        ChangesNotTurned: They cannot: positions in the log are transaction ids, of which each node has its own.
        DatabaseConfigError, DatabaseUnreachable: As `direct_connection`.
    """
    async with direct_connection(url, settings=_SESSION) as connection:
        if await find_layout(connection) is DISTRIBUTED:
            raise ChangesNotTurned(
                "The database is distributed, where changes cannot be kept: each node counts transactions by itself, "
                "so there is no order of the changes of all (docs/scale.md)."
            )


async def turn_off(url: str, wait_seconds: float = 60) -> bool:
    """Forgets all changes and keeps no more; returns whether there was anything to do. Raises as `turn_on` does."""
    if not (await read_status(url)).is_on:
        return False

    async def turn(connection: asyncpg.Connection) -> None:
        await _drop_triggers(connection)
        await connection.execute("TRUNCATE changes")
        await connection.execute(_TURN_OFF)

    await _turn(url, turn, wait_seconds)
    return True


async def purge_changes(connection: asyncpg.Connection) -> int:
    """Removes the changes that are older than `keep`, in short steps; returns how many."""
    if not await connection.fetchval("SELECT is_on FROM change_log"):
        return 0  # there are none
    return await run_in_steps(connection, _PURGE, _STEP)


async def _drop_triggers(connection: asyncpg.Connection) -> None:
    for name in _TRIGGERS:
        await connection.execute(f"DROP TRIGGER IF EXISTS {name} ON conversations")


async def _turn(url: str, turn: Turn, wait_seconds: float) -> None:
    """Runs ``turn`` in a transaction that has the lock of the table; tries again while a writer holds it."""
    async with direct_connection(url, settings=_SESSION) as connection:
        if not await try_until_locked(partial(_turn_between_writes, connection, turn), wait_seconds):
            raise ChangesNotTurned(
                f"A transaction held the conversations for {wait_seconds:g} seconds, and nothing was changed: "
                "end the session that holds them (pg_locks, pg_stat_activity), and try again."
            )


async def _turn_between_writes(connection: asyncpg.Connection, turn: Turn) -> bool:
    """Runs ``turn`` once; returns whether the lock was granted in time.

    Raises:
        ChangesNotTurned: PostgreSQL refuses it, for example because the role does not own the tables.
    """
    try:
        async with connection.transaction():
            await connection.execute(_LOCK)
            await turn(connection)
    except asyncpg.LockNotAvailableError:
        return False
    except asyncpg.PostgresError as error:
        raise ChangesNotTurned(f"PostgreSQL refused it, and nothing was changed: {type(error).__name__}.") from error
    return True
