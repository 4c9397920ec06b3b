"""What the benchmark measures: a service that keeps conversations, whatever its protocol."""

from collections.abc import Sequence
from typing import Protocol


class PeerUnavailable(Exception):
    """A peer cannot run here; the text says what is missing. The run goes on without it."""


class Target(Protocol):
    """A running service with a database of its own, called as its users would call it.

    Every call may run many times at once. A call that fails raises: a figure
    never counts an operation that was not done.
    """

    @property
    def name(self) -> str:
        """The row of the tables."""

    @property
    def pid(self) -> int:
        """The root of its processes: all of its family's CPU time and memory are the service's."""

    async def create(self) -> str:
        """The id of a new, empty conversation."""

    async def append(self, conversation: str, count: int) -> Sequence[str] | None:
        """Adds ``count`` items, 1 to 20, in one call; their ids in order, or None when the service gives none."""

    async def newest(self, conversation: str) -> int:
        """Reads the 20 newest items; how many came."""

    async def page(self, conversation: str) -> int:
        """Reads all items, oldest first, 100 a page; how many came."""

    async def get(self, conversation: str) -> None:
        """Reads the conversation without its items."""

    async def delete(self, conversation: str) -> None:
        """Deletes the conversation."""

    async def sequence_ids(self, conversation: str) -> list[tuple[int, str]] | None:
        """Position, from 1, and id of every item in the order the service gives; None when it gives no order."""
