"""Create, read, update, delete and list conversations."""

import json
from collections.abc import Sequence
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
from server.store.comparison import EARLIEST, LATEST, Comparison, conversation_filter
from server.store.conflicts import explain_batch
from server.store.connection.database import Database
from server.store.connection.failures import KeyTaken
from server.store.conversation_locks import ConversationLocks
from server.store.idempotency import PriorResult, Reservation, execute_write, find_prior_result, reservation_values
from server.store.ids import conversation_id_for, new_conversation_id
from server.store.sql import conversations as sql
from server.store.sql.conversations import MAX_PAIRS
from server.store.sql.idempotency import CONSTRAINT
from server.store.sql.statement import Statement

_PRIMARY_KEY = "conversations_pkey"


@dataclass(frozen=True)
class Change:
    """What an update changes.

    Attributes:
        metadata: Pairs to set.
        drop_metadata: Keys to remove.
        replace_metadata: Whether all other pairs are removed.
        attributes: To add, each ``name=value``.
        drop_attributes: Names whose values are removed first; names that get new values are among them.
        replace_attributes: Whether all other attributes are removed.
    """

    metadata: dict[str, str] = field(default_factory=dict)
    drop_metadata: Sequence[str] = ()
    replace_metadata: bool = False
    attributes: Sequence[str] = ()
    drop_attributes: Sequence[str] = ()
    replace_attributes: bool = False

    def values(self) -> dict[str, Any]:
        """The parameters of the statement `change`."""
        return {
            "new_metadata": json.dumps(self.metadata, ensure_ascii=False),
            "drop_metadata": self.drop_metadata,
            "replace_metadata": self.replace_metadata,
            "new_attributes": self.attributes,
            "drop_attributes": self.drop_attributes,
            "replace_attributes": self.replace_attributes,
        }


