"""Running: how many calls, or requests, there are now; and the wait for their end."""

import asyncio


class Running:
    """Counts what has begun and not ended.

    Attributes:
        count: Now.
    """

    def __init__(self) -> None:
        self.count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self) -> None:
        """Counts one in."""
        self.count += 1
        self._idle.clear()

    def end(self) -> None:
        """Counts one out."""
        self.count -= 1
        if not self.count:
            self._idle.set()

    async def wait_idle(self, seconds: float) -> bool:
        """Waits for all to end; returns whether they did within ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
