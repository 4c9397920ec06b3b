"""The statements of items."""

from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    Text,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from server.store.batch import all_found, placed, resolved, sent
from server.store.conversation_sql import COLUMNS
from server.store.requests import reserve
from server.store.schema import Time, conversations, items
from server.store.statement import Statement, compiled
from server.store.visibility import visible

_c, _i = conversations.c, items.c
_id: ColumnElement[str] = bindparam("conversation_id", type_=Text)
_now: ColumnElement[datetime] = bindparam("now", type_=Time)
_one: ColumnElement[int] = literal_column("1", BigInteger)


@lru_cache
def append(*, expects: bool, refers: bool, reserves: bool) -> Statement:
    """The row lock that the counter takes makes the order of commits the order of items."""
    rows = resolved() if refers else sent()
    size: ColumnElement[int] = bindparam("size", type_=BigInteger)
    conditions = [_c.id == _id, visible()]
    if expects:
        conditions.append(_c.last_sequence == bindparam("expected", type_=BigInteger))
    if refers:
        conditions.append(all_found(rows))
    bumped = (
        update(conversations)
        .where(*conditions)
        .values(last_sequence=_c.last_sequence + size, version=_c.version + _one)
        .returning(_c.id, (_c.last_sequence - size).label("base"), _c.version)
        .cte("bumped")
    )
    statement: Select[Any] = select(bumped.c.base).add_cte(placed(rows, bumped))
    if reserves:
        statement = statement.add_cte(reserve(bumped, bumped.c.base + _one, size).cte("reserved"))
    return compiled(statement)


_item_is = and_(_i.conversation_id == _c.id, _i.item_id == bindparam("item_id", type_=Text), _i.delete_time.is_(None))
GET = compiled(
    select(_i.sequence, _i.body).select_from(conversations.outerjoin(items, _item_is)).where(_c.id == _id, visible())
)
RANGE = compiled(
    select(_i.sequence, _i.item_id, _i.delete_time, _i.body)
    .join_from(conversations, items, _i.conversation_id == _c.id)
    .where(
        _c.id == _id,
        visible(),
        _i.sequence.between(bindparam("first", type_=BigInteger), bindparam("last", type_=BigInteger)),
    )
    .order_by(_i.sequence)
)


def _fitting(body: ColumnElement[bytes], order: ColumnElement[Any]) -> ColumnElement[bytes]:
    """``body``, or NULL where a message would be too big with it; sizes are read without the bodies."""
    size = func.octet_length(body)
    total = func.sum(size).over(order_by=order, rows=(None, 0))
    fits = or_(total <= bindparam("page_bytes", type_=BigInteger), total == size)  # the first always does
    return case((fits, body)).label("body")


def _get_batch() -> Statement:
    asked = func.unnest(bindparam("item_ids", type_=ARRAY(Text))).table_valued(
        "item_id", with_ordinality="ordinal", name="asked"
    )
    asked = asked.render_derived()
    here = and_(_i.conversation_id == _c.id, _i.item_id == asked.c.item_id, _i.delete_time.is_(None))
    return compiled(
        select(_i.sequence, _fitting(_i.body, asked.c.ordinal))
        .select_from(conversations.join(asked, true()).outerjoin(items, here))
        .where(_c.id == _id, visible())
        .order_by(asked.c.ordinal)
    )


GET_BATCH = _get_batch()


@lru_cache(maxsize=512)
def page(shape: tuple[tuple[str, str], ...], *, by_id: bool, descending: bool) -> Statement:
    """A row for the conversation in any case, so that an empty page and a missing one differ."""
    position = _place_of_id() if by_id else bindparam("position", type_=BigInteger)
    order = _i.sequence.desc() if descending else _i.sequence.asc()
    page = (
        select(_i.sequence, _fitting(_i.body, order))
        .where(
            _i.conversation_id == _c.id,
            _i.delete_time.is_(None),
            _i.sequence < position if descending else _i.sequence > position,
            *_conditions(shape),
        )
        .order_by(order)
        .limit(bindparam("count", type_=Integer))
        .lateral("page")
    )
    return compiled(
        select(page.c.sequence, page.c.body, position.label("position"))
        .select_from(conversations.outerjoin(page, true()))
        .where(_c.id == _id, visible())
        .order_by(page.c.sequence.desc() if descending else page.c.sequence)
    )


def _place_of_id() -> ColumnElement[int]:
    """The sequence of the item named as cursor; a deleted one counts when no living one has the id."""
    cursor = items.alias("cursor")
    return (
        select(cursor.c.sequence)
        .where(cursor.c.conversation_id == _id, cursor.c.item_id == bindparam("after", type_=Text))
        .order_by(cursor.c.delete_time.desc().nulls_first())
        .limit(literal_column("1"))
        .scalar_subquery()
    )


def _conditions(shape: Iterable[tuple[str, str]]) -> Iterable[ColumnElement[bool]]:
    for number, (name, operator) in enumerate(shape):
        value = bindparam(f"value_{number}", type_=Time if name == "create_time" else Text)
        yield _i[name].op(operator, is_comparison=True)(value)


@lru_cache
def delete(*, reserves: bool) -> Statement:
    """Empties one item; the conversation's row is locked first, as by every write."""
    target = items.alias("target")
    there = (
        select(target.c.sequence)
        .where(
            target.c.conversation_id == _id,
            target.c.item_id == bindparam("item_id", type_=Text),
            target.c.delete_time.is_(None),
        )
        .exists()
    )
    bumped = (
        update(conversations)
        .where(_c.id == _id, visible(), there)
        .values(version=_c.version + _one)
        .returning(*COLUMNS, _c.version)
        .cte("bumped")
    )
    emptied = (
        update(items)
        .where(
            _i.conversation_id == bumped.c.id,
            _i.item_id == bindparam("item_id", type_=Text),
            _i.delete_time.is_(None),
        )
        .values(body=literal_column("''"), delete_time=_now, version=bumped.c.version)
        .returning(_i.sequence)
        .cte("emptied")
    )
    statement: Select[Any] = select(*(bumped.c[column.name] for column in COLUMNS)).join_from(bumped, emptied, true())
    if reserves:
        statement = statement.add_cte(reserve(emptied).cte("reserved"))
    return compiled(statement)