class ConversationStore:
    """The conversations that callers may see.

    Each method runs one statement, which carries every permission and precondition. Only when a
    write changed nothing does a second one find out why. Every method raises StoreUnavailable,
    DeadlineExceeded and Conflict as `Database.fetch` does.

    Args:
        database: Runs the statements.
        max_bytes: The most bytes that the conversations of one response, or the items of one request, may
            have together.

    Attributes:
        locks: Held by every write to one conversation that may wait for a lock in the database.
    """

    def __init__(self, database: Database, max_bytes: int) -> None:
        self.locks = ConversationLocks(database.bounds.lock)
        self._database = database
        self._max_bytes = max_bytes

    async def create(
        self,
        access: Access,
        metadata: dict[str, str],
        attributes: Sequence[str],
        batch: Batch | None,
        reservation: Reservation | None,
        conversation_id: str,
        now: datetime,
    ) -> dict[str, Any] | asyncpg.Record:
        """Creates a conversation with its first items; returns its row.

        Args:
            access: Of the caller, who becomes the owner.
            metadata: At most `MAX_PAIRS` pairs.
            attributes: Each ``name=value``.
            batch: The first items; None for none.
            reservation: Of the request id; a repeated call returns the row of the existing conversation.
            conversation_id: Of `new_id`.
            now: The create_time.

        Raises:
            ActionDenied: The policy does not let the caller create it.
            ItemNotFound: A reference cannot be read.
            ItemExists: Two items have the same id.
            LimitExceeded: The items, those copied included, have more than ``max_bytes`` together.
            RequestIdReused: The request id belongs to another request.
            ConversationNotFound: The conversation of an earlier call was deleted.
        """
        _authorize_create(access, attributes, conversation_id, batch)
        references = (_read(access), access.demand("item", "read")) if batch and batch.has_references else None
        statement = sql.create(
            references, attributes=bool(attributes), items=batch is not None, reserves=reservation is not None
        )
        values = {
            **access.values,
            "conversation_id": conversation_id,
            "owner": access.principal.id,
            "attributes": sorted(set(attributes)),
            "metadata": json.dumps(metadata, ensure_ascii=False),
            "last_sequence": len(batch) if batch else 0,
            "now": now,
            "max_bytes": self._max_bytes,
            **_batch_values(batch, now),
            **reservation_values(access.principal, reservation),
        }
        row, taken = await self._insert(statement, values, repeatable=reservation is not None)
        if row is not None:
            self._database.stats.items += values["last_sequence"]
            return _new_row(values, metadata)
        return await self._created_before(access, conversation_id, batch, reservation, taken)

    async def _insert(
        self, statement: Statement, values: dict[str, Any], *, repeatable: bool
    ) -> tuple[asyncpg.Record | None, KeyTaken | None]:
        """Runs the statement of a create; its row, or why there is none if a key is taken."""
        try:
            async with self.locks.hold(values["conversation_id"]):
                return await self._database.fetchrow(statement, values, repeatable=repeatable), None
        except KeyTaken as taken:
            return None, taken

    async def _created_before(
        self,
        access: Access,
        conversation_id: str,
        batch: Batch | None,
        reservation: Reservation | None,
        taken: KeyTaken | None,
    ) -> asyncpg.Record:
        """The row that an earlier call with the request id created, after a create that stored nothing.

        Raises:
            ServiceError: There was none; it says why nothing was stored.
        """
        if reservation:
            if (existing := await self._find_created(access, conversation_id, reservation)) is not None:
                return existing
            if taken and taken.constraint in {CONSTRAINT, _PRIMARY_KEY}:
                raise ConversationNotFound(conversation_id) from taken
        raise await explain_batch(self._database, access, conversation_id, batch, self._max_bytes) from taken

    async def _find_created(
        self, access: Access, conversation_id: str, reservation: Reservation
    ) -> asyncpg.Record | None:
        """The row of the conversation that an earlier call with the request id created; None if none did.

        Raises:
            ConversationNotFound: It was deleted.
            RequestIdReused: It was created by another request, or the request id is no longer kept.
        """
        create = access.demand("conversation", "create")  # a repeated write needs the permission of the write
        values = {**access.values, "conversation_id": conversation_id}
        row = await self._database.fetchrow(sql.get(create), values)
        prior = await find_prior_result(self._database, conversation_id, access.principal, reservation)
        if row is None and prior is not None:
            raise ConversationNotFound(conversation_id)
        if row is not None and (prior is None or not prior.same_request):
            raise RequestIdReused(reservation.request_id)
        return row

    async def get(self, access: Access, conversation_id: str) -> asyncpg.Record:
        """The row of one conversation.

        Raises:
            ConversationNotFound: It does not exist, was deleted, or may not be read.
        """
        return await self.require(access, conversation_id)

    async def update(
        self,
        access: Access,
        conversation_id: str,
        change: Change,
        revision: int | None,
        reservation: Reservation | None,
    ) -> asyncpg.Record:
        """Updates a conversation; returns its row after the change.

        Args:
            access: Of the caller.
            conversation_id: Of the conversation.
            change: What to set and to remove.
            revision: The revision it must have; None for any.
            reservation: Of the request id.

        Raises:
            ConversationNotFound: It does not exist, was deleted, or may not be read.
            ActionDenied: The caller may not change it, or may not set these attributes.
            EtagMismatch: It has another revision.
            LimitExceeded: Metadata or attributes would have more than `MAX_PAIRS` names.
            Conflict: What the update was refused for has changed since.
            RequestIdReused: The request id belongs to another request.
        """
        permissions = _permissions_to(change, access)
        shares = bool(change.attributes or change.drop_attributes or change.replace_attributes)
        statement = sql.change(_read(access), permissions, attributes=shares, reserves=reservation is not None)
        values = {
            **access.values,
            **reservation_values(access.principal, reservation),
            "conversation_id": conversation_id,
            "revision": revision,
            "now": datetime.now(UTC),
            **change.values(),
        }
        async with self.locks.hold(conversation_id):
            row = await execute_write(self._database, statement, values, reservation)
        if row is not None:
            return row
        if await self.prior_result(access, conversation_id, reservation):
            return await self.require(access, conversation_id, *permissions)
        row = await self.require(access, conversation_id, *permissions, revision=revision)
        raise _too_many_pairs(row, change) or Conflict()

    async def delete(
        self, access: Access, conversation_id: str, revision: int | None, reservation: Reservation | None
    ) -> None:
        """Turns a conversation into a tombstone: from then on it and its items are not found.

        Args:
            access: Of the caller.
            conversation_id: Of the conversation.
            revision: The revision it must have; None for any.
            reservation: Of the request id; a repeated call succeeds.

        Raises:
            ConversationNotFound: It does not exist, was deleted, or may not be read.
            ActionDenied: The caller may not delete it.
            EtagMismatch: It has another revision.
            RequestIdReused: The request id belongs to another request.
        """
        delete = access.demand("conversation", "delete")
        statement = sql.delete(_read(access), delete, reserves=reservation is not None)
        values = {
            **access.values,
            **reservation_values(access.principal, reservation),
            "conversation_id": conversation_id,
            "revision": revision,
            "now": datetime.now(UTC),
        }
        async with self.locks.hold(conversation_id):
            row = await execute_write(self._database, statement, values, reservation)
        if row is not None:
            return
        prior = await find_prior_result(self._database, conversation_id, access.principal, reservation)
        if prior is None:
            await self.require(access, conversation_id, delete, revision=revision)
            raise Conflict
        await self._require_deleted(access, conversation_id, delete)
        if reservation and not prior.same_request:
            raise RequestIdReused(reservation.request_id)

    async def page(
        self,
        access: Access,
        comparisons: tuple[Comparison, ...],
        position: tuple[datetime, str] | None,
        count: int,
        *,
        descending: bool,
    ) -> tuple[list[asyncpg.Record], bool]:
        """A page of the conversations that the caller may read, by create_time and id, and whether more follow.

        The page ends early where ``max_bytes`` are full.

        Args:
            access: Of the caller.
            comparisons: Of the filter; all must hold.
            position: The create_time and id that the page follows; None for the first page.
            count: The most rows.
            descending: Whether newest come first.
        """
        start = (LATEST, "") if descending else (EARLIEST, "")
        after_time, after_id = position or start
        read, ranges = access.demand("conversation", "read"), access.index_ranges
        values = {
            **access.values,
            "after_time": after_time,
            "after_id": after_id,
            "count": count + 1,
            "page_bytes": self._max_bytes,
            **(ranges.values() if ranges else {}),
            **(conversation_filter(comparisons) if comparisons else {}),
        }
        filters_owner = any(each.name == "owner" and each.operator == "=" for each in comparisons)
        statement = sql.page(
            read,
            filters_owner=filters_owner if comparisons else None,
            covered=ranges is not None,
            descending=descending,
        )
        rows = await self._database.fetch(statement, values)
        page = [row for row in rows[:count] if row["metadata"] is not None]
        return page, len(page) < len(rows)

    async def prior_result(
        self, access: Access, conversation_id: str, reservation: Reservation | None
    ) -> PriorResult | None:
        """What an earlier call with the same request did, or None.

        Raises:
            ConversationNotFound: Another request used the request id, and the conversation cannot be read.
            RequestIdReused: Another request used the request id.
        """
        prior = await find_prior_result(self._database, conversation_id, access.principal, reservation)
        if prior is None or prior.same_request or reservation is None:
            return prior
        await self.get(access, conversation_id)
        raise RequestIdReused(reservation.request_id)

    async def require(
        self, access: Access, conversation_id: str, *permissions: Permission, revision: int | None = None
    ) -> asyncpg.Record:
        """The row of a conversation that meets the conditions of a write.

        A write that changed nothing calls this to find out why; it never decides whether to write.

        Raises:
            ConversationNotFound: It does not exist, was deleted, or may not be read.
            ActionDenied: One of ``permissions`` does not cover it.
            EtagMismatch: It has another revision.
        """
        statement = sql.get(_read(access), *permissions)
        rows = await self._database.read(statement, {**access.values, "conversation_id": conversation_id})
        if not rows:
            raise ConversationNotFound(conversation_id)
        row = rows[0]
        for permission in permissions:
            if not row[permission.name]:
                raise ActionDenied(permission.resource, permission.action)
        if revision is not None and revision != row["revision"]:
            raise EtagMismatch(etag_of(row["revision"]))
        return row

    async def _require_deleted(self, access: Access, conversation_id: str, delete: Permission) -> None:
        """Raises ConversationNotFound or ActionDenied unless the caller may repeat a delete."""
        values = {**access.values, "conversation_id": conversation_id}
        row = await self._database.fetchrow(sql.get_deleted(_read(access), delete), values)
        if row is None:
            raise ConversationNotFound(conversation_id)
        if not row[delete.name]:
            raise ActionDenied("conversation", "delete")


