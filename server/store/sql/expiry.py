"""How the expiry of a conversation is set, moved and found again."""

from typing import Any

from sqlalchemy import CTE, ColumnElement, Insert, Interval, bindparam, func, literal_column, select
from sqlalchemy.dialects.postgresql import insert as pg_insert

from server.store.sql.schema import Time, conversations, expirations

_c = conversations.c
_NEVER: ColumnElement[Any] = literal_column("'infinity'", Time)


def expiry_after_append() -> ColumnElement[Any]:
    """The expire_time after an append: `idle_ttl` from now, never earlier than before, never beyond the limit.

    With an `idle_ttl` of 0 it stays, since a conversation that has expired is not appended to.
    """
    return func.greatest(_c.expire_time, func.least(_c.limit_time, func.now() + _c.idle_ttl))


def changed_expiry() -> dict[str, ColumnElement[Any]]:
    """The columns of an update that changes when a conversation ends.

    Parameters that are NULL keep ``new_expire_time`` and ``new_idle_ttl``; ``at_most``, counted from the create_time,
    is a limit that the conversation may not have had before.
    """
    limit = func.least(_c.limit_time, _c.create_time + bindparam("at_most", type_=Interval))
    chosen = func.coalesce(bindparam("new_expire_time", type_=Time), _c.expire_time)
    return {
        "limit_time": limit,
        "expire_time": func.least(limit, chosen),
        "idle_ttl": func.coalesce(bindparam("new_idle_ttl", type_=Interval), _c.idle_ttl),
    }


def schedule_check(written: CTE) -> Insert:
    """Has the purge look at the conversations of ``written``, which has their id and expire_time, when they expire."""
    due = select(written.c.id, written.c.expire_time).where(written.c.expire_time < _NEVER)
    insert = pg_insert(expirations).from_select(["conversation_id", "check_time"], due)
    sooner = func.least(expirations.c.check_time, insert.excluded.check_time)
    return insert.on_conflict_do_update(index_elements=["conversation_id"], set_={"check_time": sooner})
