"""Conversations: what is asked of them, and what a write that changed no row means."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import asyncpg

from server.authorization.access import Access
from server.authorization.permission import Permission
from server.errors import (
    ActionDenied,
    Conflict,
    ConversationNotFound,
    EtagMismatch,
    LimitExceeded,
    RequestIdReused,
    Violation,
)
from server.policy.principal import Principal
from server.policy.residual import Row
from server.store.batch import Batch
from server.store.comparison import Comparison
from server.store.conflicts import explain_batch
from server.store.connection.database import Database
from server.store.idempotency import PriorResult, Reservation, execute_write, find_prior_result, reserved_values
from server.store.ids import conversation_id_for, new_conversation_id
from server.store.sql import conversations as sql
from server.store.sql.conversations import MAX_PAIRS
from server.store.sql.idempotency import CONSTRAINT

_PRIMARY_KEY = "conversations_pkey"
LATEST, EARLIEST = datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)


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
        access: Access,
        metadata: dict[str, str],
        attributes: Sequence[str],
        batch: Batch | None,
        reserved: Reservation | None,
        conversation_id: str,
        now: datetime,
    ) -> dict[str, Any] | asyncpg.Record:
        """The row of the new conversation, or of the one an earlier call under the id made.

        Raises:
            ActionDenied, RequestIdReused, ItemNotFound, ItemExists: Nothing was written.
        """
        _decide(access, attributes, conversation_id, batch)
        references = (_read(access), access.demand("item", "read")) if batch and batch.refers else None
        statement = sql.create(
            references, attributes=bool(attributes), items=batch is not None, reserves=reserved is not None
        )
        values = {
            **access.values,
            "conversation_id": conversation_id,
            "owner": access.principal.id,
            "attributes": sorted(set(attributes)),
            "metadata": json.dumps(metadata, ensure_ascii=False),
            "last_sequence": len(batch) if batch else 0,
            "now": now,
            **_batch_values(batch, now),
            **reserved_values(access.principal, reserved),
        }
        try:
            row = await self._database.fetchrow(statement, values, repeatable=reserved is not None)
        except asyncpg.UniqueViolationError as error:
            if reserved and error.constraint_name in {CONSTRAINT, _PRIMARY_KEY}:
                return await self._created_before(access, conversation_id, reserved)
            raise await explain_batch(self._database, access, conversation_id, batch) from error
        if row is None:
            raise await explain_batch(self._database, access, conversation_id, batch)
        self._database.stats.items += values["last_sequence"]
        return _new_row(values, metadata)

    async def _created_before(self, access: Access, conversation_id: str, reserved: Reservation) -> asyncpg.Record:
        """The conversation that an earlier call under the id created.

        Raises:
            ConversationNotFound: It was deleted.
            RequestIdReused: By another request, or so long ago that nobody knows.
        """
        create = access.demand("conversation", "create")  # an answer to a write takes what the write takes
        values = {**access.values, "conversation_id": conversation_id}
        row = await self._database.fetchrow(sql.get(create), values)
        if row is None:
            raise ConversationNotFound(conversation_id)
        made = await find_prior_result(self._database, conversation_id, access.principal, reserved)
        if made is None or not made.same:
            raise RequestIdReused(reserved.request_id)
        return row

    async def get(self, access: Access, conversation_id: str) -> asyncpg.Record:
        """The row of one conversation.

        Raises:
            ConversationNotFound: Missing, deleted or not readable.
        """
        return await self.require(access, conversation_id)

    async def update(
        self,
        access: Access,
        conversation_id: str,
        change: Change,
        revision: int | None,
        reserved: Reservation | None,
    ) -> asyncpg.Record:
        """The row after ``change``.

        Raises:
            ConversationNotFound, EtagMismatch, LimitExceeded, RequestIdReused: Nothing was written.
        """
        acts = _acts(access, change)
        shares = bool(change.attributes or change.drop_attributes or change.replace_attributes)
        statement = sql.change(_read(access), acts, attributes=shares, reserves=reserved is not None)
        values = {
            **access.values,
            **reserved_values(access.principal, reserved),
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
        row = await execute_write(self._database, statement, values, reserved)
        if row is not None:
            return row
        if await self.prior_result(access, conversation_id, reserved):
            return await self.require(access, conversation_id, *acts)
        raise _too_many(await self.require(access, conversation_id, *acts, revision=revision), change)

    async def delete(
        self, access: Access, conversation_id: str, revision: int | None, reserved: Reservation | None
    ) -> None:
        """Makes the conversation a tombstone: everything on it answers not found from now on.

        Raises:
            ConversationNotFound, EtagMismatch, RequestIdReused: Nothing was written.
        """
        act = access.demand("conversation", "delete")
        statement = sql.delete(_read(access), act, reserves=reserved is not None)
        values = {
            **access.values,
            **reserved_values(access.principal, reserved),
            "conversation_id": conversation_id,
            "revision": revision,
            "now": datetime.now(UTC),
        }
        row = await execute_write(self._database, statement, values, reserved)
        if row is not None:
            return
        made = await find_prior_result(self._database, conversation_id, access.principal, reserved)
        if made is None:
            await self.require(access, conversation_id, act, revision=revision)
            raise Conflict
        await self._require_deleted(access, conversation_id, act)
        if reserved and not made.same:
            raise RequestIdReused(reserved.request_id)

    async def page(
        self,
        access: Access,
        comparisons: tuple[Comparison, ...],
        position: tuple[datetime, str] | None,
        count: int,
        *,
        descending: bool,
    ) -> list[asyncpg.Record]:
        """At most ``count`` rows behind ``position``, by creation."""
        start = (LATEST, "") if descending else (EARLIEST, "")
        after_time, after_id = position or start
        read, cover = access.demand("conversation", "read"), access.index_ranges
        values = {
            **access.values,
            "after_time": after_time,
            "after_id": after_id,
            "count": count,
            **(cover.values() if cover else {}),
            **_filter_values(comparisons),
        }
        shape = tuple((comparison.name, comparison.operator) for comparison in comparisons)
        statement = sql.page(read, shape, covered=cover is not None, descending=descending)
        return await self._database.fetch(statement, values)

    async def prior_result(
        self, access: Access, conversation_id: str, reserved: Reservation | None
    ) -> PriorResult | None:
        """What an earlier call of the same request made, or None.

        Raises:
            ConversationNotFound: Another request had the id, on a conversation that is not there any more.
            RequestIdReused: Another request had the id.
        """
        made = await find_prior_result(self._database, conversation_id, access.principal, reserved)
        if made is None or made.same or reserved is None:
            return made
        await self.get(access, conversation_id)
        raise RequestIdReused(reserved.request_id)

    async def require(
        self, access: Access, conversation_id: str, *acts: Permission, revision: int | None = None
    ) -> asyncpg.Record:
        """The row, when nothing of it explains why a write was refused.

        Asked after the fact: the write itself carried every condition.

        Raises:
            ConversationNotFound, ActionDenied, EtagMismatch: That is why.
        """
        statement = sql.get(_read(access), *acts)
        rows = await self._database.read(statement, {**access.values, "conversation_id": conversation_id})
        if not rows:
            raise ConversationNotFound(conversation_id)
        row = rows[0]
        for act in acts:
            if not row[act.name]:
                raise ActionDenied(act.resource, act.action)
        if revision is not None and revision != row["revision"]:
            raise EtagMismatch(etag_of(row["revision"]))
        return row

    async def _require_deleted(self, access: Access, conversation_id: str, act: Permission) -> None:
        """Raises ConversationNotFound or ActionDenied when a delete may not be repeated."""
        values = {**access.values, "conversation_id": conversation_id}
        row = await self._database.fetchrow(sql.get_deleted(_read(access), act), values)
        if row is None:
            raise ConversationNotFound(conversation_id)
        if not row[act.name]:
            raise ActionDenied("conversation", "delete")


def _too_many(row: asyncpg.Record, change: Change) -> LimitExceeded:
    """Which map would have become too big."""
    kept = {} if change.replace_metadata else json.loads(row["metadata"])
    pairs = (kept.keys() - set(change.drop_metadata)) | change.metadata.keys()
    name = "metadata" if len(pairs) > MAX_PAIRS else "attributes"
    rule = f"would have more than {MAX_PAIRS} pairs"
    return LimitExceeded(Violation(f"conversation.{name}", rule, "map.max_pairs"), MAX_PAIRS)


def _new_row(values: dict[str, Any], metadata: dict[str, str]) -> dict[str, Any]:
    """The row that a create with ``values`` has made."""
    return {
        "id": values["conversation_id"],
        "owner": values["owner"],
        "attributes": values["attributes"],
        "metadata": metadata,
        "last_sequence": values["last_sequence"],
        "revision": 1,
        "create_time": values["now"],
        "update_time": values["now"],
    }


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


def _read(access: Access) -> Permission:
    """What every statement on a conversation carries."""
    return access.demand("conversation", "read")


def _acts(access: Access, change: Change) -> tuple[Permission, ...]:
    """What a change needs: update for metadata, share for attributes.

    New attribute values must be the caller's own: who may share a conversation may
    show it to their own teams. Only whoever may share every conversation may put
    it in front of others.
    """
    acts = []
    if change.replace_metadata or change.metadata or change.drop_metadata:
        acts.append(access.demand("conversation", "update"))
    if change.replace_attributes or change.attributes or change.drop_attributes:
        acts.append(access.demand("conversation", "share"))
        access.decide_values(change.attributes)
    return tuple(acts)


def _decide(access: Access, attributes: Sequence[str], conversation_id: str, batch: Batch | None) -> None:
    """Decides on a conversation as it is about to be, and on its first items.

    Raises:
        ActionDenied: The policy does not let the caller create it.
    """
    access.decide_values(attributes)
    owner, pairs = access.principal.id, frozenset(attributes)
    access.decide("conversation", "create", Row(owner, pairs, conversation_id))
    for item_id in batch.all_ids if batch else ():
        access.decide("item", "create", Row(owner, pairs, item_id))
