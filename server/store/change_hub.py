"""Wakes those who follow a conversation when it changes.

Writes of this process wake at once. Those of others are found by a poll of all conversations that are followed: it
works through PgBouncer, costs no commit anything, and cannot be lost (docs/adr/0031).
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server.store.connection.database import Database
from server.store.poller import POLL_SECONDS, Poller
from server.store.sql.watches import POLL
from server.store.wakeup import Wakeup

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


class ChangeHub(Poller):
    """The watches of this process, by conversation.

    Args:
        on_write: Called after each write of this process.
    """

    def __init__(self, on_write: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._on_write = on_write
        self._followed: dict[str, _Followed] = {}

    @property
    def count(self) -> int:
        """How many conversations are followed."""
        return len(self._followed)

    @contextmanager
    def subscribe(self, conversation_id: str) -> Iterator[Subscription]:
        """Yields a subscription, which ends with the context."""
        subscription = Subscription(self, conversation_id)
        self.begin()
        followed = self._followed.setdefault(conversation_id, _Followed())
        followed.subscriptions.add(subscription)
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

    async def pause(self, least_seconds: float) -> None:
        """As of `Poller`."""
        await asyncio.sleep(max(POLL_SECONDS, least_seconds))

    async def poll(self, database: Database) -> None:
        """Finds the writes of others."""
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
