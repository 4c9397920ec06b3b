"""Running: no call before the store is prepared and none in a drain; those under way are waited for.

Outside of all that does anything for a call. `grpc.aio.Server.stop` returns before aborted handlers ran to their end
(traps §2.5), and the pool must not close under them.
"""

import asyncio
from types import TracebackType

from server.errors import ShuttingDown, StoreUnavailable
from server.interceptors.chain import OPEN, Guard, Interceptor


class DrainGate(Interceptor):
    """Counts the calls under way, and refuses new ones before it is opened and in a drain.

    A call that comes in a drain is held until its connection is told to go (ADR 17):
    refused at once, its caller would be back on the same connection, and again.
    """

    def __init__(self) -> None:
        self.count = 0
        self.opened = False
        self.draining = asyncio.Event()  # streams end then
        self._leaving = asyncio.Event()  # held calls are refused then
        self._idle = asyncio.Event()
        self._idle.set()

    def guard(self, method: str) -> Guard | None:
        """A guard that counts; health and reflection answer from the first moment to the last."""
        return None if method.startswith(OPEN) else lambda _context: self

    def hold(self) -> None:
        """Lets no new call in, and has streams end."""
        self.draining.set()

    def release(self) -> None:
        """Refuses the calls that are held, and all that still come."""
        self._leaving.set()

    async def __aenter__(self) -> None:
        if self.draining.is_set():
            await self._leaving.wait()
            raise ShuttingDown
        if not self.opened:
            raise StoreUnavailable
        self.count += 1
        self._idle.clear()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.count -= 1
        if not self.count:
            self._idle.set()

    async def ended(self, seconds: float) -> bool:
        """Whether all calls ended within ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
