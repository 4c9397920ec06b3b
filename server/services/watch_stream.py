"""The life of a watch: a stream of what happens, until its time has passed.

Nothing is kept for a caller but a position: a slow one is waited for, and finds the state when it comes back.
"""

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from conversations.v1 import conversations_service_pb2 as pb

from server.authorization.access import Access, current_access
from server.authorization.audit_log import current_audit
from server.errors import (
    ActionDenied,
    ConversationNotFound,
    DeadlineExceeded,
    IdentityUnavailable,
    ShuttingDown,
    StoreUnavailable,
)
from server.identity.caller import current_caller
from server.interceptors.chain import Context
from server.observability.stats import WatchStats
from server.requests.page_tokens import PageTokens
from server.store.change_hub import ChangeHub
from server.store.change_log_poller import ChangeLogPoller
from server.store.conversation_changes import ConversationChanges
from server.store.item_changes import ItemChanges
from server.store.poller import BLIND_SECONDS, Poller
from server.store.wakeup import Wakeup

BOOKMARK_SECONDS = 30.0  # between two reads although nothing has woken
_JITTER = 0.1  # of times, so that streams that began together do not end together
_RETRY_SECONDS = (1.0, 2.0)  # least and most, after a read that failed
_BLIND_SPREAD_SECONDS = 5.0  # in which all streams end when nobody can be told of changes
_DEADLINE_SECONDS = 1.0  # before that of the caller
_READS = 8  # at a time
_TRANSIENT = (StoreUnavailable, DeadlineExceeded, IdentityUnavailable)
_REFUSALS = (ActionDenied, ConversationNotFound)
# What `watch_changes_total` counts.
_KINDS = (*pb.ItemChange.DESCRIPTOR.fields_by_name, "conversation_removed")


