"""Statements that copy the beginning of a conversation into a new one."""

from functools import lru_cache
from typing import Any, Literal, TypeAlias

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Integer,
    LargeBinary,
    Select,
    Text,
    and_,
    any_,
    bindparam,
    cast,
    func,
    insert,
    literal_column,
    not_,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, aggregate_order_by

from server.authorization.permission import Permission
from server.store.sql.attributes import insert_attributes
from server.store.sql.conversations import COLUMNS, MAX_PAIRS, count_names
from server.store.sql.creates import EXPIRIES
from server.store.sql.expiry import schedule_check
from server.store.sql.idempotency import reserve
from server.store.sql.item_batch import author_for, author_of
from server.store.sql.predicate import condition
from server.store.sql.schema import Time, conversations, items
from server.store.sql.statement import Statement, compile_statement
from server.store.sql.visibility import alive, allowed, item_allowed, visible_one

# How a fork says which place is its last one.
Through: TypeAlias = Literal["all", "sequence", "item"]

_c, _i = conversations.c, items.c
_source = conversations.alias("source")
_source_id: ColumnElement[str] = bindparam("source_id", type_=Text)
_id: ColumnElement[str] = bindparam("conversation_id", type_=Text)
_tenant: ColumnElement[str] = bindparam("tenant", type_=Text)
_owner: ColumnElement[str] = bindparam("owner", type_=Text)
_now: ColumnElement[Any] = bindparam("now", type_=Time)
_sent_attributes: ColumnElement[Any] = bindparam("sent_attributes", type_=ARRAY(Text))
_one: ColumnElement[int] = literal_column("1", BigInteger)
_most_pairs: ColumnElement[int] = literal_column(str(MAX_PAIRS), Integer)


class Permissions(tuple[Permission, Permission, Permission, Permission, Permission]):
    """What a fork needs: to read the source and its items, to create a conversation and items, to share the source."""

    __slots__ = ()


@lru_cache(maxsize=512)
def fork(permissions: Permissions, through: Through, *, reserves: bool) -> Statement:
    """Inserts a conversation with a copy of the beginning of another; returns it, or no row if a condition fails.

    Args:
        permissions: Of the caller, who becomes the owner.
        through: How the request says which place is the last one.
        reserves: Whether there is a request id.

    All that it reads is of one snapshot, so that it needs no lock: what it copies is the source as it was then.
    At most ``max_places`` with ``max_bytes`` are copied.
    """
    read, item_read = permissions[:2]
    source = _found(read, item_read, through).cte("found")
    columns = _columns(source.c.audience, source.c.merged, source.c.through, source.c.id)
    conditions = _conditions(permissions, source)
    query = select(*columns.values()).where(*conditions)
    created = insert(conversations).from_select(list(columns), query).returning(*COLUMNS).cte("created")
    statement: Select[Any] = select(*created.c).add_cte(
        _copy_items(item_read, source, created),
        insert_attributes(created, created.c.attributes, _now).cte("indexed"),
        schedule_check(created).cte("scheduled"),
    )
    if reserves:
        statement = statement.add_cte(reserve(created).cte("reserved"))
    # Only the id of a repeated fork can be that of another session's row.
    return compile_statement(statement, "write", waits=reserves)


def _conditions(permissions: Permissions, source: CTE) -> tuple[ColumnElement[bool], ...]:
    """All that must hold for the source to be copied."""
    _read, item_read, create, item_create, share = permissions
    return (
        source.c.through <= bindparam("max_places", type_=BigInteger),
        _may_share(share, source),
        _may_create(create, source, _id),
        _may_create_items(item_read, item_create, source),
        _size(item_read, source) <= bindparam("max_bytes", type_=BigInteger),
        *_fits(source),
    )


def _columns(
    attributes: ColumnElement[Any],
    metadata: ColumnElement[Any],
    through: ColumnElement[int],
    forked_from: ColumnElement[str],
) -> dict[str, ColumnElement[Any]]:
    """The columns of the fork."""
    return {
        "id": _id,
        "tenant": _tenant,
        "owner": _owner,
        "attributes": attributes,
        "metadata": metadata,
        "last_sequence": through,
        "version": _one,
        "revision": _one,
        "create_time": _now,
        "update_time": _now,
        "forked_from": forked_from,
        "forked_sequence": through,
        **{name: bindparam(name, type_=type_) for name, type_ in EXPIRIES.items()},
    }


