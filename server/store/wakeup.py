"""What ends the wait of one task, whatever happens between its look at the state and its wait."""

import asyncio


class Wakeup:
    """An event that is armed before a read, and so also tells of what happens during the read.

    One task waits for it at a time, so that it takes a fifth of the memory of an `asyncio.Event`: a process has one for
    each watch.

    Attributes:
        is_set: Whether something has happened since `arm`.
    """

    __slots__ = ("_waiter", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def arm(self) -> None:
        """Called before a read: what happens from now on wakes."""
        self.is_set = False

    def wake(self) -> None:
        """Ends `wait`."""
        self.is_set = True
        if self._waiter is not None:
            _resolve(self._waiter)

    async def wait(self, seconds: float) -> None:
        """Waits until something has happened since `arm`, or for so long."""
        if self.is_set:
            return
        loop = asyncio.get_running_loop()
        self._waiter = waiter = loop.create_future()
        timer = loop.call_later(seconds, _resolve, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None


def _resolve(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
