"""Wakes those who follow a conversation when it changes.

Writes of this process wake at once. Those of others are found by a poll of all conversations that are followed: it
works through PgBouncer, costs no commit anything, and cannot be lost (docs/adr/0031).
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server.errors import ServiceError
from server.store.connection.database import Database
from server.store.sql.watches import POLL
from server.store.wakeup import Wakeup

POLL_SECONDS = 0.2
_POLL_SHARE = 10  # a poll takes at most a tenth of the time
_RETRY_SECONDS = (1.0, 2.0)  # least and most, after a poll that failed
BLIND_SECONDS = 30.0  # without a poll, after which nobody can be told of changes
_UNSEEN = -1  # a version that no conversation has


class Subscription(Wakeup):
    """One watch of a conversation.

    Attributes:
        conversation_id: Of the conversation.
    """

    __slots__ = ("_hub", "conversation_id")

    def __init__(self, hub: "ChangeHub", conversation_id: str) -> None:
        super().__init__()
        self.conversation_id = conversation_id
        self._hub = hub

    def note_version(self, version: int) -> None:
        """Called after a read. Whoever sees a new version wakes the others: the poll will not tell of it again."""
        self._hub.note_version(self.conversation_id, version, self)


class _Followed:
    """A conversation that is followed.

    Attributes:
        version: The highest that anybody has seen.
    """

    __slots__ = ("subscriptions", "version")

    def __init__(self) -> None:
        self.version = _UNSEEN
        self.subscriptions: set[Subscription] = set()

    def wake(self, but: Subscription | None = None) -> None:
        for subscription in self.subscriptions:
            if subscription is not but:
                subscription.wake()


class ChangeHub:
    """The watches of this process, by conversation.

    Args:
        on_write: Called after each write of this process.

    Attributes:
        polled_at: When the last poll succeeded, or the first was due, by `time.monotonic`.
        poll_seconds: How long the last poll took.
    """

    def __init__(self, on_write: Callable[[], None] = lambda: None) -> None:
        self.polled_at = time.monotonic()
        self.poll_seconds = 0.0
        self._on_write = on_write
        self._followed: dict[str, _Followed] = {}
        self._begun = asyncio.Event()

    @property
    def count(self) -> int:
        """How many conversations are followed."""
        return len(self._followed)

    @property
    def poll_age(self) -> float:
        """Seconds since the last poll; 0 while nobody is there to be told."""
        return time.monotonic() - self.polled_at if self._followed else 0.0

    @contextmanager
    def subscribe(self, conversation_id: str) -> Iterator[Subscription]:
        """Yields a subscription, which ends with the context."""
        subscription = Subscription(self, conversation_id)
        if not self._followed:
            self.polled_at = time.monotonic()
        followed = self._followed.setdefault(conversation_id, _Followed())
        followed.subscriptions.add(subscription)
        self._begun.set()
        try:
            yield subscription
        finally:
            followed.subscriptions.discard(subscription)
            if not followed.subscriptions:
                del self._followed[conversation_id]

    def note_change(self, conversation_id: str) -> None:
        """Called when a write of this process is committed."""
        self._on_write()
        if followed := self._followed.get(conversation_id):
            followed.wake()

    def note_version(self, conversation_id: str, version: int, reader: Subscription) -> None:
        """Called by a subscription that has read ``version``."""
        followed = self._followed.get(conversation_id)
        if followed and version > followed.version:
            followed.version = version
            followed.wake(but=reader)

    def wake_all(self) -> None:
        """Called when all should read again, such as under another policy."""
        for followed in self._followed.values():
            followed.wake()

    async def poll_forever(self, database: Database) -> None:
        """Finds the writes of others, until it is cancelled."""
        while True:
            await self._wait_for_subscriptions()
            await asyncio.sleep(max(POLL_SECONDS, _POLL_SHARE * self.poll_seconds))
            began = time.monotonic()
            try:
                await self._poll(database)
            except ServiceError:  # it is tried again: a failover delays only
                if self.poll_age > BLIND_SECONDS:
                    self.wake_all()
                await asyncio.sleep(random.uniform(*_RETRY_SECONDS))  # noqa: S311 - jitter
                continue
            self.polled_at = time.monotonic()
            self.poll_seconds = self.polled_at - began

    async def _wait_for_subscriptions(self) -> None:
        if not self._followed:
            self._begun.clear()
            await self._begun.wait()

    async def _poll(self, database: Database) -> None:
        ids = sorted(name for name, followed in self._followed.items() if followed.version != _UNSEEN)
        if not ids:
            return
        versions = [self._followed[name].version for name in ids]
        for row in await database.fetch(POLL, {"ids": ids, "versions": versions}):
            followed = self._followed.get(row["id"])
            if followed is None:
                continue
            if row["version"] is None or row["version"] > followed.version:
                followed.wake()
            if row["version"] is not None:
                followed.version = max(followed.version, row["version"])