class Found(Protocol):
    """What one read found."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""

    @property
    def is_complete(self) -> bool:
        """Whether there is no more."""

    @property
    def is_last(self) -> bool:
        """Whether nothing can follow."""


FoundT = TypeVar("FoundT", bound=Found)
ResponseT = TypeVar("ResponseT")
WakeupT = TypeVar("WakeupT", bound=Wakeup)


@dataclass(frozen=True)
class Watches:
    """What the streams of this process share.

    Attributes:
        changes: What has happened in a conversation.
        hub: Says when to look there.
        logged: What has happened to all conversations.
        poller: Says when to look there.
        tokens: Signs and verifies resume tokens.
        seconds: How long a stream lasts.
        refusing: Set when connections have been told to go away; streams end then.
        stats: What was told, and how late.
        reads: Lets so many streams read and build a message at a time.
    """

    changes: ItemChanges
    hub: ChangeHub
    logged: ConversationChanges
    poller: ChangeLogPoller
    tokens: PageTokens
    seconds: float
    refusing: asyncio.Event
    stats: WatchStats = field(default_factory=lambda: WatchStats(_KINDS))
    reads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_READS))


class WatchStream(ABC, Generic[FoundT, ResponseT, WakeupT]):
    """One call; made inside of it.

    Args:
        shared: What all streams share.
        poller: Finds the writes of others.

    Attributes:
        conversation_id: That the audit names; '' for none.
        resource: That the caller reads.
        access: What the caller may do; planned again before each read.
    """

    conversation_id = ""
    resource: str

    def __init__(self, shared: Watches, poller: Poller) -> None:
        self.shared = shared
        self._poller = poller
        self.access: Access = current_access.get()
        self._caller = current_caller.get()
        self._audit = current_audit.get()
        self._told_at = 0.0  # the last message; 0 before the first

    @abstractmethod
    def subscribe(self) -> AbstractContextManager[WakeupT]:
        """Returns what says when to read."""

    @abstractmethod
    async def start(self) -> None:
        """Finds the position where the stream begins."""

    @abstractmethod
    async def read(self, subscription: WakeupT) -> FoundT:
        """Reads what has happened behind the position, and moves the position behind it."""

    @abstractmethod
    def response(self, found: FoundT) -> ResponseT:
        """Returns the message for what was read."""

    async def respond(self, context: Context) -> AsyncIterator[ResponseT]:
        """Yields what happens, until its time has passed, or the caller's deadline is near.

        Args:
            context: Of the call.

        Raises:
            ConversationNotFound, ActionDenied: The caller cannot read it, or not any more.
            Unauthenticated: The caller's credentials are no longer valid.
            ResumeTokenInvalid, ResumeTokenExpired: The start cannot be used.
            ChangesNotKept: There is no log of changes.
            StoreUnavailable: Nobody could be told of changes for `BLIND_SECONDS`.
            ShuttingDown: The server drains.
        """
        ends_at = time.monotonic() + lifetime(context, self.shared.seconds)
        with self.subscribe() as subscription:
            try:
                async with aclosing(self._responses(subscription, ends_at)) as responses:
                    async for response in responses:
                        yield response
            except _REFUSALS as error:
                self._audit.record(self.access, self.resource, "read", error, self.conversation_id)
                raise

    async def _responses(self, subscription: WakeupT, ends_at: float) -> AsyncGenerator[ResponseT, None]:
        await self.start()
        blind_seconds = BLIND_SECONDS + random.uniform(0, _BLIND_SPREAD_SECONDS)  # noqa: S311 - jitter
        while True:
            subscription.arm()
            found = await self._read(subscription)
            if found is not None:
                is_last, is_complete = found.is_last, found.is_complete
                if self._is_told(found):
                    self._audit_permit()
                    response = self.response(found)
                    del found  # the caller may take its time
                    with self.shared.stats.writing(self):
                        yield response
                    del response
                    self._told_at = time.monotonic()
                if is_last:
                    return
                pause = BOOKMARK_SECONDS * _around_one() if is_complete else 0.0
            else:
                subscription.arm()
                pause = random.uniform(*_RETRY_SECONDS)  # noqa: S311 - jitter
            self._check_can_go_on(blind_seconds)
            if (left := ends_at - time.monotonic()) <= 0:
                return
            if pause:
                await subscription.wait(min(pause, left))

    def _is_told(self, found: FoundT) -> bool:
        """Whether there is a message: what the caller may not read does not show, not even by the time of one."""
        is_due = time.monotonic() > self._told_at + BOOKMARK_SECONDS * (1 - _JITTER)
        return not self._told_at or not found.is_empty or is_due

    def count(self, changes: Iterable[pb.ItemChange]) -> None:
        """Counts what a message tells of items, and how late it does."""
        stats, now = self.shared.stats, time.time()
        for change in changes:
            kind = str(change.WhichOneof("change"))
            stats.changes[kind] += 1
            if kind == "item" and self._told_at:
                created = change.item.create_time
                stats.delays.add(max(0.0, now - created.seconds - created.nanos / 1e9))

    def _check_can_go_on(self, blind_seconds: float) -> None:
        """Raises ShuttingDown in a drain, and StoreUnavailable when nobody could be told of changes for so long."""
        if self.shared.refusing.is_set():
            raise ShuttingDown
        if self._poller.poll_age > blind_seconds:
            raise StoreUnavailable

    async def _read(self, subscription: WakeupT) -> FoundT | None:
        """What has happened behind the position; None if that cannot be read now.

        Who the caller is, and what it may do, is asked again first.
        """
        async with self.shared.reads:
            try:
                self.access = self.access.renewed(await self._caller.principal())
                return await self.read(subscription)
            except _TRANSIENT:
                return None

    def _audit_permit(self) -> None:
        if not self._audit.has_permit:
            self._audit.record(self.access, self.resource, "read", None, self.conversation_id)
            self._audit.has_permit = True

    def sign(self, position: bytes, *query: str) -> str:
        """Returns a resume token of the caller, bound to ``query``."""
        return self.shared.tokens.sign(position, *self._bound(query))

    def verify(self, token: str, *query: str) -> bytes:
        """Returns the position in a token.

        Raises:
            ResumeTokenInvalid: It was not made for this caller and ``query``.
        """
        return self.shared.tokens.verify_resume(token, *self._bound(query))

    def _bound(self, query: tuple[str, ...]) -> tuple[str, ...]:
        method, *rest = query
        principal = self.access.principal
        return method, principal.tenant, principal.id, *rest


def lifetime(context: Context, seconds: float) -> float:
    """Seconds that a stream lasts, in all."""
    remaining: float | None = context.time_remaining()
    lasting = seconds * _around_one()
    return lasting if remaining is None else min(lasting, remaining - _DEADLINE_SECONDS)


def _around_one() -> float:
    return random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - jitter
