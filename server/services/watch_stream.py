"""WatchItems: a stream of what happens in one conversation.

Nothing is kept for a caller but a position: a slow one is waited for, and finds the state when it comes back.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field

from conversations.v1 import conversations_service_pb2 as pb
from google.protobuf.empty_pb2 import Empty

from server.authorization.access import Access, current_access
from server.authorization.audit_log import CallAudit, current_audit
from server.errors import (
    ActionDenied,
    ConversationNotFound,
    DeadlineExceeded,
    IdentityUnavailable,
    PageTokenInvalid,
    ResumeTokenInvalid,
    ShuttingDown,
    StoreUnavailable,
)
from server.identity.caller import Caller, current_caller
from server.interceptors.chain import Context
from server.requests.page_tokens import PageTokens
from server.services.messages import conversation_of, item_of, timestamp
from server.store.change_hub import BLIND_SECONDS, ChangeHub, Subscription
from server.store.item_changes import Changes, ItemChanges
from server.store.items import StoredItem
from server.store.watch_position import Position

MAX_NEWEST = 100
BOOKMARK_SECONDS = 30.0  # between two reads although nothing has woken
_JITTER = 0.1  # of times, so that streams that began together do not end together
_RETRY_SECONDS = (1.0, 2.0)  # least and most, after a read that failed
_BLIND_SPREAD_SECONDS = 5.0  # in which all streams end when nobody can be told of changes
_DEADLINE_SECONDS = 1.0  # before that of the caller
_READS = 8  # at a time
_METHOD = "WatchItems"  # what a resume token is bound to
_TRANSIENT = (StoreUnavailable, DeadlineExceeded, IdentityUnavailable)
_REFUSALS = (ActionDenied, ConversationNotFound)


class WatchStream:
    """One call of WatchItems.

    Args:
        request: Valid.
        access: What the caller may do; planned again before each read.
        caller: Who that is; authenticated again before each read.
        audit: Of this call: a line for the first message, and one for a refusal.
        shared: What all streams share.
    """

    def __init__(
        self,
        request: pb.WatchItemsRequest,
        access: Access,
        caller: Caller,
        audit: CallAudit,
        shared: "Watches",
    ) -> None:
        self._request = request
        self._conversation_id = request.conversation_id
        self._access = access
        self._caller = caller
        self._audit = audit
        self._shared = shared

    async def respond(self, context: Context) -> AsyncIterator[pb.WatchItemsResponse]:
        """Yields what happens, until its time has passed, or the caller's deadline is near.

        Args:
            context: Of the call.

        Raises:
            ConversationNotFound, ActionDenied: The caller cannot read it, or not any more.
            Unauthenticated: The caller's credentials are no longer valid.
            ResumeTokenInvalid, ResumeTokenExpired: The start cannot be used.
            StoreUnavailable: Nobody could be told of changes for `BLIND_SECONDS`.
            ShuttingDown: The server drains.
        """
        ends_at = time.monotonic() + _lifetime(context, self._shared.seconds)
        with self._shared.hub.subscribe(self._conversation_id) as subscription:
            try:
                async with aclosing(self._responses(subscription, ends_at)) as responses:
                    async for response in responses:
                        yield response
            except _REFUSALS as error:
                self._audit.record(self._access, "item", "read", error, self._conversation_id)
                raise

    async def _responses(
        self, subscription: Subscription, ends_at: float
    ) -> AsyncGenerator[pb.WatchItemsResponse, None]:
        position, told_at = await self._start(), 0.0
        blind_seconds = BLIND_SECONDS + random.uniform(0, _BLIND_SPREAD_SECONDS)  # noqa: S311 - jitter
        while True:
            subscription.arm()
            changes = await self._read(position)
            if changes is not None:
                subscription.note_version(changes.version)
                position, is_deleted, is_behind = changes.position, changes.is_deleted, changes.watermark is None
                # What the caller may not read does not show, not even by the time of a message.
                if not told_at or _has_any(changes) or time.monotonic() > told_at + BOOKMARK_SECONDS * (1 - _JITTER):
                    response = self._response(changes)
                    del changes  # the caller may take its time
                    yield response
                    del response
                    told_at = time.monotonic()
                if is_deleted:
                    return
                pause = 0.0 if is_behind else BOOKMARK_SECONDS * _around_one()
            else:
                subscription.arm()
                pause = random.uniform(*_RETRY_SECONDS)  # noqa: S311 - jitter
            self._check_can_go_on(blind_seconds)
            if (left := ends_at - time.monotonic()) <= 0:
                return
            if pause:
                await subscription.wait(min(pause, left))

    def _check_can_go_on(self, blind_seconds: float) -> None:
        """Raises ShuttingDown in a drain, and StoreUnavailable when nobody could be told of changes for so long."""
        if self._shared.refusing.is_set():
            raise ShuttingDown
        if self._shared.hub.poll_age > blind_seconds:
            raise StoreUnavailable

    async def _start(self) -> Position:
        """Where the stream begins."""
        request = self._request
        if request.HasField("resume_token"):
            return self._position_of(request.resume_token)
        after = request.after_sequence if request.HasField("after_sequence") else None
        newest = min(request.newest, MAX_NEWEST)
        return await self._shared.changes.start(
            self._access, self._conversation_id, newest=newest, after_sequence=after
        )

    def _position_of(self, token: str) -> Position:
        try:
            return Position.unpack(self._shared.tokens.verify(token, *self._query()))
        except PageTokenInvalid:
            raise ResumeTokenInvalid from None

    def _query(self) -> tuple[str, ...]:
        principal = self._access.principal
        return _METHOD, principal.tenant, principal.id, self._conversation_id

    async def _read(self, position: Position) -> Changes | None:
        """What has happened behind ``position``; None if that cannot be read now.

        Who the caller is, and what it may do, is asked again first.
        """
        async with self._shared.reads:
            try:
                self._access = self._access.renewed(await self._caller.principal())
                return await self._shared.changes.read(self._access, self._conversation_id, position)
            except _TRANSIENT:
                return None

    def _response(self, changes: Changes) -> pb.WatchItemsResponse:
        if not self._audit.has_permit:
            self._audit.record(self._access, "item", "read", None, self._conversation_id)
            self._audit.has_permit = True
        response = pb.WatchItemsResponse(
            changes=_messages(changes), resume_token=self._shared.tokens.sign(changes.position.pack(), *self._query())
        )
        if changes.watermark is not None:
            response.watermark.CopyFrom(timestamp(changes.watermark))
        self._shared.told.update(str(change.WhichOneof("change")) for change in response.changes)
        return response


@dataclass(frozen=True)
class Watches:
    """What the streams of this process share.

    Attributes:
        changes: What has happened.
        hub: Says when to look.
        tokens: Signs and verifies resume tokens.
        seconds: How long a stream lasts.
        refusing: Set when connections have been told to go away; streams end then.
        told: How many changes were told, by kind.
        reads: Lets so many streams read and build a message at a time.
    """

    changes: ItemChanges
    hub: ChangeHub
    tokens: PageTokens
    seconds: float
    refusing: asyncio.Event
    told: Counter[str] = field(
        default_factory=lambda: Counter(dict.fromkeys(pb.ItemChange.DESCRIPTOR.fields_by_name, 0))
    )
    reads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_READS))

    def stream(self, request: pb.WatchItemsRequest, context: Context) -> AsyncIterator[pb.WatchItemsResponse]:
        """Returns the responses of a call."""
        stream = WatchStream(request, current_access.get(), current_caller.get(), current_audit.get(), self)
        return stream.respond(context)


def _messages(changes: Changes) -> Iterator[pb.ItemChange]:
    if changes.is_deleted:
        yield pb.ItemChange(conversation_deleted=Empty())
        return
    if changes.conversation is not None:
        yield pb.ItemChange(conversation=conversation_of(changes.conversation))
    for row in changes.items:
        if row["body"] is not None:
            yield pb.ItemChange(item=item_of(StoredItem(row["sequence"], row["body"])))
            continue
        place = pb.ItemPlace(item_id=row["item_id"], sequence=row["sequence"])
        yield pb.ItemChange(deleted_item=place) if row["deleted"] else pb.ItemChange(large_item=place)


def _has_any(changes: Changes) -> bool:
    return bool(changes.items or changes.is_deleted or changes.conversation is not None)


def _lifetime(context: Context, seconds: float) -> float:
    """Seconds that a stream lasts, in all."""
    remaining: float | None = context.time_remaining()
    lifetime = seconds * _around_one()
    return lifetime if remaining is None else min(lifetime, remaining - _DEADLINE_SECONDS)


def _around_one() -> float:
    return random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - jitter