def _too_many_pairs(row: asyncpg.Record, change: Change) -> LimitExceeded | None:
    """The error of a change that would give a conversation too many metadata keys or attribute names, if it would."""
    kept_keys = set() if change.replace_metadata else set(json.loads(row["metadata"]))
    kept_names = set() if change.replace_attributes else set(map(_name_of, row["attributes"]))
    maps = {
        "metadata": (kept_keys - set(change.drop_metadata)) | change.metadata.keys(),
        "attributes": (kept_names - set(change.drop_attributes)) | set(map(_name_of, change.attributes)),
    }
    for field_name, names in maps.items():
        if len(names) > MAX_PAIRS:
            rule = f"would have more than {MAX_PAIRS} pairs"
            return LimitExceeded(Violation(f"conversation.{field_name}", rule, "map.max_pairs"), MAX_PAIRS)
    return None


def _name_of(attribute: str) -> str:
    return attribute.partition("=")[0]


def _new_row(values: dict[str, Any], metadata: dict[str, str]) -> dict[str, Any]:
    """The row that a create with these parameters inserted."""
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


def new_id(principal: Principal, reservation: Reservation | None) -> str:
    """The id of a conversation that is about to be created; with a request id, every retry has the same."""
    if reservation is None:
        return new_conversation_id()
    return conversation_id_for(principal.tenant, principal.id, reservation.request_id)


