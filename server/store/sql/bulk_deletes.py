"""The statement that deletes the conversations that match a filter."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    bindparam,
    func,
    literal_column,
    select,
    update,
)

from server.authorization.permission import Permission
from server.store.sql.conversations import RangeKind, filter_conditions, first_rows, first_rows_in
from server.store.sql.schema import Time, conversations
from server.store.sql.statement import Statement, compile_statement
from server.store.sql.visibility import allowed, visible, visible_one

_c = conversations.c
_one: ColumnElement[int] = literal_column("1", BigInteger)


@dataclass(frozen=True)
class Matching:
    """Which conversations match: those that a list with the same filter shows, and that may be deleted.

    Attributes:
        read: To read a conversation.
        delete: To delete it.
        filters_owner: Whether the filter has an owner.
        filters_source: Whether it has the source of forks.
        covered: Whether all of them lie in a few index ranges.
    """

    read: Permission
    delete: Permission
    filters_owner: bool
    filters_source: bool
    covered: bool

    def conditions(self, visible: ColumnElement[bool]) -> tuple[ColumnElement[bool], ...]:
        """All that must hold, beside `visible`."""
        compared = filter_conditions(owner=self.filters_owner, source=self.filters_source)
        return (visible, allowed(self.delete), *compared)

    def first(self) -> Select[Any]:
        """The oldest ones, ``count`` at most."""
        conditions = self.conditions(visible(self.read))
        return first_rows((_c.id, _c.create_time), conditions, covered=self.covered, descending=False)


@lru_cache(maxsize=512)
def count(matching: Matching) -> Statement:
    """How many conversations match, ``count`` at most."""
    return compile_statement(select(func.count().label("found")).select_from(matching.first().subquery()), "read")


@lru_cache(maxsize=512)
def find(matching: Matching) -> Statement:
    """The ids of the first ``count``, for a distributed database; ``matching`` is not covered."""
    return compile_statement(matching.first(), "read")


@lru_cache(maxsize=512)
def find_in(matching: Matching, kind: RangeKind) -> Statement:
    """As `find`, in the ranges of one kind."""
    conditions = matching.conditions(visible(matching.read))
    return compile_statement(first_rows_in(kind, (_c.id, _c.create_time), conditions, descending=False), "read")


@lru_cache(maxsize=512)
def delete(matching: Matching, *, skip_locked: bool) -> Statement:
    """Turns all but the last of the first ``count`` into tombstones; returns the id of each, and whether it was.

    ``skip_locked``: those that another transaction has locked are left out. Otherwise the statement waits for them, one
    after the other, and holds those that it has: only for one at a time.

    A conversation that changed since the snapshot of the statement is looked at again when its row is locked.
    """
    found = matching.first().cte("found")
    targets = (
        select(found.c.id)
        .order_by(found.c.create_time, found.c.id)
        .limit(bindparam("count", type_=Integer) - literal_column("1", Integer))
        .cte("targets")
    )
    deleted = _delete(_lock(matching, targets, skip_locked=skip_locked).cte("locked")).cte("deleted")
    query = (
        select(found.c.id, deleted.c.id.is_not(None).label("is_deleted"))
        .select_from(found.outerjoin(deleted, deleted.c.id == found.c.id))
        .order_by(found.c.create_time, found.c.id)
    )
    return compile_statement(query, "write", waits=not skip_locked)


@lru_cache(maxsize=512)
def delete_one(matching: Matching, *, skip_locked: bool) -> Statement:
    """Turns one conversation into a tombstone if it still matches; returns its id. ``skip_locked`` as of `delete`."""
    locked = (
        select(_c.id)
        .where(*matching.conditions(visible_one(matching.read)))
        .with_for_update(of=conversations, key_share=True, skip_locked=skip_locked)
        .cte("locked")
    )
    deleted = _delete(locked).cte("deleted")
    return compile_statement(select(deleted.c.id), "write", waits=not skip_locked)


def _lock(matching: Matching, targets: CTE, *, skip_locked: bool) -> Select[Any]:
    """Locks rows in the order of their ids, as every statement does that locks several."""
    conditions = matching.conditions(visible_one(matching.read, targets.c.id))
    return (
        select(_c.id)
        .select_from(targets.join(conversations, _c.id == targets.c.id))
        .where(*conditions)
        .order_by(_c.id)
        .with_for_update(of=conversations, key_share=True, skip_locked=skip_locked)
    )


def _delete(locked: CTE) -> Any:
    return (
        update(conversations)
        .where(_c.id == locked.c.id)
        .values(delete_time=bindparam("now", type_=Time), version=_c.version + _one)
        .returning(_c.id)
    )
