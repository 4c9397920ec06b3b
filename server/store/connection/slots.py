"""Bounds how many statements hold a connection at once, and how long the others wait."""

import asyncio
import time

from server.errors import StoreUnavailable
from server.observability.stats import StoreStats


class ConnectionSlots:
    """As many slots as the pool has connections; asyncpg's own wait for one makes a task for each call.

    Args:
        size: Slots.
        wait: Seconds to wait for one.
        stats: Where waits and refusals are counted.

    Attributes:
        waiting: How many statements wait now.
    """

    def __init__(self, size: int, wait: float, stats: StoreStats) -> None:
        self.waiting = 0
        self._free = asyncio.Semaphore(size)
        self._wait = wait
        self._stats = stats

    async def acquire(self) -> None:
        """Takes a slot, which has to be released.

        Raises:
            StoreUnavailable: None was free in time.
        """
        if self._free.locked():
            await self._wait_for_one()
        else:
            await self._free.acquire()

    def release(self) -> None:
        """Gives a slot back."""
        self._free.release()

    async def _wait_for_one(self) -> None:
        began = time.perf_counter()
        self.waiting += 1
        try:
            async with asyncio.timeout(self._wait):
                await self._free.acquire()
        except TimeoutError:
            self._stats.failures["pool"] += 1
            raise StoreUnavailable from None
        finally:
            self.waiting -= 1
            self._stats.waits.add(time.perf_counter() - began)
