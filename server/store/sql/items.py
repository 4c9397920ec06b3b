"""Statements on items.

Each names its conversation by a parameter for every table, so that on a sharded database it concerns one shard.
"""

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
    all_,
    and_,
    any_,
    bindparam,
    case,
    func,
    literal_column,
    not_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from server.authorization.permission import Permission
from server.store.sql.conversations import COLUMNS
from server.store.sql.expiry import expiry_after_append
from server.store.sql.fitting import fit_in_order
from server.store.sql.idempotency import reserve
from server.store.sql.item_batch import (
    all_allowed,
    all_found,
    author_of,
    copied_rows,
    fit_together,
    insert_items,
    resolved_rows,
    sent_rows,
)
from server.store.sql.queue import active_time_after_append, enqueue
from server.store.sql.schema import Time, conversations, items
from server.store.sql.statement import Statement, compile_statement
from server.store.sql.visibility import alive, item_allowed, visible, visible_one

_c, _i = conversations.c, items.c
_id: ColumnElement[str] = bindparam("conversation_id", type_=Text)
_now: ColumnElement[datetime] = bindparam("now", type_=Time)
_one: ColumnElement[int] = literal_column("1", BigInteger)
_item_id: ColumnElement[str] = bindparam("item_id", type_=Text)


@lru_cache(maxsize=512)
def append(
    read: Permission,
    create: Permission,
    references: Permission | None,
    *,
    expects: bool,
    queues: bool,
    reserves: bool,
    copied: bool = False,
) -> Statement:
    """Appends items; returns the last sequence before them, or no row when a condition does not hold.

    Args:
        read: To read the conversation.
        create: To create items in it.
        references: To read items, if some are references; all together must then fit into ``max_bytes``.
        expects: Whether the conversation's last_sequence must be the parameter ``expected``.
        queues: Whether the conversation enters the queue.
        reserves: Whether there is a request id.
        copied: Whether references have been read before, so that there are none any more.

    The row lock of the conversation makes the order of items that of commits.
    """
    rows = resolved_rows(read, references) if references else copied_rows() if copied else sent_rows()
    size: ColumnElement[int] = bindparam("size", type_=BigInteger)
    conditions = [visible_one(read), all_allowed(create, rows)]
    if expects:
        conditions.append(_c.last_sequence == bindparam("expected", type_=BigInteger))
    if references:
        conditions += [all_found(rows), fit_together(rows)]
    bumped = (
        update(conversations)
        .where(*conditions)
        .values(
            last_sequence=_c.last_sequence + size,
            version=_c.version + _one,
            active_time=active_time_after_append(_now),
            expire_time=expiry_after_append(),
        )
        .returning(_c.id, _c.owner, (_c.last_sequence - size).label("base"), _c.version)
        .cte("bumped")
    )
    statement: Select[Any] = select(bumped.c.base).add_cte(insert_items(rows, bumped))
    if queues:
        statement = statement.add_cte(enqueue(bumped))
    if reserves:
        statement = statement.add_cte(reserve(bumped, bumped.c.base + _one, size).cte("reserved"))
    return compile_statement(statement, "append")


@lru_cache(maxsize=512)
def get(read: Permission, item_read: Permission, *others: Permission) -> Statement:
    """One item, with a column for each of ``others``, named as it is: whether it covers the item.

    When only the conversation exists there is a row of NULLs; no row when not even that does. A body of more than
    ``share`` bytes is NULL too.
    """
    same = _i.item_id == _item_id
    joined = and_(_i.conversation_id == _id, same, _i.delete_time.is_(None), item_allowed(item_read, _i.item_id))
    found = conversations.outerjoin(items, joined)
    covered = [item_allowed(permission, _i.item_id).label(permission.name) for permission in others]
    size = func.octet_length(_i.body).label("size")
    columns = (_i.sequence, _small(_i.body), size, *covered)
    return compile_statement(select(*columns).select_from(found).where(visible_one(read)), "read")


