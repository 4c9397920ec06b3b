"""A task that polls the database for all watches of one kind."""

import asyncio
import random
import time
from abc import ABC, abstractmethod

from server.errors import ServiceError
from server.store.connection.database import Database

POLL_SECONDS = 0.2  # between two polls
BLIND_SECONDS = 30.0  # without a poll, after which nobody can be told of changes
_POLL_SHARE = 10  # a poll takes at most a tenth of the time
_RETRY_SECONDS = (1.0, 2.0)  # least and most, after a poll that failed


class Poller(ABC):
    """Polls while there are watches, and wakes those that may have to be told something.

    Attributes:
        polled_at: When the last poll succeeded, or the first was due, by `time.monotonic`.
        poll_seconds: How long the last poll took.
    """

    def __init__(self) -> None:
        self.polled_at = time.monotonic()
        self.poll_seconds = 0.0
        self._begun = asyncio.Event()

    @property
    @abstractmethod
    def count(self) -> int:
        """How much is followed; nothing is polled while it is 0."""

    @abstractmethod
    def wake_all(self) -> None:
        """Called when all should read again, such as under another policy."""

    @abstractmethod
    async def pause(self, least_seconds: float) -> None:
        """Waits for the next poll, at least for so long."""

    @abstractmethod
    async def poll(self, database: Database) -> None:
        """Finds what has changed, and wakes whom it concerns."""

    @property
    def poll_age(self) -> float:
        """Seconds since the last poll; 0 while nobody is there to be told."""
        return time.monotonic() - self.polled_at if self.count else 0.0

    def begin(self) -> None:
        """Called before something more is followed."""
        if not self.count:
            self.polled_at = time.monotonic()
        self._begun.set()

    async def poll_forever(self, database: Database) -> None:
        """Polls, until it is cancelled."""
        while True:
            await self.wait_for_watches()
            await self.pause(_POLL_SHARE * self.poll_seconds)
            began = time.monotonic()
            try:
                await self.poll(database)
            except ServiceError:  # it is tried again: a failover delays only
                if self.poll_age > BLIND_SECONDS:
                    self.wake_all()
                await asyncio.sleep(random.uniform(*_RETRY_SECONDS))  # noqa: S311 - jitter
                continue
            self.polled_at = time.monotonic()
            self.poll_seconds = self.polled_at - began

    async def wait_for_watches(self) -> None:
        """Waits until something is followed."""
        if not self.count:
            self._begun.clear()
            await self._begun.wait()
