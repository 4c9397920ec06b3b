"""Writes to one conversation, one at a time in this process.

PostgreSQL runs them one at a time anyway, because each locks the row of the conversation.
A write that waits here for the one before it does not hold a connection meanwhile.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from server.errors import DeadlineExceeded
from server.store.connection.slots import waited_since


class ConversationLocks:
    """A lock for each conversation that is being written; waiters take turns in the order they came.

    Args:
        seconds: The longest wait.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiters: dict[str, deque[asyncio.Future[None]]] = {}  # has a key for each lock that is held

    @asynccontextmanager
    async def hold(self, conversation_id: str) -> AsyncIterator[None]:
        """Holds the lock of a conversation meanwhile; the wait for it counts as one for a connection.

        Raises:
            DeadlineExceeded: The wait took longer than its bound.
        """
        began = time.perf_counter()
        waits = not self.try_acquire(conversation_id)
        if waits:
            await self._wait(conversation_id)
        try:
            with waited_since(began) if waits else nullcontext():
                yield
        finally:
            self.release(conversation_id)

    def try_acquire(self, conversation_id: str) -> bool:
        """Takes the lock if it is free; whether it was."""
        if conversation_id in self._waiters:
            return False
        self._waiters[conversation_id] = deque()
        return True

    def release(self, conversation_id: str) -> None:
        """Gives the lock to the next waiter, or frees it."""
        waiters = self._waiters[conversation_id]
        while waiters:
            waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        del self._waiters[conversation_id]

    async def _wait(self, conversation_id: str) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[conversation_id].append(waiter)
        try:
            async with asyncio.timeout(self._seconds):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():  # it got the lock in the same moment
                self.release(conversation_id)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded from error
            raise