@lru_cache(maxsize=512)
def between(read: Permission, item_read: Permission, *, bodies: bool) -> Statement:
    """The items and tombstones with the sequences ``first`` to ``last``, both included.

    ``bodies``: also their bodies, NULL from where they would not fit into ``page_bytes``.
    """
    first, last = bindparam("first", type_=BigInteger), bindparam("last", type_=BigInteger)
    body = _fitting(_i.body, _i.sequence) if bodies else ()
    return compile_statement(
        select(_i.sequence, _i.item_id, _i.delete_time, *body)
        .join_from(conversations, items, _i.conversation_id == _id)
        .where(visible_one(read), item_allowed(item_read, _i.item_id), _i.sequence.between(first, last))
        .order_by(_i.sequence),
        "read",
    )


@lru_cache(maxsize=512)
def refusal(read: Permission, permission: Permission) -> Statement:
    """A conversation's last_sequence, and whether ``permission`` covers items with these ids, which need not exist."""
    item_id = func.unnest(bindparam("item_ids", type_=ARRAY(Text))).column_valued("named")
    denied = select(item_id).where(not_(item_allowed(permission, item_id))).correlate(conversations).exists()
    return compile_statement(select(_c.last_sequence, not_(denied).label("allowed")).where(visible_one(read)), "read")


def _small(body: ColumnElement[bytes]) -> ColumnElement[bytes]:
    """``body``, or NULL when it has more than ``share`` bytes."""
    return case((func.octet_length(body) <= bindparam("share", type_=Integer), body)).label("body")


def _fitting(body: ColumnElement[bytes], order: ColumnElement[Any]) -> tuple[ColumnElement[Any], ...]:
    """The columns ``size`` and ``body``; the latter is NULL when there would be more than ``page_bytes`` up to it.

    The first one in ``order`` may have ``single_bytes``. Sizes are read without the bodies.
    """
    size = func.octet_length(body)
    fits = fit_in_order(size, order, first=size <= bindparam("single_bytes", type_=Integer))
    return size.label("size"), case((fits, body)).label("body")


@lru_cache(maxsize=512)
def get_batch(read: Permission, item_read: Permission) -> Statement:
    """Items by id in the order of ``item_ids``; a row of NULLs for each that does not exist."""
    ids = func.unnest(bindparam("item_ids", type_=ARRAY(Text)))
    named = ids.table_valued("item_id", with_ordinality="ordinal", name="asked").render_derived()
    same = and_(_i.conversation_id == _id, _i.item_id == named.c.item_id, _i.delete_time.is_(None))
    joined = and_(same, item_allowed(item_read, _i.item_id))
    return compile_statement(
        select(_i.sequence, *_fitting(_i.body, named.c.ordinal))
        .select_from(conversations.join(named, true()).outerjoin(items, joined))
        .where(visible_one(read))
        .order_by(named.c.ordinal),
        "read",
    )


@lru_cache(maxsize=512)
def referenced(read: Permission, item_read: Permission) -> Statement:
    """The items of one conversation that references name by ``item_ids``, as they are copied.

    Bodies are NULL beyond ``page_bytes`` together.
    """
    named = and_(_i.item_id == any_(bindparam("item_ids", type_=ARRAY(Text))), _i.delete_time.is_(None))
    joined = and_(_i.conversation_id == _id, named, item_allowed(item_read, _i.item_id))
    columns = (_i.item_id, _i.type, _i.role, _i.status, _i.create_time, author_of(_i.author, _c.owner).label("author"))
    query = select(*columns, *_fitting(_i.body, _i.item_id)).select_from(conversations.join(items, joined))
    return compile_statement(query.where(visible_one(read)), "read")


@lru_cache(maxsize=512)
def locate(read: Permission, item_read: Permission) -> Statement:
    """The conversations that items are in, of those whose ids end with ``tags``; a row for each item that is found."""
    named = (
        func.unnest(bindparam("item_ids", type_=ARRAY(Text)), bindparam("tags", type_=ARRAY(Text)))
        .table_valued("item_id", "tag", name="named")
        .render_derived()
    )
    tagged = and_(visible(read), func.right(_c.id, literal_column("16")) == named.c.tag)
    same = and_(_i.conversation_id == _c.id, _i.item_id == named.c.item_id, _i.delete_time.is_(None))
    return compile_statement(
        select(named.c.item_id, _c.id.label("conversation_id"))
        .select_from(named.join(conversations, tagged).join(items, and_(same, item_allowed(item_read, _i.item_id))))
        .order_by(_c.create_time),
        "read",
    )


