"""Bounds how many statements hold a connection at once, and how long the others wait.

Statements that may wait for the lock of a row get three quarters of the connections at most:
however many rows are locked, the others go on.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from server.errors import StoreUnavailable
from server.observability.stats import StoreStats

WITHHELD_SECONDS = 5.0  # in which a slot is left out whose connection the database has refused
_LEAST_WAIT = 0.1  # seconds, however long a call has waited for something else

# Seconds that a statement has waited for its turn before it asks for a slot.
_waited: ContextVar[float] = ContextVar("_waited", default=0.0)


@contextmanager
def waited_since(began: float) -> Iterator[None]:
    """Counts the time since ``began``, of `time.perf_counter`, as a part of the wait for a slot.

    For statements that run directly in this context, so that two waits in a row are not twice as long as one.
    """
    token = _waited.set(time.perf_counter() - began)
    try:
        yield
    finally:
        _waited.reset(token)


def waited() -> float:
    """Returns the seconds that statements in this context have waited for their turn."""
    return _waited.get()


class ConnectionSlots:
    """As many slots as the pool has connections; asyncpg's own wait for one makes a task for each call.

    When none has come free for as long as a statement may wait, the next ones are refused at once: a call that has
    waited behind another call's statement does not wait a second time.

    Args:
        size: Slots.
        wait: Seconds to wait for one.
        stats: Where waits and refusals are counted.

    Attributes:
        waiting: How many statements wait now.
    """

    def __init__(self, size: int, wait: float, stats: StoreStats) -> None:
        self.waiting = 0
        self._size, self._size_for_locks = size, max(1, size - max(1, size // 4))
        self._withheld = 0
        self._free = _Limit(self._size)
        self._for_locks = _Limit(self._size_for_locks)
        self._wait = wait
        self._stats = stats

    async def acquire(self, *, waits: bool) -> None:
        """Takes a slot, which has to be released.

        Args:
            waits: Whether it is for a statement that may wait for the lock of a row.

        Raises:
            StoreUnavailable: None was free in time.
        """
        if self._free.locked() or (waits and self._for_locks.locked()):
            await self._wait_for_one(waits=waits)
        else:
            await self._take(waits=waits)

    def release(self, *, waits: bool) -> None:
        """Gives a slot back that was acquired with the same ``waits``."""
        self._free.release()
        if waits:
            self._for_locks.release()

    def withhold(self) -> bool:
        """Leaves out the next slot that is given back, for `WITHHELD_SECONDS`.

        To be called before a statement gives back its slot whose connection the database has refused.

        Returns:
            Whether others are left; the last one is not left out.
        """
        if self._withheld >= self._size - 1:
            return False
        self._withheld += 1
        limits = [self._free, *([self._for_locks] if self._withheld < self._size_for_locks else [])]
        for limit in limits:
            limit.withhold()
        asyncio.get_running_loop().call_later(WITHHELD_SECONDS, self._restore, limits)
        return True

    def _restore(self, limits: "list[_Limit]") -> None:
        self._withheld -= 1
        for limit in limits:
            limit.restore()

    async def _take(self, *, waits: bool) -> None:
        if waits:
            await self._for_locks.acquire()
        try:
            await self._free.acquire()
        except BaseException:
            if waits:
                self._for_locks.release()
            raise

    async def _wait_for_one(self, *, waits: bool) -> None:
        began = time.perf_counter()
        stuck = self._free.is_stuck(self._wait) or (waits and self._for_locks.is_stuck(self._wait))
        left = max(_LEAST_WAIT, self._wait - waited())
        self.waiting += 1
        try:
            async with asyncio.timeout(0 if stuck else left):
                await self._take(waits=waits)
        except TimeoutError:
            self._stats.failures["pool"] += 1
            raise StoreUnavailable from None
        finally:
            self.waiting -= 1
            self._stats.waits.add(time.perf_counter() - began)


class _Limit:
    """A semaphore that knows since when there is none left."""

    def __init__(self, size: int) -> None:
        self._semaphore = asyncio.Semaphore(size)
        self._changed = 0.0
        self._owed = 0  # that are withheld as soon as they are given back

    def locked(self) -> bool:
        """Whether none is left."""
        return self._semaphore.locked()

    def is_stuck(self, seconds: float) -> bool:
        """Whether none is left, and none was taken or given back for so long."""
        return self.locked() and time.perf_counter() - self._changed >= seconds

    async def acquire(self) -> None:
        await self._semaphore.acquire()
        self._changed = time.perf_counter()

    def release(self) -> None:
        if self._owed:
            self._owed -= 1
            return
        self._changed = time.perf_counter()
        self._semaphore.release()

    def withhold(self) -> None:
        """Leaves out the next one that is given back."""
        self._owed += 1

    def restore(self) -> None:
        """Takes back one `withhold`."""
        self.release()
