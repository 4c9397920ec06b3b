"""How a write has the times that lists are ordered by moved: it puts its conversation in the queue."""

from typing import Any

from sqlalchemy import CTE, ColumnElement, func, select
from sqlalchemy.dialects.postgresql import insert

from server.store.sql.schema import conversations, pending

_c = conversations.c


def active_time_after_append(now: ColumnElement[Any]) -> ColumnElement[Any]:
    """The active_time after an append of items of ``now``: theirs, so that an import can tell it from them.

    It is never earlier than before, since processes have clocks of their own.
    """
    return func.greatest(_c.active_time, _c.create_time, now)


def enqueue(written: CTE) -> CTE:
    """Puts the conversations of ``written``, which has their ids, in the queue; nothing is written if they are there.

    It must hold the locks of their rows, without which `server.store.activity` takes nothing out.
    """
    statement = insert(pending).from_select(["conversation_id"], select(written.c.id))
    return statement.on_conflict_do_nothing().cte("queued")
