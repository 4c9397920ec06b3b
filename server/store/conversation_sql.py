"""The statements of conversations."""

from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Executable,
    Integer,
    Select,
    Text,
    any_,
    bindparam,
    case,
    func,
    insert,
    literal_column,
    not_,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, array

from server.store.batch import all_found, placed, resolved, sent
from server.store.requests import reserve
from server.store.schema import Time, conversations
from server.store.statement import Statement, compiled
from server.store.visibility import visible

MAX_PAIRS = 16  # of metadata, and names of attributes

_c = conversations.c
_id: ColumnElement[str] = bindparam("conversation_id", type_=Text)
_now: ColumnElement[datetime] = bindparam("now", type_=Time)
_one: ColumnElement[int] = literal_column("1", BigInteger)
COLUMNS = (
    _c.id,
    _c.owner,
    _c.attributes,
    _c.metadata,
    _c.last_sequence,
    _c.revision,
    _c.create_time,
    _c.update_time,
)


GET = compiled(select(*COLUMNS).where(_c.id == _id, visible()))


@lru_cache
def create(*, items: bool, refers: bool, reserves: bool) -> Statement:
    """Inserts a conversation with its first items; none of it when a reference is not found."""
    rows = resolved() if refers else sent() if items else None
    given: dict[str, ColumnElement[Any]] = {
        "id": _id,
        "tenant": bindparam("tenant", type_=Text),
        "owner": bindparam("owner", type_=Text),
        "attributes": bindparam("attributes", type_=ARRAY(Text)),
        "metadata": func.cast(bindparam("metadata", type_=Text), JSONB),
        "last_sequence": bindparam("last_sequence", type_=BigInteger),
        "version": _one,
        "revision": _one,
        "create_time": _now,
        "update_time": _now,
    }
    source: Select[Any] = select(*list(given.values()))
    if refers and rows is not None:
        source = source.where(all_found(rows))
    base = literal_column("0", BigInteger).label("base")
    created = insert(conversations).from_select(list(given), source).returning(_c.id, _c.version, base).cte("created")
    statement: Select[Any] = select(created.c.id)
    if rows is not None:
        statement = statement.add_cte(placed(rows, created))
    if reserves:
        statement = statement.add_cte(reserve(created).cte("reserved"))
    return compiled(statement)


@lru_cache
def change(*, reserves: bool) -> Statement:
    """Changes both maps; a change that would give too many pairs changes no row."""
    metadata, attributes = _merged_metadata(), _merged_attributes()
    pairs = select(func.count()).select_from(func.jsonb_object_keys(metadata).alias("key")).scalar_subquery()
    few_names = _names_of(attributes) <= literal_column(str(MAX_PAIRS), Integer)
    changed = (
        update(conversations)
        .where(_c.id == _id, visible(), _revision_is(), pairs <= literal_column(str(MAX_PAIRS), Integer), few_names)
        .values(
            metadata=metadata,
            attributes=attributes,
            revision=_c.revision + _one,
            version=_c.version + _one,
            update_time=_now,
        )
        .returning(*COLUMNS)
        .cte("changed")
    )
    statement: Select[Any] = select(*changed.c)
    return compiled(statement.add_cte(reserve(changed).cte("reserved")) if reserves else statement)


def _names_of(attributes: ColumnElement[Any]) -> ColumnElement[int]:
    """How many names ``attributes`` has."""
    pair = func.unnest(attributes).column_valued("pair")
    name = func.split_part(pair, literal_column("'='"), literal_column("1"))
    count: ColumnElement[int] = select(func.count(name.distinct())).scalar_subquery()
    return count


def _merged_metadata() -> ColumnElement[Any]:
    """What stays of the stored pairs, and the new ones."""
    replace: ColumnElement[bool] = bindparam("replace_metadata", type_=Boolean)
    less = _c.metadata.op("-", return_type=JSONB())(bindparam("drop_metadata", type_=ARRAY(Text)))
    kept = case((replace, literal_column("'{}'", JSONB)), else_=less)
    new = func.cast(bindparam("new_metadata", type_=Text), JSONB)
    return kept.op("||", return_type=JSONB())(new)


def _merged_attributes() -> ColumnElement[Any]:
    """What stays of the stored ``name=value``, and the new ones, sorted."""
    replace: ColumnElement[bool] = bindparam("replace_attributes", type_=Boolean)
    held = func.unnest(_c.attributes).column_valued("held")
    name = func.split_part(held, literal_column("'='"), literal_column("1"))
    dropped = name == any_(bindparam("drop_attributes", type_=ARRAY(Text)))
    new = select(func.unnest(bindparam("new_attributes", type_=ARRAY(Text))))
    both = select(held).where(not_(replace), not_(dropped)).union(new).subquery("both")
    merged: ColumnElement[Any] = func.array(select(both.c[0]).order_by(both.c[0]).scalar_subquery())
    return merged


@lru_cache
def delete(*, reserves: bool) -> Statement:
    """Makes a tombstone."""
    deleted = (
        update(conversations)
        .where(_c.id == _id, visible(), _revision_is())
        .values(delete_time=_now, version=_c.version + _one)
        .returning(_c.id)
        .cte("deleted")
    )
    statement: Select[Any] = select(deleted.c.id)
    return compiled(statement.add_cte(reserve(deleted).cte("reserved")) if reserves else statement)


def _revision_is() -> ColumnElement[bool]:
    expected: ColumnElement[int] = bindparam("revision", type_=BigInteger)
    return or_(expected.is_(None), _c.revision == expected)


@lru_cache(maxsize=512)
def page(shape: tuple[tuple[str, str], ...], *, descending: bool) -> Statement:
    """Keyset on (create_time, id); ``shape`` is the filter's (name, operator) pairs."""
    keys = tuple_(_c.create_time, _c.id)
    after = tuple_(bindparam("after_time", type_=Time), bindparam("after_id", type_=Text))
    order = (_c.create_time.desc(), _c.id.desc()) if descending else (_c.create_time, _c.id)
    statement: Executable = (
        select(*COLUMNS)
        .where(visible(), keys < after if descending else keys > after, *_conditions(shape))
        .order_by(*order)
        .limit(bindparam("count", type_=Integer))
    )
    return compiled(statement)


def _conditions(shape: Iterable[tuple[str, str]]) -> Iterable[ColumnElement[bool]]:
    for number, (name, operator) in enumerate(shape):
        yield _condition(name, operator, f"value_{number}")


def _condition(name: str, operator: str, parameter: str) -> ColumnElement[bool]:
    """One comparison of a filter as SQL."""
    match name:
        case "create_time":
            return _c.create_time.op(operator, is_comparison=True)(bindparam(parameter, type_=Time))
        case "owner":
            holds = _c.owner == bindparam(parameter, type_=Text)
        case "metadata":
            holds = _c.metadata.contains(func.cast(bindparam(parameter, type_=Text), JSONB))
        case "attributes":
            holds = _c.attributes.contains(func.cast(array([bindparam(parameter, type_=Text)]), ARRAY(Text)))
        case _:
            raise AssertionError(name)
    return holds if operator == "=" else not_(holds)
