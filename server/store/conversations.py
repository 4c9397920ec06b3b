"""Create, read, update, delete and list conversations."""

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from server.authorization.access import Access
from server.authorization.permission import Permission
from server.errors import (
    ActionDenied,
    Conflict,
    ConversationExists,
    ConversationNotFound,
    EtagMismatch,
    NotEnabled,
    NotSupported,
    RequestIdReused,
)
from server.policy.plan import Always
from server.policy.principal import Principal
from server.store.batch import Batch
from server.store.change_hub import ChangeHub
from server.store.changes import Change, permissions_to, too_many_pairs
from server.store.comparison import EARLIEST, LATEST, Comparison, conversation_filter, filters_owner, filters_source
from server.store.conflicts import explain_batch
from server.store.connection.database import Database
from server.store.connection.failures import KeyTaken
from server.store.conversation_locks import ConversationLocks
from server.store.create_batching import CreateBatcher
from server.store.creates import Create
from server.store.idempotency import (
    Method,
    PriorResult,
    Reservation,
    execute_write,
    find_prior_result,
    reservation_values,
)
from server.store.ids import conversation_id_for, new_conversation_id
from server.store.range_lists import read_all, read_ranges
from server.store.references import read_references
from server.store.sql import conversations as sql
from server.store.sql.activity import page as activity_page
from server.store.sql.creates import CONSTRAINT as CONVERSATION_ID
from server.store.sql.creates import create as create_statement
from server.store.sql.idempotency import CONSTRAINT as REQUEST_ID
from server.store.worker_lists import WorkerLists


