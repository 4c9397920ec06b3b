"""Statements that find and hide the conversations of a subject, and those on the table of erasures.

A conversation that is to be erased has the delete_time `-infinity`: nobody can undelete it, and the purge leaves it to
the erasure, which counts it.
"""

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
    exists,
    func,
    literal_column,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import BYTEA, UUID
from sqlalchemy.dialects.postgresql import insert as pg_insert

from server.store.sql.conversations import filter_conditions
from server.store.sql.schema import Time, conversations, erasures, items, page_token_keys, requests
from server.store.sql.statement import Statement, compile_statement

ERASED = "'-infinity'"  # the delete_time of conversations that an erasure has hidden

_c, _e = conversations.c, erasures.c
_tenant: ColumnElement[str] = bindparam("tenant", type_=Text)
_id: ColumnElement[str] = bindparam("id", type_=UUID(as_uuid=False))
_erased: ColumnElement[Any] = literal_column(f"{ERASED}::timestamptz", Time)
_one, _zero = literal_column("1", BigInteger), literal_column("0", BigInteger)
_KEY = (_c.owner, _c.create_time, _c.id)


@lru_cache(maxsize=8)
def hide(*, filters_owner: bool, filters_source: bool, deleted: bool) -> Statement:
    """Hides those of the next ``scanned`` conversations that match a filter, behind a key of owner, time and id.

    Returns the last key, and how many matched, ``found``, those included that another session has locked; no row when
    there are no more.

    Args:
        filters_owner: Whether the filter has an owner.
        filters_source: Whether it has the source of forks.
        deleted: Whether it looks among deleted conversations, instead of those that live.
    """
    scanned = _scanned(filters_owner=filters_owner, deleted=deleted)
    matched = _matched(scanned, filters_owner=filters_owner, filters_source=filters_source)
    locked = (
        select(_c.id)
        .join_from(conversations, matched, _c.id == matched.c.id)
        .where(_c.tenant == _tenant, _c.delete_time.is_distinct_from(_erased))
        .order_by(_c.id)
        .with_for_update(of=conversations, key_share=True, skip_locked=True)
        .cte("locked")
    )
    # Who follows a conversation is told of it once.
    version = _c.version + case((_c.delete_time.is_(None), _one), else_=_zero)
    hidden = (
        update(conversations)
        .where(_c.id == locked.c.id)
        .values(delete_time=_erased, version=version)
        .returning(_c.id)
        .cte("hidden")
    )
    found = select(func.count()).select_from(matched).scalar_subquery().label("found")
    return compile_statement(_last_of(scanned, found).add_cte(hidden), "write")


@lru_cache(maxsize=8)
def count(*, filters_owner: bool, filters_source: bool, deleted: bool) -> Statement:
    """As `hide`, but counts what would be removed: conversations, items and request ids; not those of ``principal``."""
    scanned = _scanned(filters_owner=filters_owner, deleted=deleted)
    matched = _matched(scanned, filters_owner=filters_owner, filters_source=filters_source)

    def counted(table: Any, *conditions: ColumnElement[bool]) -> Any:
        ids = select(matched.c.id)
        return select(func.count()).select_from(table).where(table.c.conversation_id.in_(ids), *conditions)

    others = requests.c.principal != bindparam("principal", type_=Text)
    columns = (
        select(func.count()).select_from(matched).scalar_subquery().label("conversations"),
        counted(items).scalar_subquery().label("items"),
        counted(requests, others).scalar_subquery().label("requests"),
    )
    return compile_statement(_last_of(scanned, *columns), "read")


def _scanned(*, filters_owner: bool, deleted: bool) -> CTE:
    """The next conversations of an index by owner; with an owner, only that one's."""
    after = (
        bindparam("after_owner", type_=Text),
        bindparam("after_time", type_=Time),
        bindparam("after_id", type_=Text),
    )
    query = select(*_KEY).where(
        _c.tenant == _tenant,
        tuple_(*_KEY) > tuple_(*after),
        _c.delete_time > _erased if deleted else _c.delete_time.is_(None),
    )
    if filters_owner:
        query = query.where(_c.owner == bindparam("filter_owner", type_=Text))
    return query.order_by(*_KEY).limit(bindparam("scanned", type_=Integer)).cte("scanned")


def _matched(scanned: CTE, *, filters_owner: bool, filters_source: bool) -> CTE:
    joined = select(_c.id).join_from(conversations, scanned, _c.id == scanned.c.id)
    return joined.where(*filter_conditions(owner=filters_owner, source=filters_source)).cte("matched")


def _last_of(scanned: CTE, *columns: ColumnElement[Any]) -> Select[Any]:
    key = (scanned.c.owner, scanned.c.create_time, scanned.c.id)
    return select(*key, *columns).order_by(*(column.desc() for column in key)).limit(literal_column("1"))


def _fingerprint() -> ColumnElement[Any]:
    """Of a subject, keyed: whoever reads the table cannot find out by trying whom an erasure was about."""
    subject = func.sha256(func.convert_to(bindparam("subject", type_=Text), literal_column("'UTF8'")))
    return func.sha256(page_token_keys.c.secret.op("||", return_type=BYTEA())(subject))


def _begin() -> Statement:
    """Inserts an erasure, unless the tenant has one with its id."""
    values = {
        "tenant": _tenant,
        "id": _id,
        "principal": bindparam("principal", type_=Text),
        "filter": bindparam("filter", type_=Text),
        "fingerprint": _fingerprint(),
        "requested_by": bindparam("requested_by", type_=Text),
    }
    newest = select(func.max(page_token_keys.c.id)).scalar_subquery()
    source = select(*values.values()).where(page_token_keys.c.id == newest)
    statement = pg_insert(erasures).from_select(list(values), source).on_conflict_do_nothing().returning(_e.id)
    return compile_statement(statement, "write")


def _get() -> Statement:
    """An erasure that was asked for in the last 90 days."""
    recent = _e.begin_time > func.now() - literal_column("interval '90 days'")
    return compile_statement(select(erasures).where(_e.tenant == _tenant, _e.id == _id, recent), "read")


def _get_same() -> Statement:
    """An erasure, and whether it ``is_same``: whether it is that of ``subject``."""
    same = exists().where(_e.fingerprint == _fingerprint()).label("is_same")
    return compile_statement(select(*_e, same).where(_e.tenant == _tenant, _e.id == _id), "read")


BEGIN, GET, GET_SAME = _begin(), _get(), _get_same()
