"""What ends the wait of one task, whatever happens between its look at the state and its wait."""

import asyncio


class Wakeup:
    """An event that is armed before a read, and so also tells of what happens during the read."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = asyncio.Event()

    @property
    def is_set(self) -> bool:
        """Whether something has happened since `arm`."""
        return self._event.is_set()

    def arm(self) -> None:
        """Called before a read: what happens from now on wakes."""
        self._event.clear()

    def wake(self) -> None:
        """Ends `wait`."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Waits until something has happened since `arm`, or for so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            pass
