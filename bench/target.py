"""The interface of what the benchmark measures: a service that stores conversations, whatever its protocol."""

from collections.abc import Sequence
from typing import Protocol


class PeerUnavailable(Exception):
    """A peer cannot run here; the text says what is missing. The run continues without it."""


class Target(Protocol):
    """A running service with a database of its own, called as its users would call it.

    Every method may run many times concurrently. A call that fails raises, so that
    figures never count an operation that was not done.
    """

    @property
    def name(self) -> str:
        """The name in the tables."""

    @property
    def pid(self) -> int:
        """The root process; the CPU time and memory of its descendants belong to the service."""

    async def create(self) -> str:
        """Creates an empty conversation and returns its id."""

    async def append(self, conversation: str, count: int) -> Sequence[str] | None:
        """Appends ``count`` items, 1 to 20, in one call; returns their ids in order, or None if there are none."""

    async def newest(self, conversation: str) -> int:
        """Reads the 20 newest items and returns their number."""

    async def page(self, conversation: str) -> int:
        """Reads all items, oldest first, 100 a page, and returns their number."""

    async def get(self, conversation: str) -> None:
        """Reads the conversation without its items."""

    async def delete(self, conversation: str) -> None:
        """Deletes the conversation."""

    async def sequence_ids(self, conversation: str) -> list[tuple[int, str]] | None:
        """Position, from 1, and id of every item in the order of the service; None if the service has no order."""