class ConversationStore:
    """The conversations that callers may see.

    Each method runs one statement, which carries every permission and precondition. Only when a
    write changed nothing does a second one find out why. Every method raises StoreUnavailable,
    DeadlineExceeded and Conflict as `Database.fetch` does.

    Args:
        database: Runs the statements.
        max_bytes: The most bytes that the conversations of one response, or the items of one request, may
            have together.
        hub: Is told of every change; by default nobody follows any.
        keep: How long a deleted conversation can be brought back.
        activity: Whether conversations can be listed by their activity.

    Attributes:
        locks: Held by every write to one conversation that may wait for a lock in the database.
        hub: As above.
        worker_lists: Reads lists where the database is distributed.
    """

    def __init__(
        self,
        database: Database,
        max_bytes: int,
        hub: ChangeHub | None = None,
        keep: timedelta = timedelta(days=30),
        *,
        activity: bool = True,
    ) -> None:
        self.hub = hub or ChangeHub()
        self._activity = activity
        self.locks = ConversationLocks(database.bounds.lock)
        self._creates = CreateBatcher(database, self.locks, self._run_create)
        self._database = database
        self.worker_lists = WorkerLists(database)
        self._max_bytes = max_bytes
        self._keep = keep

    @property
    def queues(self) -> bool:
        """Whether appends put their conversation in the queue, which moves the times of the lists by activity."""
        return self._activity and self._database.layout.orders_by_activity

    def require_order_by_activity(self) -> None:
        """Returns if conversations can be listed by their activity.

        Raises:
            NotSupported: The database is distributed.
            NotEnabled: The operator has turned it off.
        """
        if not self._database.layout.orders_by_activity:
            raise NotSupported("The order by active_time")
        if not self._activity:
            raise NotEnabled("activity")

    async def create(self, create: Create) -> dict[str, Any] | asyncpg.Record:
        """Creates a conversation with its first items; returns its row.

        With a request id, a repeated call returns the row of the existing conversation.

        Raises:
            ActionDenied: The policy does not let the caller create it.
            ItemNotFound: A reference cannot be read.
            ItemExists: Two items have the same id.
            LimitExceeded: The items, those copied included, have more than ``max_bytes`` together.
            RequestIdReused: The request id belongs to another request.
            ConversationNotFound: The conversation of an earlier call was deleted.
        """
        create.authorize()
        if create.batch.has_references:
            _references(create.access)
        if not await self._creates.run(create):
            return await self._find_created(create)
        self.hub.note_change(create.conversation_id)
        self._database.stats.creates += 1
        self._database.stats.items += len(create.batch)
        return create.row()

    async def _run_create(self, create: Create) -> bool:
        """Runs a create in a statement of its own; whether it was stored."""
        access, reserves = create.access, create.is_repeatable
        batch = await self._with_references_read(create)
        if batch is None:
            return False
        references = _references(access) if batch.has_references else None
        statement = create_statement(
            references,
            attributes=bool(create.attributes),
            items=bool(batch),
            expires=create.expires,
            reserves=reserves,
            copied=bool(batch.create_times),
        )
        try:
            row = await self._database.fetchrow(
                statement, create.values(batch, self._max_bytes), repeatable=reserves, callers=create.callers
            )
        except KeyTaken as taken:
            create.key_taken = reserves and taken.constraint in {REQUEST_ID, CONVERSATION_ID}
            return False
        if row is not None:
            create.mark_stored()
        return row is not None

    async def _with_references_read(self, create: Create) -> Batch | None:
        """The items of a create, without references where no statement could resolve them; None if one cannot be."""
        batch = create.batch
        if not batch.has_references or self._database.layout.spans_conversations:
            return batch
        return (await read_references(self._database, create.access, batch, create.now, self._max_bytes)).batch

    async def _find_created(self, create: Create) -> asyncpg.Record:
        """The row that an earlier call with the request id created, after a create that stored nothing.

        Raises:
            ServiceError: There was none; it says why nothing was stored.
        """
        access, conversation_id = create.access, create.conversation_id
        if create.reservation:
            if (existing := await self.find_created(access, conversation_id, create.reservation)) is not None:
                return existing
            if create.key_taken:
                raise ConversationNotFound(conversation_id)
        raise await explain_batch(self._database, access, conversation_id, create.batch, self._max_bytes)

    async def find_created(
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
        permissions = permissions_to(change, access)
        statement = sql.change(
            _read(access),
            permissions,
            attributes=change.shares,
            expiry=change.expiry is not None,
            queues=self.queues,
            reserves=reservation is not None,
        )
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
            self.hub.note_change(conversation_id)
            return row
        if await self.prior_result(access, conversation_id, reservation):
            return await self.require(access, conversation_id, *permissions)
        row = await self.require(access, conversation_id, *permissions, revision=revision)
        raise too_many_pairs(row, change) or Conflict()

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
            self.hub.note_change(conversation_id)
            return
        prior = await find_prior_result(self._database, conversation_id, access.principal, reservation)
        if prior is None:
            await self.require(access, conversation_id, delete, revision=revision)
            raise Conflict
        await self._require_deletable(access, conversation_id, delete)
        if reservation and not prior.same_request:
            raise RequestIdReused(reservation.request_id)

    async def undelete(self, access: Access, conversation_id: str, reservation: Reservation | None) -> asyncpg.Record:
        """Takes a delete back; returns the row of the conversation, whose items are as they were.

        Args:
            access: Of the caller.
            conversation_id: Of the conversation.
            reservation: Of the request id; a repeated call succeeds.

        Raises:
            ConversationNotFound: It does not exist, was deleted too long ago, has expired, or may not be read.
            ConversationExists: It is not deleted.
            Conflict: It was deleted meanwhile.
            ActionDenied: The caller may not delete it.
            RequestIdReused: The request id belongs to another request.
        """
        delete = access.demand("conversation", "delete")
        statement = sql.undelete(_read(access), delete, reserves=reservation is not None)
        values = {
            **access.values,
            **reservation_values(access.principal, reservation),
            "conversation_id": conversation_id,
            "keep": self._keep,
        }
        async with self.locks.hold(conversation_id):
            row = await execute_write(self._database, statement, values, reservation)
        if row is not None:
            self.hub.note_change(conversation_id)
            return row
        if await self.prior_result(access, conversation_id, reservation):
            return await self.require(access, conversation_id, delete)
        found = await self._require_deletable(access, conversation_id, delete)
        if found["alive"]:
            raise ConversationExists(conversation_id)
        if found["kept"]:  # it was deleted after the statement had seen it alive
            raise Conflict
        raise ConversationNotFound(conversation_id)

    async def page(
        self,
        access: Access,
        comparisons: tuple[Comparison, ...],
        position: tuple[datetime, str] | None,
        count: int,
        *,
        descending: bool,
        by_activity: bool = False,
    ) -> tuple[list[asyncpg.Record], bool]:
        """A page of the conversations that the caller may read, by a time and id, and whether more follow.

        The page ends early where ``max_bytes`` are full.

        Args:
            access: Of the caller.
            comparisons: Of the filter; all must hold.
            position: The time and id that the page follows; None for the first page.
            count: The most rows.
            descending: Whether newest come first.
            by_activity: Whether the time is the active_time, newest first, instead of the create_time.

        Raises:
            ActionDenied: The policy lets the caller read none.
            Overloaded: The page is a scan, and too many run already.
        """
        read = access.demand("conversation", "read")
        source = filters_source(comparisons)
        ranges = None if source else access.index_ranges  # the forks of one conversation are a range themselves
        after_time, after_id = position or ((LATEST, "") if descending or by_activity else (EARLIEST, ""))
        values = {
            **access.values,
            "after_time": after_time,
            "after_id": after_id,
            "count": count + 1,
            "page_bytes": self._max_bytes,
            **(ranges.values() if ranges else {}),
            **(conversation_filter(comparisons) if comparisons else {}),
        }
        shape: dict[str, Any] = {"filters_owner": filters_owner(comparisons) if comparisons else None}
        if not by_activity:
            shape["descending"] = descending
        build = activity_page if by_activity else sql.page
        statement = build(read, covered=ranges is not None, filters_source=source, **shape)
        # Without a filter, all rows of a range are shown, and all rows of a tenant if the caller may read all of them.
        is_scan = bool(comparisons) or (ranges is None and not isinstance(read.plan, Always))
        async with self._database.scans.place(access.principal.key) if is_scan else nullcontext():
            # Citus asks all workers at once, which is better where no index leads to the rows.
            is_search = is_scan and not (ranges or source or shape["filters_owner"])
            if self._database.layout.spans_conversations or is_search:
                rows = await self._database.fetch(statement, values)
            elif ranges:
                rows = await read_ranges(self.worker_lists, read, ranges, values, shape)
            else:
                rows = await read_all(self.worker_lists, statement, values, descending=descending)
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

    async def _require_deletable(self, access: Access, conversation_id: str, delete: Permission) -> asyncpg.Record:
        """The state of a conversation that the caller may delete, or could before it was deleted.

        Raises:
            ConversationNotFound: It does not exist, has expired, or may not be read.
            ActionDenied: The caller may not delete it.
        """
        values = {**access.values, "conversation_id": conversation_id, "keep": self._keep}
        row = await self._database.fetchrow(sql.get_deleted(_read(access), delete), values)
        if row is None:
            raise ConversationNotFound(conversation_id)
        if not row[delete.name]:
            raise ActionDenied("conversation", "delete")
        return row


def new_id(principal: Principal, reservation: Reservation | None) -> str:
    """The id of a conversation that is about to be created; with a request id, every retry has the same."""
    if reservation is None:
        return new_conversation_id()
    forks = reservation.method is Method.FORK_CONVERSATION
    return conversation_id_for(principal.tenant, principal.id, reservation.request_id, forks=forks)


def etag_of(revision: int) -> str:
    """The etag of a conversation: its revision in quotes."""
    return f'"{revision}"'


def _read(access: Access) -> Permission:
    """The permission that every statement on a conversation carries."""
    return access.demand("conversation", "read")


def _references(access: Access) -> tuple[Permission, Permission]:
    """The permissions that a statement with references carries: to read conversations, and items."""
    return _read(access), access.demand("item", "read")
