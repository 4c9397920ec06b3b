"""Connections that are lost at a certain statement."""

from typing import Any

import asyncpg


class Killed(ConnectionError):
    """The connection was lost."""


class FailingConnection:
    """A connection that is lost at its n-th statement, before or behind it.

    Attributes:
        statements: How many have run.
    """

    def __init__(self, connection: asyncpg.Connection, number: int, *, behind: bool) -> None:
        self._connection = connection
        self._number = number
        self._behind = behind
        self.statements = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._connection, name)
        if name not in ("execute", "fetch", "fetchrow", "fetchval"):
            return method

        async def run(*arguments: Any) -> Any:
            self.statements += 1
            if self.statements == self._number and not self._behind:
                raise Killed
            result = await method(*arguments)
            if self.statements == self._number:
                raise Killed
            return result

        return run
