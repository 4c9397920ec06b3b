"""Items: append, read, list and delete, each in one statement."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import asyncpg
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
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from server.errors import (
    Conflict,
    ConversationNotFound,
    FieldInvalid,
    ItemNotFound,
    ResponseTooLarge,
    SequenceMismatch,
    Violation,
)
from server.filters import Comparison
from server.policy.principal import Principal
from server.store.batch import Batch, all_found, placed, resolved, sent
from server.store.conversations import COLUMNS, ConversationStore
from server.store.database import Database
from server.store.item_failures import explain_batch
from server.store.requests import CONSTRAINT, Made, Reservation, made_before, reserve
from server.store.schema import Time, conversations, items
from server.store.statement import Statement, compiled
from server.store.visibility import values_of, visible

MAX_PAGE_BYTES = 24 * 1024 * 1024  # a page, or a batch, ends before it holds more; one item always fits
_FIRST, _LAST = 0, 2**63 - 1  # positions before and behind every item

_c, _i = conversations.c, items.c
_id: ColumnElement[str] = bindparam("conversation_id", type_=Text)
_now: ColumnElement[datetime] = bindparam("now", type_=Time)
_one: ColumnElement[int] = literal_column("1", BigInteger)


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An item as it lies in the database: its place, and its bytes without the place."""

    sequence: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Appended:
    """The result of an append: the first place given, or the items when the store had to read them."""

    first_sequence: int
    stored: list[StoredItem] | None = None


