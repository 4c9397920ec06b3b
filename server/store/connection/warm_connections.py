"""Warm connections: acquired from asyncpg's pool and kept between statements.

Acquiring a connection from the pool and releasing it costs more than a short statement does (ADR 13). So a connection
that has run a statement stays acquired and runs the next one. The pool still makes, replaces and closes connections.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

import asyncpg

from server.store.connection.failures import DRIVER_ERRORS, ConnectFailed

Connection: TypeAlias = Any  # an asyncpg.pool.PoolConnectionProxy, which is not typed
Result = TypeVar("Result")

_RELEASE_SECONDS = 0.2  # for a statement that was cancelled to end; its connection is closed then
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

    @property
    def in_use(self) -> int:
        """How many connections run a statement now."""
        return int(self.pool.get_size() - self.pool.get_idle_size()) - len(self._idle)

    @property
    def has_idle(self) -> bool:
        """Whether a statement could run without a new connection from the pool."""
        return bool(self._idle)

    async def run(self, work: Callable[[Connection], Awaitable[Result]]) -> Result:
        """Returns what ``work`` returns for a connection; after an error that connection is released to the pool.

        Raises:
            ConnectFailed: There is no connection to work with.
            Exception: What ``work`` raises.
        """
        try:
            connection = await self._acquire()
        except DRIVER_ERRORS as error:
            raise ConnectFailed from error
        try:
            result = await work(connection)
        except TimeoutError:  # the server, which limits statements too, does not answer: nor would it a cancellation
            connection.terminate()
            raise
        except AttributeError as error:
            was_open = _is_open(connection)
            await self._release(connection)
            if was_open:
                raise
            # It was terminated just before asyncpg took its protocol, which is None then.
            raise asyncpg.InterfaceError("the connection was terminated") from error
        except BaseException:
            await self._release(connection)
            raise
        self._idle.append(connection)
        return result

    async def renew(self) -> None:
        """Replaces all connections: idle ones now, the others when their statement has ended."""
        await self.pool.expire_connections()
        idle, self._idle, self._unused = self._idle, [], 0
        for connection in idle:
            with suppress(asyncpg.InterfaceError):  # it was terminated before, and its proxy with it
                connection.terminate()

    async def release_unused(self) -> None:
        """Releases, twice a minute until it is cancelled, the connections that were not used in between."""
        while True:
            await asyncio.sleep(_IDLE_SECONDS)
            await self._release_oldest(self._unused)

    async def close(self) -> None:
        """Closes the pool; statements that still run get five seconds."""
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
            if _is_open(connection):
                return connection
            await self._release(connection)
        return await self.pool.acquire()

    async def _release_oldest(self, count: int) -> None:
        self._unused = len(self._idle) - count
        for _ in range(count):
            if not self._idle:  # statements took the rest while one was released
                return
            await self._release(self._idle.pop(0))

    async def _release(self, connection: Connection) -> None:
        """Returns a connection to the pool, which raises for a broken one after it has closed it."""
        with suppress(*DRIVER_ERRORS):
            release = asyncio.ensure_future(self.pool.release(connection, timeout=_RELEASE_SECONDS))
            release.add_done_callback(_retrieve_error)  # a caller may be cancelled once more while it waits here
            await asyncio.shield(release)


def _retrieve_error(release: "asyncio.Future[None]") -> None:
    """Keeps asyncio from logging that nobody has asked for it."""
    if not release.cancelled():
        release.exception()


def _is_open(connection: Connection) -> bool:
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:  # it was terminated, and its proxy with it
        return False
