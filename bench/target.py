"""The interface of what the benchmark measures: a service that stores conversations, whatever its protocol."""

from collections.abc import Collection, Mapping, Sequence
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

    @property
    def peer(self) -> bool:
        """Whether it is a service of another project."""

    @property
    def lacks(self) -> Collection[str]:
        """The names of the methods below that the service does not offer; workloads that need them leave it out."""

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

    async def get_item(self, conversation: str, item: str) -> None:
        """Reads one item."""

    async def get_items(self, conversation: str, items: Sequence[str]) -> int:
        """Reads the items in one call and returns how many were found."""

    async def check_access(self, conversation: str) -> bool:
        """Asks in one call whether the caller may read, change and delete the conversation and append items."""

    async def update(self, conversation: str, metadata: Mapping[str, str]) -> None:
        """Replaces the metadata of the conversation."""

    async def delete(self, conversation: str) -> None:
        """Deletes the conversation."""

    async def delete_item(self, conversation: str, item: str) -> None:
        """Deletes one item."""

    async def sequence_ids(self, conversation: str) -> list[tuple[int, str]] | None:
        """Position, from 1, and id of every item in the order of the service; None if the service has no order."""
