"""Statements on conversations."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from sqlalchemy import (
    CTE,
    BigInteger,
    Boolean,
    ColumnElement,
    FromClause,
    Integer,
    Interval,
    Select,
    Text,
    all_,
    any_,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    not_,
    null,
    or_,
    select,
    true,
    tuple_,
    union,
    update,
)
from sqlalchemy import delete as delete_from
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from server.authorization.permission import Permission
from server.store.sql.attributes import insert_attributes
from server.store.sql.expiry import changed_expiry, schedule_check
from server.store.sql.fitting import fit_in_order
from server.store.sql.idempotency import reserve
from server.store.sql.queue import enqueue
from server.store.sql.schema import Time, activity, conversation_attributes, conversations
from server.store.sql.statement import Statement, compile_statement
from server.store.sql.visibility import alive, allowed, readable_one, unexpired, visible, visible_one

MAX_PAIRS = 16  # of metadata, and names of attributes

_c = conversations.c
_id: ColumnElement[str] = bindparam("conversation_id", type_=Text)
_now: ColumnElement[datetime] = bindparam("now", type_=Time)
_one: ColumnElement[int] = literal_column("1", BigInteger)
_most: ColumnElement[int] = literal_column(str(MAX_PAIRS), Integer)
FIXED_BYTES = 512  # more than a message takes for what is not in a map
_count: ColumnElement[int] = bindparam("count", type_=Integer)
COLUMNS = (
    _c.id,
    _c.owner,
    _c.attributes,
    _c.metadata,
    _c.last_sequence,
    _c.revision,
    _c.create_time,
    _c.update_time,
    _c.expire_time,
    _c.idle_ttl,
    _c.forked_from,
    _c.forked_sequence,
    func.coalesce(_c.active_time, _c.create_time).label("active_time"),
)


@lru_cache(maxsize=512)
def get(read: Permission, *others: Permission) -> Statement:
    """One conversation, with a column for each of ``others``, named as it is: whether it covers the conversation."""
    covered = [allowed(permission).label(permission.name) for permission in others]
    return compile_statement(select(*COLUMNS, *covered).where(visible_one(read)), "read")


@lru_cache(maxsize=512)
def get_deleted(read: Permission, delete: Permission) -> Statement:
    """Whether ``delete`` covers a conversation or tombstone that may be read and has not expired, and which it is.

    ``kept`` of a tombstone: it can be brought back.
    """
    columns = (allowed(delete).label(delete.name), alive(conversations).label("alive"), _kept().label("kept"))
    return compile_statement(select(*columns).where(readable_one(read), unexpired()), "read")


def unnest(array: ColumnElement[Any]) -> Any:
    """The elements of ``array`` as a table with the column ``value``."""
    return func.unnest(array).table_valued("value").render_derived()


@lru_cache(maxsize=512)
def change(
    read: Permission,
    permissions: tuple[Permission, ...],
    *,
    attributes: bool,
    expiry: bool,
    queues: bool,
    reserves: bool,
) -> Statement:
    """Changes metadata, attributes and expiry; no row when a map would then have more than `MAX_PAIRS` names.

    Args:
        read: To read the conversation.
        permissions: All must cover the conversation as it is before the change.
        attributes: Whether attributes change.
        expiry: Whether it changes when the conversation ends.
        queues: Whether a conversation whose attributes change enters the queue.
        reserves: Whether there is a request id.
    """
    metadata = _merged_metadata()
    pairs = select(func.count()).select_from(func.jsonb_object_keys(metadata).alias("key")).scalar_subquery()
    conditions = [visible_one(read), *map(allowed, permissions), _revision_is(), pairs <= _most]
    values: dict[str, Any] = {
        "metadata": metadata,
        "revision": _c.revision + _one,
        "version": _c.version + _one,
        "update_time": _now,
    }
    if attributes:
        values["attributes"] = _merged_attributes()
        conditions.append(count_names(values["attributes"]) <= _most)
    if expiry:
        values |= changed_expiry()
    changed = update(conversations).where(*conditions).values(values).returning(*COLUMNS).cte("changed")
    statement: Select[Any] = select(*changed.c)
    if expiry:
        statement = statement.add_cte(schedule_check(changed).cte("scheduled"))
    if attributes:
        listed = select(activity.c.active_time).where(activity.c.conversation_id == changed.c.id).scalar_subquery()
        inserted = insert_attributes(changed, changed.c.attributes, changed.c.create_time, listed)
        new = inserted.on_conflict_do_nothing()  # the rows of the others exist
        statement = statement.add_cte(_delete_old_attributes(changed), new.cte("reindexed"))
        if queues:  # for the case that the time has been moved since the snapshot of this statement
            statement = statement.add_cte(enqueue(changed))
    return compile_statement(statement.add_cte(reserve(changed).cte("reserved")) if reserves else statement, "write")


def _delete_old_attributes(changed: CTE) -> CTE:
    """Deletes the rows of the attributes that the conversation no longer has."""
    gone = conversation_attributes.c.attribute != all_(changed.c.attributes)
    same = conversation_attributes.c.conversation_id == _id
    return delete_from(conversation_attributes).where(same, gone).cte("unindexed")


def count_names(attributes: ColumnElement[Any]) -> ColumnElement[int]:
    """The number of different names in ``attributes``, an array of ``name=value``."""
    pair = func.unnest(attributes).column_valued("pair")
    name = func.split_part(pair, literal_column("'='"), literal_column("1"))
    count: ColumnElement[int] = select(func.count(name.distinct())).scalar_subquery()
    return count


def _merged_metadata() -> ColumnElement[Any]:
    """The metadata after the change."""
    replace: ColumnElement[bool] = bindparam("replace_metadata", type_=Boolean)
    less = _c.metadata.op("-", return_type=JSONB())(bindparam("drop_metadata", type_=ARRAY(Text)))
    kept = case((replace, literal_column("'{}'", JSONB)), else_=less)
    new = func.cast(bindparam("new_metadata", type_=Text), JSONB)
    return kept.op("||", return_type=JSONB())(new)


def _merged_attributes() -> ColumnElement[Any]:
    """The attributes after the change, sorted."""
    replace: ColumnElement[bool] = bindparam("replace_attributes", type_=Boolean)
    held = func.unnest(_c.attributes).column_valued("held")
    name = func.split_part(held, literal_column("'='"), literal_column("1"))
    dropped = name == any_(bindparam("drop_attributes", type_=ARRAY(Text)))
    new = select(func.unnest(bindparam("new_attributes", type_=ARRAY(Text))))
    both = select(held).where(not_(replace), not_(dropped)).union(new).subquery("both")
    merged: ColumnElement[Any] = func.array(select(both.c[0]).order_by(both.c[0]).scalar_subquery())
    return merged


@lru_cache(maxsize=512)
def delete(read: Permission, delete: Permission, *, reserves: bool) -> Statement:
    """Turns a conversation into a tombstone."""
    deleted = (
        update(conversations)
        .where(visible_one(read), allowed(delete), _revision_is())
        .values(delete_time=_now, version=_c.version + _one)
        .returning(_c.id)
        .cte("deleted")
    )
    statement: Select[Any] = select(deleted.c.id)
    return compile_statement(statement.add_cte(reserve(deleted).cte("reserved")) if reserves else statement, "write")


@lru_cache(maxsize=512)
def undelete(read: Permission, delete: Permission, *, reserves: bool) -> Statement:
    """Turns a tombstone into a conversation again, unless it has expired or was deleted longer than ``keep`` ago.

    The purge marks what it removes, so that nothing comes back in part (`server.store.purge`).
    """
    undeleted = (
        update(conversations)
        .where(readable_one(read), allowed(delete), _kept(), unexpired())
        .values(delete_time=null(), version=_c.version + _one)
        .returning(*COLUMNS)
        .cte("undeleted")
    )
    statement: Select[Any] = select(*undeleted.c)
    return compile_statement(statement.add_cte(reserve(undeleted).cte("reserved")) if reserves else statement, "write")


def _kept() -> ColumnElement[bool]:
    return _c.delete_time > func.now() - bindparam("keep", type_=Interval)


def _revision_is() -> ColumnElement[bool]:
    expected: ColumnElement[int] = bindparam("revision", type_=BigInteger)
    return or_(expected.is_(None), _c.revision == expected)


@lru_cache(maxsize=512)
def page(
    read: Permission, *, filters_owner: bool | None, covered: bool, descending: bool, filters_source: bool = False
) -> Statement:
    """A page of conversations by (create_time, id).

    Args:
        read: To read a conversation.
        filters_owner: Whether the filter has an owner; None without a filter.
        filters_source: Whether the filter has the source of forks.
        covered: Whether all the caller may read lies in a few index ranges (`IndexRanges`); the first rows
            of each range are read in order, and merged.
        descending: Whether newest come first.

    Metadata and attributes are NULL from where they would not fit into ``page_bytes``.
    """
    conditions = (visible(read), *filter_conditions(owner=filters_owner, source=filters_source))
    rows = first_rows(COLUMNS, conditions, covered=covered, descending=descending)
    return compile_statement(fitting(rows, "create_time", descending=descending), "read")


# The kinds of index ranges that a distributed database reads one after the other; "owner" is a single one.
RangeKind: TypeAlias = Literal["owner", "owners", "attributes", "ids"]


@lru_cache(maxsize=512)
def range_page(read: Permission, kind: RangeKind, *, filters_owner: bool | None, descending: bool) -> Statement:
    """A page as of `page`, of the conversations in the ranges of one kind; for a distributed database.

    Each shard finds its own first rows. The ranges of a kind are read together, not each from its front.

    Args:
        read: To read a conversation.
        kind: Which ranges.
        filters_owner: As of `page`.
        descending: As of `page`.
    """
    conditions = (visible(read), *filter_conditions(owner=filters_owner, source=False))
    rows = first_rows_in(kind, COLUMNS, conditions, descending=descending)
    return compile_statement(fitting(rows, "create_time", descending=descending), "read")


def first_rows_in(
    kind: RangeKind,
    columns: Sequence[ColumnElement[Any]],
    conditions: tuple[ColumnElement[bool], ...],
    *,
    descending: bool,
) -> Select[Any]:
    """As `first_rows`, of the conversations in the ranges of one kind."""
    query = select(*columns)
    match kind:
        case "owner":
            inside = _c.owner == bindparam("cover_owner", type_=Text)
        case "owners":
            inside = _c.owner == any_(bindparam("cover_owners", type_=ARRAY(Text)))
        case "attributes":
            a = conversation_attributes.c
            value = a.attribute == any_(bindparam("cover_attributes", type_=ARRAY(Text)))
            held = select(a.conversation_id).where(
                a.conversation_id == _c.id, a.tenant == bindparam("tenant", type_=Text), value
            )
            inside = held.correlate(conversations).exists()
        case "ids":
            inside = _c.id == any_(bindparam("cover_ids", type_=ARRAY(Text)))
    return _first_rows(query, _c, (inside, *conditions), descending=descending)


def first_rows(
    columns: Sequence[ColumnElement[Any]],
    conditions: tuple[ColumnElement[bool], ...],
    *,
    covered: bool,
    descending: bool,
) -> Select[Any]:
    """The first ``count`` conversations behind a position, in the order of lists.

    Args:
        columns: To return.
        conditions: All must hold.
        covered: As of `page`.
        descending: Likewise.
    """
    if not covered:
        return _first_rows(select(*columns), _c, conditions, descending=descending)
    found = union(*[select(part.c.id) for part in _range_queries(conditions, descending=descending)]).cte("in_ranges")
    merged: Select[Any] = select(*columns).join_from(conversations, found, _c.id == found.c.id)
    return merged.order_by(*_order(_c, descending=descending)).limit(_count)


def fitting(query: Select[Any], time: str, *, descending: bool) -> Select[Any]:
    """The rows of ``query``, a page of `COLUMNS`, with the maps of only those that fit; the first one always does.

    ``time``: the name of the column that they are ordered by.
    """
    page = query.subquery("page").c
    order = tuple(column.desc() if descending else column.asc() for column in (page[time], page.id))
    maps = func.octet_length(cast(page.metadata, Text)) + func.octet_length(cast(page.attributes, Text))
    size = maps + literal_column(str(FIXED_BYTES), Integer)
    fits = fit_in_order(size, order)
    shown = [
        case((fits, column)).label(name) if name in ("metadata", "attributes") else column
        for name, column in page.items()
    ]
    return select(*shown).order_by(*order)


def _first_rows(
    query: Select[Any], keys: Any, conditions: Iterable[ColumnElement[bool]], *, descending: bool
) -> Select[Any]:
    """The first rows of ``query`` after the position, ordered by create_time and id, which are columns of ``keys``."""
    key = tuple_(keys.create_time, _id_of(keys))
    after = tuple_(bindparam("after_time", type_=Time), bindparam("after_id", type_=Text))
    following = key < after if descending else key > after
    return query.where(following, *conditions).order_by(*_order(keys, descending=descending)).limit(_count)


def _order(keys: Any, *, descending: bool) -> tuple[ColumnElement[Any], ...]:
    columns = (keys.create_time, _id_of(keys))
    return tuple(column.desc() if descending else column.asc() for column in columns)


def _id_of(keys: Any) -> ColumnElement[str]:
    return keys.conversation_id if "conversation_id" in keys else keys.id  # type: ignore[no-any-return]


def _range_queries(conditions: tuple[ColumnElement[bool], ...], *, descending: bool) -> Iterable[FromClause]:
    """The first rows of the ranges by owner, by attribute and by id."""
    a = conversation_attributes.c
    owners = unnest(bindparam("cover_owners", type_=ARRAY(Text)))
    by_owner = _first_rows(select(_c.id), _c, (_c.owner == owners.c.value, *conditions), descending=descending)
    values = unnest(bindparam("cover_attributes", type_=ARRAY(Text)))
    joined = select(_c.id).join_from(conversation_attributes, conversations, _c.id == a.conversation_id)
    same = (a.tenant == bindparam("tenant", type_=Text), a.attribute == values.c.value)
    by_value = _first_rows(joined, a, (*same, *conditions), descending=descending)
    for covering, query in ((owners, by_owner), (values, by_value)):
        rows = query.lateral()
        yield select(rows.c.id).select_from(covering).join(rows, true()).subquery()
    named = _c.id == any_(bindparam("cover_ids", type_=ARRAY(Text)))
    yield _first_rows(select(_c.id), _c, (named, *conditions), descending=descending).subquery()


def filter_conditions(*, owner: bool | None, source: bool) -> Iterable[ColumnElement[bool]]:
    """Every comparison that a filter may have, with an array of values for each kind; an empty one is always true.

    Only the owner and the source have an index of their own, so that their conditions are left out when there is none.
    """
    if owner is None:
        return
    if source:
        yield _c.forked_from == bindparam("filter_source", type_=Text)
        yield _c.forked_from == all_(bindparam("sources", type_=ARRAY(Text)))
    yield _c.create_time >= bindparam("start_time", type_=Time)
    yield _c.create_time < bindparam("end_time", type_=Time)
    if owner:
        yield _c.owner == bindparam("filter_owner", type_=Text)
    yield _c.owner == all_(bindparam("owners", type_=ARRAY(Text)))
    yield _c.owner != all_(bindparam("other_owners", type_=ARRAY(Text)))
    contains = _c.metadata.op("@>", is_comparison=True)
    yield contains(all_(cast(bindparam("metadata", type_=ARRAY(Text)), ARRAY(JSONB))))
    yield not_(contains(any_(cast(bindparam("other_metadata", type_=ARRAY(Text)), ARRAY(JSONB)))))
    yield _c.attributes.contains(cast(bindparam("with_attributes", type_=ARRAY(Text)), ARRAY(Text)))
    overlaps = _c.attributes.op("&&", is_comparison=True)
    yield not_(overlaps(cast(bindparam("other_attributes", type_=ARRAY(Text)), ARRAY(Text))))
