"""Asks whether the database can be used, on a connection of its own.

A probe neither queues behind the calls nor takes a connection from them. It fails when the database does not answer in
time, takes no writes, or, when a statement has failed for a full disk, cannot write to its disk.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import asyncpg

from server.store.connection.failures import DRIVER_ERRORS, find_rule

Connect: TypeAlias = Callable[..., Awaitable[asyncpg.Connection]]

_TRIES = 3  # of a question whose connection is ended under it
_PAUSE_SECONDS = 0.02
_SHARE_OF_KEPT = 0.4  # of the time, for the connection of the last time; the rest is left for a new one
_TAKES_WRITES = "SELECT NOT (pg_is_in_recovery() OR current_setting('transaction_read_only')::bool)"
# A sort that does not fit in its memory writes a temporary file, in the default tablespace of the database. Nothing is
# left behind, and no right is needed. One text is one transaction, to which the setting is limited.
_WRITES_TO_DISK = "SET LOCAL work_mem = '64kB'; SELECT count(*) FROM generate_series(1, 50000)"


class Probe:
    """Asks the database, each time within a limit of time.

    Args:
        connect: Makes a connection that takes writes; called with ``timeout`` in seconds.
        seconds: The limit for one question, a new connection included.
    """

    def __init__(self, connect: Connect, seconds: float) -> None:
        self._connect = connect
        self._seconds = seconds
        self._connection: asyncpg.Connection | None = None
        self._lock = asyncio.Lock()  # one question at a time

    async def ask(self, *, disk: bool) -> bool:
        """Asks once, over the connection of the last time if it still works, else over a new one.

        Args:
            disk: Whether the database has to write to its disk, too.

        Returns:
            Whether the connection of the last time had to be replaced.

        Raises:
            asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError: Why it cannot be used;
                TimeoutError when it did not answer in time.
        """
        async with asyncio.timeout(self._seconds), self._lock:
            if self._connection is not None and await self._still_works(disk=disk):
                return False
            replaced = self._connection is not None
            await self._ask_anew(disk=disk)
            return replaced

    async def _ask_anew(self, *, disk: bool) -> None:
        """Asks over a new connection; a server that ends single connections is asked again, because it answers."""
        for attempt in range(1, _TRIES + 1):
            self.close()
            try:
                self._connection = await self._connect(timeout=self._seconds)
                if await _takes_writes(self._connection, disk=disk):
                    return
                raise asyncpg.ReadOnlySQLTransactionError
            except DRIVER_ERRORS as error:
                rule = find_rule(error)
                if attempt == _TRIES or rule is None or not rule.retry:
                    raise
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _still_works(self, *, disk: bool) -> bool:
        """Whether the connection of the last time takes writes; another one may, even if this one does not answer."""
        try:
            async with asyncio.timeout(self._seconds * _SHARE_OF_KEPT):
                return await _takes_writes(self._connection, disk=disk)
        except DRIVER_ERRORS:
            return False

    def close(self) -> None:
        """Ends the connection, if there is one."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


async def _takes_writes(connection: Any, *, disk: bool) -> bool:
    if disk:
        await connection.execute(_WRITES_TO_DISK)
    return bool((await connection.fetch(_TAKES_WRITES))[0][0])