# The columns of the items of a fork that is read before it is stored, and their parameters, an array each.
_COPIED: dict[str, tuple[str, Any]] = {
    "sequence": ("sequences", BigInteger),
    "item_id": ("item_ids", Text),
    "type": ("types", Text),
    "role": ("roles", Text),
    "status": ("statuses", Text),
    "create_time": ("create_times", Time),
    "body": ("bodies", LargeBinary),
    "author": ("authors", Text),
}


@lru_cache(maxsize=512)
def read_source(permissions: Permissions, through: Through) -> Statement:
    """What `store_copy` stores, of one snapshot of the source; no row if a condition of `fork` fails.

    On a distributed database the two conversations may be at different nodes.
    """
    read, item_read = permissions[:2]
    source = _found(read, item_read, through).cte("found")
    author = author_for(author_of(_i.author, source.c.owner), _owner)
    values = {name: author if name == "author" else _i[name] for name in _COPIED}
    arrays = [
        func.coalesce(func.array_agg(aggregate_order_by(values[name], _i.sequence)), _empty(type_)).label(array)
        for name, (array, type_) in _COPIED.items()
    ]
    copied = _copied(item_read, source, *arrays).lateral("copied")
    query = (
        select(source.c.through, source.c.merged, source.c.audience, *copied.c)
        .select_from(source.join(copied, true()))
        .where(select(and_(*_conditions(permissions, source))).correlate(source).scalar_subquery())
    )  # in a subquery, since Citus refuses the join that PostgreSQL makes of a NOT EXISTS in WHERE
    return compile_statement(query, "read")


def _empty(type_: Any) -> ColumnElement[Any]:
    return cast(literal_column("'{}'", Text), ARRAY(type_))


@lru_cache(maxsize=2)
def store_copy(*, reserves: bool) -> Statement:
    """Inserts a fork whose source has been read; returns it. ``reserves`` as of `fork`."""
    last = bindparam("through", type_=BigInteger)
    columns = _columns(
        bindparam("audience", type_=ARRAY(Text)),
        cast(bindparam("merged", type_=Text), JSONB),
        last,
        bindparam("forked_from", type_=Text),
    )
    query = select(*columns.values())
    created = insert(conversations).from_select(list(columns), query).returning(*COLUMNS).cte("created")
    arrays = [bindparam(array, type_=ARRAY(type_)) for array, type_ in _COPIED.values()]
    sent = func.unnest(*arrays).table_valued(*_COPIED, name="sent").render_derived()
    rows = select(created.c.id, _one, *sent.c).select_from(created.join(sent, true()))
    statement: Select[Any] = select(*created.c).add_cte(
        insert(items).from_select(["conversation_id", "version", *_COPIED], rows).cte("copied"),
        insert_attributes(created, created.c.attributes, _now).cte("indexed"),
        schedule_check(created).cte("scheduled"),
    )
    if reserves:
        statement = statement.add_cte(reserve(created).cte("reserved"))
    return compile_statement(statement, "write", waits=reserves)


@lru_cache(maxsize=512)
def refusal(permissions: Permissions, through: Through) -> Statement:
    """Why a fork stored nothing: the source with a column for each condition; no row when it is not found.

    ``through`` is NULL when the item that the request names is not found.
    """
    read, item_read, create, item_create, share = permissions
    source = _found(read, item_read, through).cte("found")
    metadata_fits, attributes_fit = _fits(source)
    query = select(
        source.c.through,
        _may_share(share, source).label("may_share"),
        _may_create(create, source, _id).label("may_create"),
        _may_create_items(item_read, item_create, source).label("may_create_items"),
        _size(item_read, source).label("size"),
        metadata_fits.label("metadata_fits"),
        attributes_fit.label("attributes_fit"),
    )
    return compile_statement(query, "read")


def _found(read: Permission, item_read: Permission, through: Through) -> Select[Any]:
    """The source, with the last place to copy, and the metadata and the attributes that the fork is to have."""
    sent = cast(bindparam("metadata", type_=Text), JSONB)
    return select(
        _source.c.id,
        _source.c.owner,
        _source.c.attributes,
        _last_place(item_read, through).label("through"),
        _source.c.metadata.op("||", return_type=JSONB())(sent).label("merged"),
        _audience().label("audience"),
    ).where(visible_one(read, _source_id, _source))


