"""How late the event loop is: everything that is served waits as long."""

import asyncio

from server.observability.histogram import Histogram

_PERIOD = 0.25  # seconds between two looks
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class EventLoopLag:
    """Sleeps, and sees how much longer that takes."""

    def __init__(self) -> None:
        self.seconds = Histogram(_SECONDS)

    async def measure(self) -> None:
        """Looks again and again, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _PERIOD
            await asyncio.sleep(_PERIOD)
            self.seconds.add(max(0.0, loop.time() - due))
