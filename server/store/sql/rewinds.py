"""Statements that delete the items behind a place of a conversation."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    Text,
    bindparam,
    case,
    func,
    literal_column,
    select,
    update,
)

from server.authorization.permission import Permission
from server.store.sql.conversations import COLUMNS
from server.store.sql.idempotency import reserve
from server.store.sql.item_batch import all_allowed
from server.store.sql.schema import Time, conversations, items
from server.store.sql.statement import Statement, compile_statement
from server.store.sql.visibility import alive, visible_one

MAX_ITEMS = 1_000  # that one rewind deletes

_c, _i = conversations.c, items.c
_id: ColumnElement[str] = bindparam("conversation_id", type_=Text)
_behind: ColumnElement[bool] = _i.sequence > bindparam("sequence", type_=BigInteger)
_one: ColumnElement[int] = literal_column("1", BigInteger)


def _number(value: int) -> ColumnElement[int]:
    return literal_column(str(value), Integer)


@lru_cache(maxsize=512)
def rewind(read: Permission, item_read: Permission, delete: Permission, *, expects: bool, reserves: bool) -> Statement:
    """Turns all items behind a place into tombstones; returns their conversation, or no row if a condition fails.

    Args:
        read: To read the conversation.
        item_read: Must cover every one of the items.
        delete: Likewise.
        expects: Whether the conversation's last_sequence must be the parameter ``expected``.
        reserves: Whether there is a request id.

    There is no row either when another transaction has changed the conversation between the snapshot of the statement
    and the lock of the row: the statement does not see the items of that change.
    """
    newest = _newest(alive(items)).cte("newest")
    conditions = [visible_one(read), _is_unchanged(), *_allowed(newest, item_read, delete)]
    conditions.append(_count(newest) <= _number(MAX_ITEMS))
    if expects:
        conditions.append(_c.last_sequence == bindparam("expected", type_=BigInteger))
    bumped = (
        update(conversations)
        .where(*conditions)
        .values(version=_c.version + func.least(_count(newest), _one))  # nothing deleted is no change
        .returning(*COLUMNS, _c.version)
        .cte("bumped")
    )
    emptied = (
        update(items)
        .where(_i.conversation_id == _id, _behind, alive(items), bumped.c.id == _id)
        .values(
            body=literal_column("''"),
            delete_time=bindparam("now", type_=Time),
            version=bumped.c.version,
        )
        .cte("emptied")
    )
    statement: Select[Any] = select(*(bumped.c[column.name] for column in COLUMNS)).add_cte(emptied)
    if reserves:
        statement = statement.add_cte(reserve(bumped).cte("reserved"))
    return compile_statement(statement, "write")


@lru_cache(maxsize=512)
def refusal(read: Permission, item_read: Permission, delete: Permission, *, deleted: bool) -> Statement:
    """Why a rewind was refused: a conversation, whether its items behind a place are covered, and how many there are.

    The columns are ``is_read`` and ``is_deleted``, whether the permissions cover all the items; ``last_sequence``; and
    ``least``, the lowest place behind which there are no more items than `MAX_ITEMS`, NULL if there are fewer.

    ``deleted``: the items are the tombstones instead, to authorize a rewind that is repeated.
    """
    newest = _newest(_i.delete_time.is_not(None) if deleted else alive(items)).cte("newest")
    is_read, is_deleted = (all_allowed(permission, newest) for permission in (item_read, delete))
    full = _count(newest) > _number(MAX_ITEMS)
    lowest = select(func.min(newest.c.sequence)).scalar_subquery()
    query = select(
        _c.last_sequence,
        is_read.label("is_read"),
        is_deleted.label("is_deleted"),
        case((full, lowest)).label("least"),
    )
    return compile_statement(query.where(visible_one(read)), "read")


def _newest(condition: ColumnElement[bool]) -> Select[Any]:
    """The newest items behind the place, one more than may be deleted."""
    return (
        select(_i.sequence, _i.item_id)
        .where(_i.conversation_id == _id, _behind, condition)
        .order_by(_i.sequence.desc())
        .limit(_number(MAX_ITEMS + 1))
    )


def _allowed(newest: CTE, *permissions: Permission) -> Iterable[ColumnElement[bool]]:
    return (all_allowed(permission, newest) for permission in permissions)


def _count(newest: CTE) -> ColumnElement[int]:
    count: ColumnElement[int] = select(func.count()).select_from(newest).scalar_subquery()
    return count


def _is_unchanged() -> ColumnElement[bool]:
    """Whether the conversation is as the snapshot of the statement has it, also after the wait for the row's lock."""
    seen = conversations.alias("seen")
    return _c.version == select(seen.c.version).where(seen.c.id == _id).scalar_subquery()
