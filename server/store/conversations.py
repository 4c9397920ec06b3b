"""Conversations: their statements, and what a write that changed no row means."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import asyncpg
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

from server.errors import ConversationNotFound, EtagMismatch, LimitExceeded, Violation
from server.filters import Comparison
from server.ids import conversation_id_for, new_conversation_id
from server.policy.principal import Principal
from server.store.batch import Batch, all_found, placed, resolved, sent
from server.store.database import Database
from server.store.item_failures import explain_batch
from server.store.requests import CONSTRAINT, Reservation, made_before, reserve
from server.store.schema import Time, conversations
from server.store.statement import Statement, compiled
from server.store.visibility import values_of, visible

MAX_METADATA = 16  # pairs
LATEST, EARLIEST = datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)

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


@dataclass(frozen=True)
class Change:
    """What an update does; a map that is not replaced keeps what is not named."""

    metadata: dict[str, str] = field(default_factory=dict)
    drop_metadata: Sequence[str] = ()
    replace_metadata: bool = False
    attributes: Sequence[str] = ()  # name=value
    drop_attributes: Sequence[str] = ()  # names, of those that get new values too
    replace_attributes: bool = False


class ConversationStore:
    """Each method is one statement; a repeated or a refused write takes a second one to tell why."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self,
        principal: Principal,
        metadata: dict[str, str],
        attributes: Sequence[str],
        batch: Batch | None,
        reserved: Reservation | None,
        conversation_id: str,
        now: datetime,
    ) -> dict[str, Any] | asyncpg.Record:
        """The row of the new conversation, or of the one an earlier call under the id made.

        Raises:
            RequestIdReused, ItemNotFound, ItemExists: Nothing was written.
        """
        values = {
            **values_of(principal),
            "conversation_id": conversation_id,
            "owner": principal.id,
            "attributes": sorted(set(attributes)),
            "metadata": json.dumps(metadata, ensure_ascii=False),
            "last_sequence": len(batch) if batch else 0,
            "now": now,
            **_batch_values(batch, now),
            **_reserved_values(principal, reserved),
        }
        statement = _create(items=batch is not None, refers=bool(batch and batch.refers), reserves=reserved is not None)
        try:
            row = await self._database.fetchrow(statement, values, repeatable=reserved is not None)
        except asyncpg.UniqueViolationError as error:
            if reserved and await made_before(self._database, conversation_id, principal.id, reserved):
                return await self.get(principal, conversation_id)
            raise await explain_batch(self._database, principal, conversation_id, batch) from error
        if row is None:
            raise await explain_batch(self._database, principal, conversation_id, batch)
        return {
            "id": conversation_id,
            "owner": principal.id,
            "attributes": values["attributes"],
            "metadata": metadata,
            "last_sequence": values["last_sequence"],
            "revision": 1,
            "create_time": now,
            "update_time": now,
        }

    async def get(self, principal: Principal, conversation_id: str) -> asyncpg.Record:
        """The row of one conversation.

        Raises:
            ConversationNotFound: Missing, deleted or not readable.
        """
        values = {**values_of(principal), "conversation_id": conversation_id}
        row = await self._database.fetchrow(_GET, values)
        if row is None:
            raise ConversationNotFound(conversation_id)
        return row

    async def update(
        self,
        principal: Principal,
        conversation_id: str,
        change: Change,
        revision: int | None,
        reserved: Reservation | None,
    ) -> asyncpg.Record:
        """The row after ``change``.

        Raises:
            ConversationNotFound, EtagMismatch, LimitExceeded, RequestIdReused: Nothing was written.
        """
        values = {
            **values_of(principal),
            **_reserved_values(principal, reserved),
            "conversation_id": conversation_id,
            "revision": revision,
            "now": datetime.now(UTC),
            "new_metadata": json.dumps(change.metadata, ensure_ascii=False),
            "drop_metadata": change.drop_metadata,
            "replace_metadata": change.replace_metadata,
            "new_attributes": change.attributes,
            "drop_attributes": change.drop_attributes,
            "replace_attributes": change.replace_attributes,
        }
        row = await self._write(_update(reserves=reserved is not None), values, reserved)
        if row is not None:
            return row
        if await made_before(self._database, conversation_id, principal.id, reserved):
            return await self.get(principal, conversation_id)
        await self.require(principal, conversation_id, revision)
        raise LimitExceeded(
            Violation("conversation.metadata", f"would hold more than {MAX_METADATA} pairs", "map.max_pairs"),
            MAX_METADATA,
        )

    async def delete(
        self, principal: Principal, conversation_id: str, revision: int | None, reserved: Reservation | None
    ) -> None:
        """Makes the conversation a tombstone: everything on it answers not found from now on.

        Raises:
            ConversationNotFound, EtagMismatch, RequestIdReused: Nothing was written.
        """
        values = {
            **values_of(principal),
            **_reserved_values(principal, reserved),
            "conversation_id": conversation_id,
            "revision": revision,
            "now": datetime.now(UTC),
        }
        row = await self._write(_delete(reserves=reserved is not None), values, reserved)
        if row is None and not await made_before(self._database, conversation_id, principal.id, reserved):
            await self.require(principal, conversation_id, revision)

    async def page(
        self,
        principal: Principal,
        comparisons: tuple[Comparison, ...],
        position: tuple[datetime, str] | None,
        count: int,
        *,
        descending: bool,
    ) -> list[asyncpg.Record]:
        """At most ``count`` rows behind ``position``, by creation."""
        start = (LATEST, "") if descending else (EARLIEST, "")
        after_time, after_id = position or start
        values = {
            **values_of(principal),
            "after_time": after_time,
            "after_id": after_id,
            "count": count,
            **_filter_values(comparisons),
        }
        shape = tuple((comparison.name, comparison.operator) for comparison in comparisons)
        return await self._database.fetch(_list(shape, descending=descending), values)

    async def require(self, principal: Principal, conversation_id: str, revision: int | None = None) -> asyncpg.Record:
        """The row, when nothing of it explains why a write was refused.

        Raises:
            ConversationNotFound, EtagMismatch: That is why.
        """
        row = await self.get(principal, conversation_id)
        if revision is not None and revision != row["revision"]:
            raise EtagMismatch(etag_of(row["revision"]))
        return row

    async def _write(
        self, statement: Statement, values: dict[str, Any], reserved: Reservation | None
    ) -> asyncpg.Record | None:
        """The row written; None also when another call has reserved the id meanwhile."""
        try:
            return await self._database.fetchrow(statement, values, repeatable=reserved is not None)
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name != CONSTRAINT:
                raise
            return None


