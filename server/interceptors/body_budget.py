"""Body budget: how many bytes of large requests are in memory at once, in all and of one connection.

A large request takes about eight times its size while it is parsed, validated and written. The budget holds what
has been received; a request that is still on its way is limited by `SlowReads` (docs/adr/0026).
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import Overloaded


class BodyBudget:
    """Counts the bytes of large requests from their arrival to the end of their calls."""

    def __init__(self, limit: int, limit_per_connection: int) -> None:
        self._limit = limit
        self._limit_per_connection = limit_per_connection
        self._per_connection: Counter[str] = Counter()
        self.bytes = 0

    @contextmanager
    def room_for(self, connection: str, size: int) -> Iterator[bool]:
        """Counts a request of ``size`` bytes while this is open; yields False, and counts nothing, without room."""
        taken = self._per_connection[connection]
        if self.bytes + size > self._limit or taken + size > self._limit_per_connection:
            yield False
            return
        self._count(connection, size)
        try:
            yield True
        finally:
            self._count(connection, -size)

    def no_room(self) -> Overloaded:
        """Returns the error of a request that there is no room for."""
        return Overloaded("bytes of large requests", self._limit)

    def _count(self, connection: str, size: int) -> None:
        self.bytes += size
        self._per_connection[connection] += size
        if not self._per_connection[connection]:
            del self._per_connection[connection]
