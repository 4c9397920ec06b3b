"""Connections of the pool, kept between statements.

Taking a connection from asyncpg's pool and giving it back costs more than a
short statement does (ADR 10). So one that has run a statement stays taken and
runs the next; the pool still makes, replaces and closes them.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

import asyncpg

Connection: TypeAlias = Any  # an asyncpg.pool.PoolConnectionProxy, which is not typed
Result = TypeVar("Result")

_IDLE_SECONDS = 30.0  # unused for so long, a connection goes back to the pool


class WarmConnections:
    """Runs statements on connections that no other call uses at the time.

    The caller bounds how many run at once; the pool has as many connections.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool
        self._idle: list[Connection] = []  # the last one was used last
        self._unused = 0  # how many of `_idle` nobody needed since the last look
        self._loop = asyncio.get_running_loop()
        self._release_timer = self._loop.call_later(_IDLE_SECONDS, self._release_idle)
        self._returning: set[asyncio.Task[None]] = set()

    @property
    def in_use(self) -> int:
        """How many connections run a statement now."""
        return int(self.pool.get_size() - self.pool.get_idle_size()) - len(self._idle)

    async def run(self, work: Callable[[Connection], Awaitable[Result]]) -> Result:
        """What ``work`` makes of a connection; after an error the pool decides what becomes of that."""
        connection = await self._acquire()
        try:
            result = await work(connection)
        except BaseException:
            await self._release(connection)
            raise
        self._idle.append(connection)
        return result

    async def renew(self) -> None:
        """Makes the pool replace all connections: where one was lost, others are whose end has not shown yet."""
        await self._release_oldest(len(self._idle))
        await self.pool.expire_connections()

    async def close(self) -> None:
        """Closes the pool; statements still running get a few seconds."""
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
        """Returns what nobody needed, now and then."""
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
        """Back to the pool, which ends one that is broken, and says so."""
        with suppress(asyncpg.InternalClientError, asyncpg.InterfaceError, OSError):
            await self.pool.release(connection)