def _last_place(item_read: Permission, through: Through) -> ColumnElement[Any]:
    last: ColumnElement[Any] = _source.c.last_sequence
    if through == "all":
        return last
    if through == "sequence":
        return func.least(last, bindparam("through_sequence", type_=BigInteger))
    return (
        select(_i.sequence)
        .where(_i.conversation_id == _source_id, _i.item_id == bindparam("through_item_id", type_=Text))
        .where(_i.delete_time.is_(None), item_allowed(item_read, _i.item_id, _source))
        .correlate(_source)
        .scalar_subquery()
    )


def _audience() -> ColumnElement[Any]:
    """The attributes of the fork, sorted: those that were sent, and of other names those of the source and the caller.

    So nobody sees a fork who could not see its source, unless the caller may share that.
    """
    held = func.unnest(_source.c.attributes).column_valued("held")
    name = func.split_part(held, literal_column("'='"), literal_column("1"))
    kept = select(held).where(
        held == any_(bindparam("own_attributes", type_=ARRAY(Text))),
        not_(name == any_(bindparam("sent_names", type_=ARRAY(Text)))),
    )
    both = kept.union(select(func.unnest(_sent_attributes))).subquery("both")
    audience: ColumnElement[Any] = func.array(select(both.c[0]).order_by(both.c[0]).scalar_subquery())
    return audience


def _may_share(share: Permission, source: CTE) -> ColumnElement[bool]:
    """Whether the source has all the attributes that were sent, or may be shared."""
    held = source.c.attributes.op("@>", is_comparison=True)(cast(_sent_attributes, ARRAY(Text)))
    return or_(held, allowed(share, source))


def _may_create(create: Permission, source: CTE, row_id: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether ``create`` covers a row of the fork: its owner is the caller."""
    return condition(create, _owner, source.c.audience, row_id)


def _may_create_items(item_read: Permission, item_create: Permission, source: CTE) -> ColumnElement[bool]:
    """Whether every item that is copied may be created in the fork."""
    copied = _copied(item_read, source, _i.item_id)
    if item_create.reads_row_id:
        return not_(copied.where(not_(_may_create(item_create, source, _i.item_id))).exists())
    return or_(_may_create(item_create, source, literal_column("''")), not_(copied.exists()))


def _size(item_read: Permission, source: CTE) -> ColumnElement[int]:
    """The bytes of the items that are copied; sizes are read without the bodies."""
    total = func.coalesce(func.sum(func.octet_length(_i.body)), literal_column("0", BigInteger))
    size: ColumnElement[int] = _copied(item_read, source, total).scalar_subquery()
    return size


def _copied(item_read: Permission, source: CTE, *columns: ColumnElement[Any]) -> Select[Any]:
    """Columns of the items that are copied: those that the caller may read, up to the last place.

    Places beyond ``max_places`` are not read: a fork of more is refused for that.
    """
    last = func.least(source.c.through, bindparam("max_places", type_=BigInteger))
    return (
        select(*columns)
        .where(_i.conversation_id == _source_id, _i.sequence <= last, alive(items))
        .where(item_allowed(item_read, _i.item_id, source))
        .correlate(source)
    )


def _fits(source: CTE) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Whether the metadata and the attributes of the fork are not too many."""
    keys = select(func.count()).select_from(func.jsonb_object_keys(source.c.merged).alias("key")).scalar_subquery()
    return keys <= _most_pairs, count_names(source.c.audience) <= _most_pairs


def _copy_items(item_read: Permission, source: CTE, created: CTE) -> CTE:
    names = ("sequence", "item_id", "type", "role", "status", "create_time", "body")
    author = author_for(author_of(_i.author, source.c.owner), _owner)
    copied = and_(_i.conversation_id == _source_id, _i.sequence <= source.c.through, alive(items))
    query = (
        select(created.c.id, _one, *(_i[name] for name in names), author)
        .select_from(created.join(source, true()).join(items, copied))
        .where(item_allowed(item_read, _i.item_id, source))
    )  # in the order of the primary key, by which they are read
    return insert(items).from_select(["conversation_id", "version", *names, "author"], query).cte("copied")
