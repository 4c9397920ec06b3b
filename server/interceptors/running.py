"""Running: the calls under way, so that a drain can wait for them.

`grpc.aio.Server.stop` returns before aborted handlers ran to their end
(traps §2.5), and the pool must not close under them.
"""

import asyncio
from types import TracebackType

from server.errors import ShuttingDown
from server.interceptors.around import Guard, Link


class Running(Link):
    """Counts the calls under way, and refuses new ones once told to."""

    def __init__(self) -> None:
        self._count = 0
        self.draining = asyncio.Event()  # streams end then
        self._idle = asyncio.Event()
        self._idle.set()

    def guard(self, method: str) -> Guard:
        """A guard that counts; it holds no state of its own, so one serves all calls."""
        return lambda _context: self

    def refuse(self) -> None:
        """Lets no new call in, and streams end."""
        self.draining.set()

    async def __aenter__(self) -> None:
        if self.draining.is_set():
            raise ShuttingDown
        self._count += 1
        self._idle.clear()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._count -= 1
        if not self._count:
            self._idle.set()

    async def ended(self, seconds: float) -> bool:
        """Whether all calls ended within ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