class ItemStore:
    """Each method is one statement; a repeated or a refused write takes a second one to tell why."""

    def __init__(self, database: Database, parents: ConversationStore) -> None:
        self._database = database
        self._parents = parents

    async def append(
        self,
        principal: Principal,
        conversation_id: str,
        batch: Batch,
        expected: int | None,
        reserved: Reservation | None,
        now: datetime,
    ) -> Appended:
        """Places ``batch`` behind the newest item, all or nothing.

        Raises:
            ConversationNotFound, ItemNotFound, ItemExists, SequenceMismatch,
            RequestIdReused: Nothing was written.
        """
        values = {
            **values_of(principal),
            "conversation_id": conversation_id,
            "size": len(batch),
            **batch.values(now),
        }
        if expected is not None:
            values["expected"] = expected
        if reserved is not None:
            values |= {"principal": principal.id, **reserved.values()}
        statement = _append(expects=expected is not None, refers=batch.refers, reserves=reserved is not None)
        error: asyncpg.UniqueViolationError | None = None
        row = None
        try:
            row = await self._database.fetchrow(statement, values, repeatable=reserved is not None)
        except asyncpg.UniqueViolationError as clash:
            error = clash
        if row is not None:
            return await self._appended(principal, conversation_id, row["base"] + 1, batch)
        if made := await made_before(self._database, conversation_id, principal.id, reserved):
            return Appended(made.first_sequence, await self._again(principal, conversation_id, made))
        raise await self._refusal(principal, conversation_id, batch, expected) from error

    async def get(self, principal: Principal, conversation_id: str, item_id: str) -> StoredItem:
        """One item.

        Raises:
            ConversationNotFound, ItemNotFound
        """
        values = {**values_of(principal), "conversation_id": conversation_id, "item_id": item_id}
        row = await self._database.fetchrow(_GET, values)
        if row is None:
            raise ConversationNotFound(conversation_id)
        if row["sequence"] is None:
            raise ItemNotFound(conversation_id, item_id)
        return StoredItem(row["sequence"], row["body"])

    async def get_batch(self, principal: Principal, conversation_id: str, item_ids: Sequence[str]) -> list[StoredItem]:
        """The items in the order of ``item_ids``.

        Raises:
            ConversationNotFound, ItemNotFound: The first one that is missing.
            ResponseTooLarge: Together they are too big for one message.
        """
        values = {**values_of(principal), "conversation_id": conversation_id, "item_ids": item_ids}
        rows = await self._database.fetch(_GET_BATCH, values)
        if not rows:
            raise ConversationNotFound(conversation_id)
        missing = [item_id for item_id, row in zip(item_ids, rows, strict=True) if row["sequence"] is None]
        if missing:
            raise ItemNotFound(conversation_id, missing[0])
        if any(row["body"] is None for row in rows):
            raise ResponseTooLarge(MAX_PAGE_BYTES)
        return [StoredItem(row["sequence"], row["body"]) for row in rows]

    async def page(
        self,
        principal: Principal,
        conversation_id: str,
        comparisons: tuple[Comparison, ...],
        cursor: int | str | None,
        count: int,
        *,
        descending: bool,
    ) -> tuple[list[StoredItem], bool]:
        """At most ``count`` items behind ``cursor`` (a sequence, or an item id), and whether more follow.

        Raises:
            ConversationNotFound: Also when not readable.
            FieldInvalid: The cursor is an id that never was in this conversation.
        """
        values = {
            **values_of(principal),
            "conversation_id": conversation_id,
            "count": count + 1,
            **{f"value_{number}": comparison.value for number, comparison in enumerate(comparisons)},
        }
        if isinstance(cursor, str):
            values["after"] = cursor
        else:
            values["position"] = cursor if cursor is not None else _LAST if descending else _FIRST
        shape = tuple((comparison.name, comparison.operator) for comparison in comparisons)
        statement = _list(shape, by_id=isinstance(cursor, str), descending=descending)
        rows = await self._database.fetch(statement, values)
        if not rows:
            raise ConversationNotFound(conversation_id)
        if rows[0]["position"] is None:
            raise FieldInvalid(Violation("after", "no such item in this conversation", "after.exists"))
        page = [StoredItem(row["sequence"], row["body"]) for row in rows[:count] if row["body"] is not None]
        return page, rows[0]["sequence"] is not None and len(page) < len(rows)

    async def delete(
        self, principal: Principal, conversation_id: str, item_id: str, reserved: Reservation | None
    ) -> asyncpg.Record:
        """The conversation's row after the item was emptied; its place stays.

        Raises:
            ConversationNotFound, ItemNotFound, RequestIdReused: Nothing was written.
        """
        values = {
            **values_of(principal),
            "conversation_id": conversation_id,
            "item_id": item_id,
            "now": datetime.now(UTC),
        }
        if reserved is not None:
            values |= {"principal": principal.id, **reserved.values()}
        row = None
        try:
            row = await self._database.fetchrow(
                _delete(reserves=reserved is not None), values, repeatable=bool(reserved)
            )
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name != CONSTRAINT:
                raise
        if row is not None:
            return row
        again = await made_before(self._database, conversation_id, principal.id, reserved)
        found = await self._parents.require(principal, conversation_id)
        if again:
            return found
        raise ItemNotFound(conversation_id, item_id)

    async def _appended(self, principal: Principal, conversation_id: str, first: int, batch: Batch) -> Appended:
        """References were copied inside the database: only then are the items read back."""
        if not batch.refers:
            return Appended(first)
        return Appended(first, await self._again(principal, conversation_id, Made(first, len(batch))))

    async def _again(self, principal: Principal, conversation_id: str, made: Made) -> list[StoredItem]:
        """What an earlier write made, as it is now."""
        values = {
            **values_of(principal),
            "conversation_id": conversation_id,
            "first": made.first_sequence,
            "last": made.first_sequence + made.item_count - 1,
        }
        rows = await self._database.fetch(_RANGE, values)
        if not rows:
            raise ConversationNotFound(conversation_id)
        for row in rows:
            if row["delete_time"] is not None:
                raise ItemNotFound(conversation_id, row["item_id"])
        return [StoredItem(row["sequence"], row["body"]) for row in rows]

    async def _refusal(
        self, principal: Principal, conversation_id: str, batch: Batch, expected: int | None
    ) -> Exception:
        """Why an append placed nothing, asked after the fact: the write itself carried every condition."""
        row = await self._parents.require(principal, conversation_id)
        if expected is not None and row["last_sequence"] != expected:
            return SequenceMismatch(row["last_sequence"])
        failure = await explain_batch(self._database, principal, conversation_id, batch)
        if isinstance(failure, Conflict) and expected is not None:
            return SequenceMismatch(row["last_sequence"])
        return failure


@lru_cache
def _append(*, expects: bool, refers: bool, reserves: bool) -> Statement:
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
_GET = compiled(
    select(_i.sequence, _i.body).select_from(conversations.outerjoin(items, _item_is)).where(_c.id == _id, visible())
)
_RANGE = compiled(
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
    """``body``, or NULL once those before it in ``order`` fill a message; sizes are read without the bodies."""
    size = func.octet_length(body)
    before = func.sum(size).over(order_by=order, rows=(None, 0)) - size
    return case((before < literal_column(str(MAX_PAGE_BYTES)), body)).label("body")


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


_GET_BATCH = _get_batch()


@lru_cache(maxsize=512)
def _list(shape: tuple[tuple[str, str], ...], *, by_id: bool, descending: bool) -> Statement:
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
def _delete(*, reserves: bool) -> Statement:
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
