"""DrainGate: no call before the store is ready, none in a drain, and the running ones are waited for.

Outside of everything that works for a call. `grpc.aio.Server.stop` returns before the
handlers it aborted have ended (grpc/grpc#37239), and the pool must not close under them.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType

from server.errors import ShuttingDown, StoreUnavailable
from server.interceptors.chain import Guard, Interceptor, is_public_method
from server.interceptors.running import Running


class DrainGate(Interceptor):
    """Counts the calls that run, and refuses calls before `open` and from `begin_drain` on.

    A call that arrives in a drain is held until its connection has received GOAWAY
    (docs/adr/0017): a caller that is refused at once comes back on the same connection,
    thousands of times a second.

    Attributes:
        running: Counts the calls.
        draining: Set when the drain begins; streams of appends end then.
        refusing: Set when connections have been told to go away; watches end then, and calls that are held.
    """

    def __init__(self, on_refuse: Callable[[], None] = lambda: None) -> None:
        """``on_refuse``: called when `refusing` is set."""
        self._on_refuse = on_refuse
        self.running = Running()
        self.draining = asyncio.Event()
        self._is_open = False
        self.refusing = asyncio.Event()

    def guard(self, method: str) -> Guard | None:
        """Returns this object; None for health and reflection, which answer from start to end."""
        return None if is_public_method(method) else lambda _context: self

    def open(self) -> None:
        """Lets calls in: the store is ready."""
        self._is_open = True

    def begin_drain(self) -> None:
        """Holds new calls, and ends streams."""
        self.draining.set()

    def refuse_held(self) -> None:
        """Refuses the calls that are held, and all that arrive later."""
        self.refusing.set()
        self._on_refuse()

    async def __aenter__(self) -> None:
        """Counts the call in.

        Raises:
            ShuttingDown: The server drains.
            StoreUnavailable: The store has not been ready yet.
        """
        if self.draining.is_set():
            await self.refusing.wait()
            raise ShuttingDown
        if not self._is_open:
            raise StoreUnavailable
        self.running.begin()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.running.end()