@lru_cache(maxsize=512)
def page(
    read: Permission,
    item_read: Permission,
    *,
    filtered: bool,
    by_id: bool,
    live: bool,
    descending: bool,
    small: bool,
) -> Statement:
    """A page of items by sequence; a row of NULLs when it is empty, no row when the conversation is not found.

    Args:
        read: To read the conversation.
        item_read: To read items.
        filtered: Whether there is a filter.
        by_id: Whether the page follows an item id instead of a sequence; there is then a column
            ``position``, NULL when the conversation never had the item.
        live: Whether ``position`` is NULL also when the item was deleted.
        descending: Whether newest come first.
        small: Whether bodies of more than ``share`` bytes are NULL, instead of those that would not fit
            into ``page_bytes``. It takes half the time of adding up sizes (ADR 10).
    """
    position = _sequence_of_cursor(item_read, live=live) if by_id else bindparam("position", type_=BigInteger)
    order = _i.sequence.desc() if descending else _i.sequence.asc()
    bodies = (_small(_i.body),) if small else _fitting(_i.body, order)
    page = (
        select(_i.sequence, *bodies)
        .where(
            _i.conversation_id == _id,
            alive(items),
            item_allowed(item_read, _i.item_id),
            _i.sequence < position if descending else _i.sequence > position,
            *(_filter_conditions() if filtered else ()),
        )
        .order_by(order)
        .limit(bindparam("count", type_=Integer))
        .lateral("page")
    )
    cursor = [position.label("position")] if by_id else []
    return compile_statement(
        select(*page.c, *cursor)
        .select_from(conversations.outerjoin(page, true()))
        .where(visible_one(read))
        .order_by(page.c.sequence.desc() if descending else page.c.sequence),
        "read",
    )


def _sequence_of_cursor(item_read: Permission, *, live: bool) -> ColumnElement[int]:
    """The sequence of the item ``after``, if it may be read; of a deleted one only when no other has the id.

    ``live``: never of a deleted one.
    """
    cursor = items.alias("cursor")
    return (
        select(cursor.c.sequence)
        .where(cursor.c.conversation_id == _id, cursor.c.item_id == bindparam("after", type_=Text))
        .where(item_allowed(item_read, cursor.c.item_id), *((cursor.c.delete_time.is_(None),) if live else ()))
        .order_by(cursor.c.delete_time.desc().nulls_first())
        .limit(literal_column("1"))
        .correlate(conversations)
        .scalar_subquery()
    )


def _filter_conditions() -> Iterable[ColumnElement[bool]]:
    """Every comparison that a filter may have, with an array of values for each kind; an empty one is always true."""
    yield _i.create_time >= bindparam("start_time", type_=Time)
    yield _i.create_time < bindparam("end_time", type_=Time)
    for name in ("type", "role", "status"):
        yield _i[name] == all_(bindparam(f"{name}_is", type_=ARRAY(Text)))
        yield _i[name] != all_(bindparam(f"{name}_is_not", type_=ARRAY(Text)))


@lru_cache(maxsize=512)
def delete(read: Permission, item_read: Permission, delete: Permission, *, reserves: bool) -> Statement:
    """Turns one item into a tombstone; returns its conversation, whose row is locked first, as by every write."""
    target = items.alias("target")
    exists = (
        select(target.c.sequence)
        .where(
            target.c.conversation_id == _id,
            target.c.item_id == _item_id,
            target.c.delete_time.is_(None),
        )
        .exists()
    )
    bumped = (
        update(conversations)
        .where(visible_one(read), item_allowed(item_read, _item_id), item_allowed(delete, _item_id), exists)
        .values(version=_c.version + _one)
        .returning(*COLUMNS, _c.version)
        .cte("bumped")
    )
    emptied = (
        update(items)
        .where(
            _i.conversation_id == _id,
            _i.item_id == _item_id,
            _i.delete_time.is_(None),
        )
        .values(body=literal_column("''"), delete_time=_now, version=bumped.c.version)
        .returning(_i.sequence)
        .cte("emptied")
    )
    statement: Select[Any] = select(*(bumped.c[column.name] for column in COLUMNS)).join_from(bumped, emptied, true())
    if reserves:
        statement = statement.add_cte(reserve(emptied).cte("reserved"))
    return compile_statement(statement, "write")
