"""Statements on the log of changes."""

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    exists,
    false,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA

from server.authorization.permission import Permission
from server.store.sql.conversations import COLUMNS
from server.store.sql.fitting import fit_in_order, told_body
from server.store.sql.predicate import condition
from server.store.sql.schema import EPOCH_BITS, change_log, changes, conversations, items
from server.store.sql.statement import Statement, compile_statement
from server.store.sql.visibility import alive, item_allowed, visible_one

MAX_CHANGES = 100  # of a message
MAX_SCANNED = 2000  # changes that one read looks at
MAX_POLLED = 500  # changes that one poll tells of
MAX_MAP_BYTES = 1024 * 1024  # of metadata and attributes of one read
_g, _log, _c, _i = changes.c, change_log.c, conversations.c, items.c
_tenant: ColumnElement[str] = bindparam("tenant", type_=Text)
_KEY = (_g.position, _g.conversation_id, _g.version)
_MAPS = ("metadata", "attributes")


def _number(value: int) -> ColumnElement[int]:
    return literal_column(str(value), Integer)


def _position_of(transaction: ColumnElement[Any]) -> ColumnElement[int]:
    """The position of a transaction id in this epoch of the log."""
    number = cast(cast(transaction, Text), BigInteger)
    base: ColumnElement[int] = select(_log.epoch.op("<<")(_number(EPOCH_BITS))).scalar_subquery()
    return base + number


_snapshot = func.pg_current_snapshot()
# Below it every transaction has ended, so what is there is all that will ever be.
_horizon: ColumnElement[int] = _position_of(func.pg_snapshot_xmin(_snapshot))
# No transaction of this database can have written it: the log is that of another one, as after a restored dump.
_beyond: ColumnElement[int] = _position_of(func.pg_snapshot_xmax(_snapshot))


def _state() -> tuple[ColumnElement[Any], ...]:
    """The columns with which every statement on the log begins."""
    latest = select(func.max(_g.position)).scalar_subquery()  # read from the end of the index, whatever the statistics
    return (
        and_(_log.is_on, func.coalesce(latest < _beyond, true())).label("is_kept"),
        _log.floor,
        _horizon.label("horizon"),
        func.coalesce(latest >= _horizon, false()).label(
            "is_held"
        ),  # there are committed changes that cannot be told yet
        func.now().label("now"),  # from before the snapshot
    )


def _start() -> Statement:
    """The state of the log."""
    return compile_statement(select(*_state()), "read")


def _after_key(query: Select[Any], limit: int) -> Select[Any]:
    """The first ``limit`` rows of ``query`` behind a key, below the horizon."""
    key = tuple_(
        bindparam("position", type_=BigInteger),
        bindparam("after_id", type_=Text),
        bindparam("version", type_=BigInteger),
    )
    return query.where(tuple_(*_KEY) > key, _g.position < _horizon).order_by(*_KEY).limit(_number(limit))


def _poll() -> Statement:
    """The state of the log, and the first changes behind a key: whom they may concern. One row of NULLs if none."""
    names = ("tenant", "owner", "attributes", "old_tenant", "old_owner", "old_attributes")
    found = _after_key(select(*_KEY, *(_g[name] for name in names)), MAX_POLLED).subquery("found")
    order = (found.c.position, found.c.conversation_id, found.c.version)
    query = select(*_state(), *found.c).select_from(change_log.outerjoin(found, true())).order_by(*order)
    return compile_statement(query, "read")


START = _start()
POLL = _poll()


@lru_cache(maxsize=512)
def read(read: Permission) -> Statement:
    """The state of the log, and the first changes behind a key that concern a caller; one row of NULLs if none do.

    A change concerns who may read the conversation after it, or could before. The conversation is as it is now, and
    NULL if it cannot be read any more; ``is_told`` is false from where maps would have more than `MAX_MAP_BYTES`
    together. ``scanned_…`` is the key of the last change that was looked at; NULL if all were. ``is_known`` says
    whether the change that was told last is in the log, unless the purge has removed it.
    """
    scanned = _after_key(select(*_g), MAX_SCANNED).cte("scanned")
    last, concerned = _last_of(scanned).subquery("last"), _concerned(read, scanned.c).subquery("concerned")
    visible = visible_one(read, concerned.c.conversation_id)
    now = select(*COLUMNS, _c.purged_version).where(visible).lateral("conversation")
    order = _key_of(concerned.c)
    fits = _maps_fit(now.c, order)
    query = (
        select(
            *_state(),
            _is_known(),
            *(column.label(f"scanned_{name}") for name, column in last.c.items()),
            *(column.label(f"change_{name}") for name, column in concerned.c.items()),
            fits.label("is_told"),
            *(case((fits, column)).label(name) if name in _MAPS else column for name, column in now.c.items()),
        )
        .select_from(change_log.outerjoin(last, true()).outerjoin(concerned, true()).outerjoin(now, true()))
        .order_by(*order)
    )
    return compile_statement(query, "read")


def _key_of(columns: Any) -> tuple[ColumnElement[Any], ...]:
    return columns.position, columns.conversation_id, columns.version


