"""Body budget: how many bytes of large requests are in memory at once, in all and of one connection.

A large request takes about eight times its size while it is parsed, validated and written. The budget holds what
has been received; a request that is still on its way is limited by `SlowReads` (docs/adr/0026).
"""

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from server.errors import Overloaded


class BodyBudget:
    """Counts the bytes of large requests from their arrival to the end of their calls."""

    def __init__(self, limit: int, limit_per_connection: int) -> None:
        self._limit = limit
        self._limit_per_connection = limit_per_connection
        self._per_connection: Counter[Hashable] = Counter()
        self.bytes = 0

    @contextmanager
    def room_for(self, connection: Hashable, size: int) -> Iterator[bool]:
        """Counts a request of ``size`` bytes while this is open; yields False, and counts nothing, without room."""
        if not self._has_room(connection, size):
            yield False
            return
        self._count(connection, size)
        try:
            yield True
        finally:
            self._count(connection, -size)

    @contextmanager
    def growing_room(self, owner: Hashable) -> Iterator["GrowingRoom"]:
        """Counts what a request takes while this is open: it arrives in parts, so that its size is not known before.

        ``owner`` has what `room_for` gives to a connection.
        """
        room = GrowingRoom(self, owner)
        try:
            yield room
        finally:
            if room.size:
                self._count(owner, -room.size)

    def take(self, owner: Hashable, size: int) -> None:
        """Counts ``size`` more bytes.

        Raises:
            Overloaded: There is no room for them.
        """
        if not self._has_room(owner, size):
            raise self.no_room()
        self._count(owner, size)

    def no_room(self) -> Overloaded:
        """Returns the error of a request that there is no room for."""
        return Overloaded("bytes of large requests", self._limit)

    def _has_room(self, connection: Hashable, size: int) -> bool:
        taken = self._per_connection.get(connection, 0)
        return self.bytes + size <= self._limit and taken + size <= self._limit_per_connection

    def _count(self, connection: Hashable, size: int) -> None:
        self.bytes += size
        self._per_connection[connection] += size
        if not self._per_connection[connection]:
            del self._per_connection[connection]


class GrowingRoom:
    """What one request has taken of a budget so far.

    Attributes:
        size: Bytes.
    """

    __slots__ = ("_budget", "_owner", "size")

    def __init__(self, budget: BodyBudget, owner: Hashable) -> None:
        self._budget = budget
        self._owner = owner
        self.size = 0

    def grow(self, size: int) -> None:
        """Takes ``size`` more bytes; raises `Overloaded` as `BodyBudget.take`."""
        self._budget.take(self._owner, size)
        self.size += size
