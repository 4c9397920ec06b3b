"""Bounds how many scans run at once, in all and for each caller.

A scan is a statement of which no index bounds how many rows it reads, such as a list whose filter nothing matches. It
may hold its connection until the statement times out, so a few callers could take all of them. Scans get half of the
connections at most, and those of one caller half of that half: other calls, and the scans of others, find one free.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from server.errors import Overloaded
from server.store.connection.slots import waited_since


class ScanLimit:
    """Gives scans a place to run in.

    Args:
        size: Connections.
        wait: Seconds to wait for a place.

    Attributes:
        limit: Scans at once.
        limit_per_caller: Of these, scans of one caller.
    """

    def __init__(self, size: int, wait: float) -> None:
        self.limit = max(1, size // 2)
        self.limit_per_caller = max(1, self.limit // 2)
        self._wait = wait
        self._places = asyncio.Semaphore(self.limit)
        self._callers: WeakValueDictionary[Hashable, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def place(self, caller: Hashable) -> AsyncIterator[None]:
        """Holds a place for a scan of ``caller`` while it is open; the wait for it counts as one for a connection.

        Raises:
            Overloaded: None was free in time.
        """
        began = time.perf_counter()
        own = self._callers.setdefault(caller, asyncio.Semaphore(self.limit_per_caller))
        await self._acquire(own, began, "filtered reads of one caller", self.limit_per_caller)
        try:
            await self._acquire(self._places, began, "filtered reads", self.limit)
            try:
                with waited_since(began):
                    yield
            finally:
                self._places.release()
        finally:
            own.release()

    async def _acquire(self, places: asyncio.Semaphore, began: float, what: str, limit: int) -> None:
        try:
            async with asyncio.timeout(self._wait - (time.perf_counter() - began)):
                await places.acquire()
        except TimeoutError:
            raise Overloaded(what, limit) from None
