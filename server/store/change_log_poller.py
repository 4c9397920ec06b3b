"""Follows the log of changes for all watches of this process, and wakes those that a change may concern."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from server.authorization.access import Access
from server.store.connection.database import Database
from server.store.log_position import ChangeKey
from server.store.poller import POLL_SECONDS, Poller
from server.store.sql.changes import MAX_POLLED, POLL, START
from server.store.wakeup import Wakeup

_SOON_SECONDS = 0.02  # after a write of this process, and while changes wait for an older transaction


class LogSubscription(Wakeup):
    """One watch of all conversations.

    Attributes:
        access: Of the caller.
        passed: All changes up to this one have been told, or do not concern the caller; None before the first read.
    """

    __slots__ = ("access", "passed")

    def __init__(self, access: Access) -> None:
        super().__init__()
        self.access = access
        self.passed: ChangeKey | None = None

    def note_read(self, key: ChangeKey) -> None:
        """Called after a read that has come to ``key``."""
        self.passed = key if self.passed is None else max(key, self.passed)


@dataclass
class _Concerned:
    """What of one tenant has changed: a watch is concerned if it may read any of these."""

    owners: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)

    def add(self, conversation_id: str, owner: str, attributes: Iterable[str]) -> None:
        self.ids.add(conversation_id)
        self.owners.add(owner)
        self.attributes.update(attributes)

    def is_of(self, access: Access) -> bool:
        """Whether ``access`` may cover some of it; a guess that is never wrong when it says no."""
        ranges = access.index_ranges
        if ranges is None:
            return True
        return not (
            self.owners.isdisjoint(ranges.owners)
            and self.attributes.isdisjoint(ranges.attributes)
            and self.ids.isdisjoint(ranges.ids)
        )


class ChangeLogPoller(Poller):
    """The watches of all conversations in this process.

    Attributes:
        held_since: Since when changes wait for an older transaction, by `time.monotonic`; None if none do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held_since: float | None = None
        self._subscriptions: set[LogSubscription] = set()
        self._reached: ChangeKey | None = None
        self._written = asyncio.Event()
        self._soon = _SOON_SECONDS

    @property
    def count(self) -> int:
        """How many watches there are."""
        return len(self._subscriptions)

    @property
    def held_seconds(self) -> float:
        """How long changes have been waiting for an older transaction, as far as this process has seen."""
        return time.monotonic() - self.held_since if self.held_since is not None else 0.0

    @contextmanager
    def subscribe(self, access: Access) -> Iterator[LogSubscription]:
        """Yields a subscription, which ends with the context."""
        subscription = LogSubscription(access)
        self.begin()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def note_write(self) -> None:
        """Called after a write of this process: the next poll comes soon."""
        if self._subscriptions:
            self._written.set()

    def wake_all(self) -> None:
        """Called when all should read again, such as under another policy."""
        for subscription in self._subscriptions:
            subscription.wake()

    async def wait_for_watches(self) -> None:
        """As of `Poller`; begins anew behind what nobody has followed."""
        if not self._subscriptions:
            self._reached = self.held_since = None
        await super().wait_for_watches()

    async def pause(self, least_seconds: float) -> None:
        """As of `Poller`; shorter after a write."""
        await asyncio.sleep(max(self._soon, least_seconds))
        if self.held_since is None:
            try:
                async with asyncio.timeout(POLL_SECONDS):
                    await self._written.wait()
                await asyncio.sleep(_SOON_SECONDS)  # writes that come together are found together
            except TimeoutError:
                pass
        self._written.clear()

    async def poll(self, database: Database) -> None:
        """Reads what has been logged, and wakes whom it may concern."""
        if self._reached is None:
            (state,) = await database.fetch(START, {})
            self._reached = ChangeKey(state["horizon"], "", 0)
            self.wake_all()  # what was logged between their reads and this one is not read here
            return
        position, after_id, version = self._reached
        rows = await database.fetch(POLL, {"position": position, "after_id": after_id, "version": version})
        state = rows[0]
        self._note_held(is_held=state["is_held"])
        if not state["is_kept"]:
            self._reached = None
            return
        found = [row for row in rows if row["position"] is not None]
        reached = ChangeKey(state["horizon"], "", 0)
        if len(found) == MAX_POLLED:
            last = found[-1]
            reached = ChangeKey(last["position"], last["conversation_id"], last["version"])
            self._written.set()
        self._tell(_by_tenant(found), self._reached, reached)
        self._reached = reached

    def _note_held(self, *, is_held: bool) -> None:
        if not is_held:
            self.held_since, self._soon = None, _SOON_SECONDS
            return
        if self.held_since is None:
            self.held_since = time.monotonic()
        self._soon = min(2 * self._soon, POLL_SECONDS)

    def _tell(self, changed: dict[str, _Concerned], before: ChangeKey, reached: ChangeKey) -> None:
        """Wakes those whom a change may concern; the others need not look at the changes up to ``reached``."""
        for subscription in self._subscriptions:
            concerned = changed.get(subscription.access.principal.tenant)
            if concerned and concerned.is_of(subscription.access):
                subscription.wake()
            elif not subscription.is_set and subscription.passed is not None and subscription.passed >= before:
                subscription.note_read(reached)


def _by_tenant(rows: Iterable[Any]) -> dict[str, _Concerned]:
    """What the rows of the log are about: what was, and what is now."""
    found: dict[str, _Concerned] = defaultdict(_Concerned)
    for row in rows:
        found[row["tenant"]].add(row["conversation_id"], row["owner"], row["attributes"])
        if row["old_tenant"] is not None:
            found[row["old_tenant"]].add(row["conversation_id"], row["old_owner"], row["old_attributes"])
    return found
