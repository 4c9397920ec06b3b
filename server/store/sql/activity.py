"""The statement that lists conversations by their activity (docs/adr/0039).

Its order is that of the table `activity`, and of the copy in `conversation_attributes`. Conversations are looked up one
by one, in subqueries with a limit: joined plainly, statistics could make PostgreSQL begin with all of them (ADR 10).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Integer,
    Select,
    Text,
    bindparam,
    func,
    literal_column,
    select,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY

from server.authorization.permission import Permission
from server.store.sql.conversations import COLUMNS, filter_conditions, fitting, unnest
from server.store.sql.schema import Time, activity, conversation_attributes, conversations, listed_active_time
from server.store.sql.statement import Statement, compile_statement
from server.store.sql.visibility import visible, visible_one

_c, _a, _v = conversations.c, activity.c, conversation_attributes.c
_tenant: ColumnElement[str] = bindparam("tenant", type_=Text)
_count: ColumnElement[int] = bindparam("count", type_=Integer)
_one: ColumnElement[int] = literal_column("1", Integer)


@dataclass(frozen=True)
class _Matching:
    """Which conversations the list shows.

    Attributes:
        read: To read them.
        filters: Conditions of the filter.
    """

    read: Permission
    filters: tuple[ColumnElement[bool], ...]

    def any(self) -> tuple[ColumnElement[bool], ...]:
        """The conditions on any conversation, for which every index may be used."""
        return (visible(self.read), *self.filters)

    def look_up(self, conversation_id: ColumnElement[str], *columns: ColumnElement[Any]) -> Any:
        """Columns of the conversation of that id, if it matches, by the primary key."""
        query = select(*columns).where(visible_one(self.read, conversation_id), *self.filters)
        return query.limit(_one).lateral("found")


@lru_cache(maxsize=512)
def page(read: Permission, *, filters_owner: bool | None, covered: bool, filters_source: bool = False) -> Statement:
    """A page of conversations by (active_time, id), newest first; the arguments are those of `conversations.page`.

    ``active_time`` is the one that they are ordered by.
    """
    matching = _Matching(read, tuple(filter_conditions(owner=filters_owner, source=filters_source)))
    if covered:
        rows = _in_ranges(matching)
    elif filters_source:
        rows = _forks(matching)
    else:
        rows = _in_tenant(matching, filters_owner=bool(filters_owner))
    return compile_statement(fitting(rows, "active_time", descending=True), "read")


def _in_tenant(matching: _Matching, *, filters_owner: bool) -> Select[Any]:
    """The first rows of the tenant or, with a filter by owner, of that owner."""
    owned = (_a.owner == bindparam("filter_owner", type_=Text),) if filters_owner else ()
    found = matching.look_up(_a.conversation_id, *COLUMNS)
    query = _shown(found).select_from(activity.join(found, true())).where(_a.tenant == _tenant, *owned)
    return _first(query, _a.active_time, _a.conversation_id)


def _in_ranges(matching: _Matching) -> Select[Any]:
    """The first rows of each range of the caller, merged; the later time counts, should two ranges differ."""
    places = union_all(*[select(rows.c.id, rows.c.active_time) for rows in _ranges(matching)]).subquery("places")
    latest = func.max(places.c.active_time).label("active_time")
    return _by_id(select(places.c.id, latest).group_by(places.c.id))


def _forks(matching: _Matching) -> Select[Any]:
    """The first of the forks of one conversation, all of which are read."""
    found = select(_c.id).where(*matching.any()).cte("forks").prefix_with("MATERIALIZED")
    place = _look_up_place(found.c.id)
    return _by_id(select(found.c.id, place.c.active_time).select_from(found.join(place, true())))


def _by_id(query: Select[Any]) -> Select[Any]:
    """The first of the conversations of ``query``, which has their ids and times."""
    rows = query.subquery("rows").c
    first = (
        _first(select(rows.id, rows.active_time), rows.active_time, rows.id).cte("first").prefix_with("MATERIALIZED")
    )
    found = select(*COLUMNS).where(_c.id == first.c.id).limit(_one).lateral("found")
    columns = (first.c.active_time if column.name == "active_time" else found.c[column.name] for column in COLUMNS)
    return select(*columns).select_from(first.join(found, true()))


def _ranges(matching: _Matching) -> Iterable[FromClause]:
    """The ids and times of the first rows of the ranges by owner, by attribute and by id."""
    found = matching.look_up(_a.conversation_id, _c.id)
    owners = unnest(bindparam("cover_owners", type_=ARRAY(Text)))
    by_owner = select(found.c.id, _a.active_time).select_from(activity.join(found, true()))
    by_owner = by_owner.where(_a.tenant == _tenant, _a.owner == owners.c.value)
    yield _each(owners, _first(by_owner, _a.active_time, _a.conversation_id))
    values = unnest(bindparam("cover_attributes", type_=ARRAY(Text)))
    found = matching.look_up(_v.conversation_id, _c.id)
    by_value = select(found.c.id, listed_active_time.label("active_time"))
    by_value = by_value.select_from(conversation_attributes.join(found, true()))
    by_value = by_value.where(_v.tenant == _tenant, _v.attribute == values.c.value)
    yield _each(values, _first(by_value, listed_active_time, _v.conversation_id))
    named = unnest(bindparam("cover_ids", type_=ARRAY(Text)))
    place, found = _look_up_place(named.c.value), matching.look_up(named.c.value, _c.id)
    by_id = select(found.c.id, place.c.active_time).select_from(named.join(place, true()).join(found, true()))
    yield _first(by_id, place.c.active_time, found.c.id).subquery()


def _each(ranges: Any, query: Select[Any]) -> FromClause:
    """The rows of ``query`` for each of the ``ranges``."""
    rows = query.lateral()
    return select(rows.c.id, rows.c.active_time).select_from(ranges.join(rows, true())).subquery()


def _look_up_place(conversation_id: ColumnElement[str]) -> Any:
    query = select(_a.active_time).where(_a.conversation_id == conversation_id)
    return query.limit(_one).lateral("place")


def _shown(found: Any) -> Select[Any]:
    """The columns of a conversation, with the time of ``activity``."""
    return select(*(_a.active_time if column.name == "active_time" else found.c[column.name] for column in COLUMNS))


def _first(query: Select[Any], active_time: ColumnElement[Any], conversation_id: ColumnElement[str]) -> Select[Any]:
    """The first ``count`` rows of ``query`` behind the position, newest first."""
    position = tuple_(bindparam("after_time", type_=Time), bindparam("after_id", type_=Text))
    behind = tuple_(active_time, conversation_id) < position
    return query.where(behind).order_by(active_time.desc(), conversation_id.desc()).limit(_count)