def new_id(principal: Principal, reserved: Reservation | None) -> str:
    """The id of a conversation about to be created: the same at every retry under a request id."""
    if reserved is None:
        return new_conversation_id()
    return conversation_id_for(principal.tenant, principal.id, reserved.request_id)


def etag_of(revision: int) -> str:
    """The etag callers see: the revision in quotes."""
    return f'"{revision}"'


def _batch_values(batch: Batch | None, now: datetime) -> dict[str, Any]:
    return batch.values(now) if batch else {}


def _reserved_values(principal: Principal, reserved: Reservation | None) -> dict[str, Any]:
    return {"principal": principal.id, **reserved.values()} if reserved else {}


_GET = compiled(select(*COLUMNS).where(_c.id == _id, visible()))


@lru_cache
def _create(*, items: bool, refers: bool, reserves: bool) -> Statement:
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
def _update(*, reserves: bool) -> Statement:
    replace_metadata: ColumnElement[bool] = bindparam("replace_metadata", type_=Boolean)
    replace_attributes: ColumnElement[bool] = bindparam("replace_attributes", type_=Boolean)
    empty = literal_column("'{}'", JSONB)
    kept = case(
        (replace_metadata, empty),
        else_=_c.metadata.op("-", return_type=JSONB())(bindparam("drop_metadata", type_=ARRAY(Text))),
    )
    merged = kept.op("||", return_type=JSONB())(func.cast(bindparam("new_metadata", type_=Text), JSONB))
    pairs = select(func.count()).select_from(func.jsonb_object_keys(merged).alias("key")).scalar_subquery()
    held = func.unnest(_c.attributes).column_valued("held")
    name = func.split_part(held, literal_column("'='"), literal_column("1"))
    dropped = name == any_(bindparam("drop_attributes", type_=ARRAY(Text)))
    stays = select(held).where(not_(replace_attributes), not_(dropped))
    gets = select(func.unnest(bindparam("new_attributes", type_=ARRAY(Text))))
    both = stays.union(gets).subquery("both")
    attributes = func.array(select(both.c[0]).order_by(both.c[0]).scalar_subquery())
    changed = (
        update(conversations)
        .where(_c.id == _id, visible(), _revision_is(), pairs <= literal_column(str(MAX_METADATA), Integer))
        .values(
            metadata=merged,
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


@lru_cache
def _delete(*, reserves: bool) -> Statement:
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
def _list(shape: tuple[tuple[str, str], ...], *, descending: bool) -> Statement:
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


def _filter_values(comparisons: Iterable[Comparison]) -> dict[str, Any]:
    return {f"value_{number}": _filter_value(comparison) for number, comparison in enumerate(comparisons)}


def _filter_value(comparison: Comparison) -> Any:
    match comparison.name:
        case "metadata":
            return json.dumps({comparison.key: comparison.value}, ensure_ascii=False)
        case "attributes":
            return f"{comparison.key}={comparison.value}"
        case _:
            return comparison.value