def etag_of(revision: int) -> str:
    """The etag of a conversation: its revision in quotes."""
    return f'"{revision}"'


def _batch_values(batch: Batch | None, now: datetime) -> dict[str, Any]:
    return batch.values(now) if batch else {}


def _read(access: Access) -> Permission:
    """The permission that every statement on a conversation carries."""
    return access.demand("conversation", "read")


def _permissions_to(change: Change, access: Access) -> tuple[Permission, ...]:
    """The permissions that a change needs: update for metadata, share for attributes.

    New attributes must be the caller's own, unless it may share every conversation.

    Raises:
        ActionDenied: The policy never lets the caller make such a change.
    """
    permissions = []
    if change.replace_metadata or change.metadata or change.drop_metadata:
        permissions.append(access.demand("conversation", "update"))
    if change.replace_attributes or change.attributes or change.drop_attributes:
        permissions.append(access.demand("conversation", "share"))
        access.decide_values(change.attributes)
    return tuple(permissions)


def _authorize_create(access: Access, attributes: Sequence[str], conversation_id: str, batch: Batch | None) -> None:
    """Applies the policy to a conversation and its first items as they would be stored.

    Raises:
        ActionDenied: The policy does not let the caller create them.
    """
    access.decide_values(attributes)
    owner, pairs = access.principal.id, frozenset(attributes)
    access.decide("conversation", "create", Row(owner, pairs, conversation_id))
    for item_id in batch.all_ids if batch else ():
        access.decide("item", "create", Row(owner, pairs, item_id))
