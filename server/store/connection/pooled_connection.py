"""The connections of a database: those of its pool, and the one that probes it."""

from contextlib import suppress
from typing import Any

import asyncpg

from server.store.connection.failures import DRIVER_ERRORS


class PooledConnection(asyncpg.Connection):  # type: ignore[misc] # has no types
    """A connection whose end raises nothing when the server is gone.

    asyncpg's pool closes expired connections in tasks that nobody awaits. If PostgreSQL was killed, such a task failed
    with BrokenPipeError, which asyncio logged as an error.
    """

    async def close(self, **options: Any) -> None:
        """Closes it, as far as the server still answers; asyncpg frees the socket even if that fails."""
        with suppress(*DRIVER_ERRORS):
            await super().close(**options)