def _last_of(scanned: CTE) -> Select[Any]:
    """The key of the last of ``scanned``, if there may be more behind it."""
    full = select(func.count()).select_from(scanned).scalar_subquery() >= _number(MAX_SCANNED)
    key = _key_of(scanned.c)
    return select(*key).where(full).order_by(*(column.desc() for column in key)).limit(_number(1))


def _concerned(read: Permission, scanned: Any) -> Select[Any]:
    """The first of ``scanned`` of which the caller is to be told."""
    key = _key_of(scanned)
    found = select(*key, scanned.previous_sequence, scanned.last_sequence).where(_concerns(read, scanned))
    return found.order_by(*key).limit(_number(MAX_CHANGES + 1))


def _maps_fit(now: Any, order: tuple[ColumnElement[Any], ...]) -> ColumnElement[bool]:
    """Whether the maps of a conversation fit into one read with those before it; the first ones always do."""
    size = func.octet_length(cast(now.metadata, Text)) + func.octet_length(cast(now.attributes, Text))
    return fit_in_order(func.coalesce(size, _number(0)), order, _number(MAX_MAP_BYTES))


def _is_known() -> ColumnElement[bool]:
    told = (
        bindparam("told_position", type_=BigInteger),
        bindparam("told_id", type_=Text),
        bindparam("told_version", type_=BigInteger),
    )
    kept = exists(select(_g.position).where(tuple_(*_KEY) == tuple_(*told)))
    return or_(told[0] < _log.floor, kept).label("is_known")


def _concerns(read: Permission, row: Any) -> ColumnElement[bool]:
    """Whether ``read`` covered the conversation after a change, or before it; the columns before it may be NULL."""
    after = condition(read, row.owner, row.attributes, row.conversation_id)
    before = condition(read, row.old_owner, row.old_attributes, row.conversation_id)
    return or_(and_(row.tenant == _tenant, after), and_(row.old_tenant == _tenant, before))


# The columns of the parameters of `items_of`, an array each: one row for each change.
RANGES = {
    "conversation_id": Text,
    "version": BigInteger,  # of the items that were deleted
    "after": BigInteger,  # the sequence behind which items were appended
    "last": BigInteger,  # and the last of them
    "place": BigInteger,  # the sequence up to which the deleted ones are told already
}


@lru_cache(maxsize=512)
def items_of(read: Permission, item_read: Permission) -> Statement:
    """The items of several changes, in order: those with a sequence in a range, and those deleted in a version.

    ``change_number`` is the number of the row in `RANGES`, from 1. A change without items has a row of NULLs, and none
    if the caller cannot read the conversation any more.

    Bodies are NULL beyond ``page_bytes`` together, except that the first may be as large as ``large_bytes``; one above
    that is never read.
    """
    arrays: list[ColumnElement[Any]] = [
        bindparam(f"ranges_{name}", type_=ARRAY(type_)) for name, type_ in RANGES.items()
    ]
    ranges = func.unnest(*arrays).table_valued(*RANGES, with_ordinality="change_number", name="ranges")
    ranges = ranges.render_derived()
    found = union_all(_appended(ranges, item_read), _deleted(ranges, item_read)).lateral("found")
    joined = ranges.join(conversations, visible_one(read, ranges.c.conversation_id)).outerjoin(found, true())
    columns = (ranges.c.change_number, *found.c)
    order = (ranges.c.change_number, found.c.sequence)
    page = select(*columns).select_from(joined).order_by(*order).limit(_number(MAX_CHANGES + 1)).subquery("page")
    in_order = (page.c.change_number, page.c.sequence)
    names = ("change_number", "sequence", "item_id", "deleted", "size")
    told = [*(page.c[name] for name in names), told_body(page.c, in_order)]
    return compile_statement(select(*told).order_by(*in_order), "read")


def _appended(ranges: Any, item_read: Permission) -> Select[Any]:
    columns = (_i.sequence, _i.item_id, false().label("deleted"), func.octet_length(_i.body).label("size"), _i.body)
    return (
        select(*columns)
        .where(_i.conversation_id == ranges.c.conversation_id, alive(items))
        .where(_i.sequence > ranges.c.after, _i.sequence <= ranges.c.last, item_allowed(item_read, _i.item_id))
        .order_by(_i.sequence)
        .limit(_number(MAX_CHANGES + 1))
        .correlate(conversations, ranges)
    )


def _deleted(ranges: Any, item_read: Permission) -> Select[Any]:
    none = (_number(0).label("size"), cast(null(), BYTEA).label("body"))
    return (
        select(_i.sequence, _i.item_id, true().label("deleted"), *none)
        .where(_i.conversation_id == ranges.c.conversation_id, _i.delete_time.is_not(None))
        .where(_i.version == ranges.c.version, _i.sequence > ranges.c.place, item_allowed(item_read, _i.item_id))
        .order_by(_i.sequence)
        .limit(_number(MAX_CHANGES + 1))
        .correlate(conversations, ranges)
    )
