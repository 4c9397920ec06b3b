"""Event loop lag: how late the loop runs what is due, which delays every call."""

import asyncio

from server.observability.histogram import Histogram

_PERIOD_SECONDS = 0.25  # between two measurements
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class EventLoopLag:
    """Measures how much longer than asked a sleep takes."""

    def __init__(self) -> None:
        self.seconds = Histogram(_SECONDS)

    async def measure(self) -> None:
        """Measures until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _PERIOD_SECONDS
            await asyncio.sleep(_PERIOD_SECONDS)
            self.seconds.add(max(0.0, loop.time() - due))
