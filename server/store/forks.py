"""Forks: the beginning of a conversation is copied into a new one (docs/adr/0035)."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from server.authorization.access import Access
from server.errors import (
    ActionDenied,
    Conflict,
    ConversationNotFound,
    ItemNotFound,
    LimitExceeded,
    ServiceError,
    Violation,
)
from server.policy.principal import pairs
from server.store.connection.database import Database
from server.store.connection.failures import KeyTaken
from server.store.conversations import ConversationStore
from server.store.expiry import Expiry
from server.store.idempotency import Reservation, reservation_values
from server.store.sql import forks as sql
from server.store.sql.conversations import MAX_PAIRS
from server.store.sql.creates import CONSTRAINT as CONVERSATION_ID
from server.store.sql.idempotency import CONSTRAINT as REQUEST_ID

MAX_PLACES = 10_000  # of one fork
MAX_BYTES = 64 * 1024 * 1024  # of its items
SMALL_PLACES = 1_000  # of a fork that need not wait for others
MAX_LARGE = 2  # other forks at once
_TRIES = 3  # while the source changes between a refusal and the look at its reason


@dataclass(frozen=True)
class Fork:
    """What one call copies.

    Attributes:
        access: Of the caller, who becomes the owner.
        source_id: Of the conversation that is copied.
        conversation_id: Of `new_id`.
        through: The sequence or the item id of the last place to copy; None for all places.
        metadata: Laid over that of the source.
        attributes: Each ``name=value``.
        names: Of attributes that are not taken from the source.
        expiry: When the fork ends by itself.
        reservation: Of the request id.
        now: The create_time.
    """

    access: Access
    source_id: str
    conversation_id: str
    through: int | str | None
    metadata: dict[str, str]
    attributes: Sequence[str]
    names: Sequence[str]
    expiry: Expiry
    reservation: Reservation | None
    now: datetime

    @property
    def kind(self) -> sql.Through:
        """How the last place is named."""
        match self.through:
            case None:
                return "all"
            case int():
                return "sequence"
            case _:
                return "item"

    @property
    def permissions(self) -> sql.Permissions:
        """What it needs.

        Raises:
            ActionDenied: The policy lets the caller read or create none.
        """
        demand = self.access.demand
        return sql.Permissions(
            (
                demand("conversation", "read"),
                demand("item", "read"),
                demand("conversation", "create"),
                demand("item", "create"),
                self.access.may("conversation", "share"),
            )
        )

    def values(self, max_places: int) -> dict[str, Any]:
        """The parameters of its statements.

        Args:
            max_places: The most places that are copied.
        """
        return {
            **self.access.values,
            **reservation_values(self.access.principal, self.reservation),
            "conversation_id": self.conversation_id,
            "source_id": self.source_id,
            "owner": self.access.principal.id,
            "through_sequence": self.through,
            "through_item_id": self.through,
            "metadata": json.dumps(self.metadata, ensure_ascii=False),
            "own_attributes": sorted(pairs(self.access.principal.attributes)),
            "sent_attributes": self.attributes,
            "sent_names": self.names,
            "max_places": max_places,
            "max_bytes": MAX_BYTES,
            "now": self.now,
            **self.expiry.values(),
        }


class ForkStore:
    """Forks conversations; raises StoreUnavailable, DeadlineExceeded and Conflict as `Database.fetch` does.

    Args:
        database: Runs the statements.
        conversations: That are forked.
    """

    def __init__(self, database: Database, conversations: ConversationStore) -> None:
        self._database = database
        self._conversations = conversations
        self._large = asyncio.Semaphore(MAX_LARGE)

    async def fork(self, fork: Fork) -> asyncpg.Record:
        """Makes the fork; returns its row.

        With a request id, a repeated call returns the row of the existing fork.

        Raises:
            ConversationNotFound: The source does not exist, was deleted, or may not be read; or the fork of an
                earlier call was deleted.
            ItemNotFound: The source does not have the item that is to be the last, or it may not be read.
            ActionDenied: The caller may not create the fork or its items, or not share the source with these values.
            LimitExceeded: There are more places or bytes than one fork copies, or more than `MAX_PAIRS` names.
            RequestIdReused: The request id belongs to another request.
        """
        fork.access.decide_values(fork.attributes)
        places = SMALL_PLACES
        for _ in range(_TRIES):
            async with self._turn(places):
                row = await self._write(fork, places)
            if row is None:
                row = await self._find_created(fork)
            else:
                self._conversations.hub.note_change(fork.conversation_id)
                self._database.stats.creates += 1
            if row is not None:
                return row
            places = await self._require_possible(fork)
        raise Conflict

    def _turn(self, places: int) -> AbstractAsyncContextManager[None]:
        """Lets only a few large forks run at once; others wait for them."""
        return nullcontext() if places <= SMALL_PLACES else self._large

    async def _write(self, fork: Fork, places: int) -> asyncpg.Record | None:
        """The row of a fork of at most ``places``; None when nothing was stored."""
        reserves = fork.reservation is not None
        permissions = fork.permissions  # their values are known from then on
        values = fork.values(places)
        if self._database.layout.spans_conversations:
            statement = sql.fork(permissions, fork.kind, reserves=reserves)
        else:
            source = await self._database.fetchrow(sql.read_source(permissions, fork.kind), values)
            if source is None:
                return None
            statement, values = sql.store_copy(reserves=reserves), {**values, **source, "forked_from": fork.source_id}
        held = self._conversations.locks.hold(fork.conversation_id) if reserves else nullcontext()
        try:
            async with held:
                return await self._database.fetchrow(statement, values, repeatable=reserves)
        except KeyTaken as taken:
            if not reserves or taken.constraint not in {REQUEST_ID, CONVERSATION_ID}:
                raise
            return None

    async def _find_created(self, fork: Fork) -> asyncpg.Record | None:
        """The row of the fork of an earlier call with the request id, if there was one."""
        if fork.reservation is None:
            return None
        return await self._conversations.find_created(fork.access, fork.conversation_id, fork.reservation)

    async def _require_possible(self, fork: Fork) -> int:
        """How many places a fork may have that was refused: many, if it was refused for having more than a few.

        Raises:
            ServiceError: The reason for which it was refused, if there is another one.
        """
        values = fork.values(MAX_PLACES)
        row = await self._database.fetchrow(sql.refusal(fork.permissions, fork.kind), values)
        if row is None:
            raise ConversationNotFound(fork.source_id)
        if error := _missing(fork, row) or _excess(fork, row):
            raise error
        return MAX_PLACES if row["through"] > SMALL_PLACES else SMALL_PLACES


def _missing(fork: Fork, row: asyncpg.Record) -> ServiceError | None:
    """The error of an item or a permission that is missing."""
    if row["through"] is None:
        return ItemNotFound(fork.source_id, str(fork.through))
    for column, resource, action in (
        ("may_share", "conversation", "share"),
        ("may_create", "conversation", "create"),
        ("may_create_items", "item", "create"),
    ):
        if not row[column]:
            return ActionDenied(resource, action)
    return None


def _excess(fork: Fork, row: asyncpg.Record) -> LimitExceeded | None:
    """The error of a fork that would be too large."""
    place = "through_item_id" if isinstance(fork.through, str) else "through_sequence"
    for found, limit, what in ((row["through"], MAX_PLACES, "places"), (row["size"], MAX_BYTES, "bytes")):
        if found > limit:
            return LimitExceeded(Violation(place, f"would copy more than {limit} {what}", f"through.max_{what}"), limit)
    for column, name in (("metadata_fits", "metadata"), ("attributes_fit", "attributes")):
        if not row[column]:
            rule = f"would have more than {MAX_PAIRS} pairs"
            return LimitExceeded(Violation(f"conversation.{name}", rule, "map.max_pairs"), MAX_PAIRS)
    return None
