"""Warm connections: acquired from asyncpg's pool and kept between statements.

Acquiring a connection from the pool and releasing it costs more than a short statement does (ADR 13). So a connection
that has run a statement stays acquired and runs the next one. The pool still makes, replaces and closes connections.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

import asyncpg

Connection: TypeAlias = Any  # an asyncpg.pool.PoolConnectionProxy, which is not typed
Result = TypeVar("Result")

_IDLE_SECONDS = 30.0  # a connection that was not used for so long is released to the pool


class WarmConnections:
    """Runs statements, each on a connection of its own while it runs.

    The caller bounds how many run at once, to as many as the pool has connections.

    Args:
        pool: Of asyncpg; closed by `close`.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool
        self._idle: list[Connection] = []  # the most recently used is the last
        self._unused = 0  # the fewest that were in `_idle` since the last release
        self._loop = asyncio.get_running_loop()
        self._release_timer = self._loop.call_later(_IDLE_SECONDS, self._release_idle)
        self._returning: set[asyncio.Task[None]] = set()

    @property
    def in_use(self) -> int:
        """How many connections run a statement now."""
        return int(self.pool.get_size() - self.pool.get_idle_size()) - len(self._idle)

    async def run(self, work: Callable[[Connection], Awaitable[Result]]) -> Result:
        """Returns what ``work`` returns for a connection; after an error that connection is released to the pool.

        Raises:
            Exception: What ``work`` raises, or what making a connection raises: errors of asyncpg, OSError.
        """
        connection = await self._acquire()
        try:
            result = await work(connection)
        except BaseException:
            await self._release(connection)
            raise
        self._idle.append(connection)
        return result

    async def renew(self) -> None:
        """Makes the pool replace all connections: where one was lost, others may be that do not show it yet."""
        await self._release_oldest(len(self._idle))
        await self.pool.expire_connections()

    async def close(self) -> None:
        """Closes the pool; statements that still run get five seconds."""
        self._release_timer.cancel()
        try:
            async with asyncio.timeout(5):
                await self._release_oldest(len(self._idle))
                await self.pool.close()
        except TimeoutError:
            self.pool.terminate()

    async def _acquire(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            self._unused = min(self._unused, len(self._idle))
            if not connection.is_closed():
                return connection
            await self._release(connection)
        return await self.pool.acquire()

    def _release_idle(self) -> None:
        """Releases the connections that were not used since the last time, and sets the timer for the next."""
        task = self._loop.create_task(self._release_oldest(self._unused))
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)
        self._release_timer = self._loop.call_later(_IDLE_SECONDS, self._release_idle)

    async def _release_oldest(self, count: int) -> None:
        unused, self._idle = self._idle[:count], self._idle[count:]
        self._unused = len(self._idle)
        for connection in unused:
            await self._release(connection)

    async def _release(self, connection: Connection) -> None:
        """Returns a connection to the pool, which raises for a broken one after it has closed it."""
        with suppress(asyncpg.InternalClientError, asyncpg.InterfaceError, OSError):
            await self.pool.release(connection)
