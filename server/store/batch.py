"""The items of one write."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Reference:
    """An item of another conversation that is to be copied."""

    conversation_id: str
    item_id: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Items to store, in order, as a sequence for each column.

    Attributes:
        bodies: Each a serialized ``conversations.v1.Item`` without its sequence.
        references: None for an item that was sent; the other columns of a reference are empty.
        create_times: Of the items, if some of them were references and have been read; else empty.
        authors: Likewise.
    """

    item_ids: Sequence[str]
    types: Sequence[str]
    roles: Sequence[str]
    statuses: Sequence[str]
    bodies: Sequence[bytes]
    references: Sequence[Reference | None]
    create_times: Sequence[datetime] = ()
    authors: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def has_references(self) -> bool:
        """Whether an item is a reference."""
        return any(self.references)

    @property
    def all_ids(self) -> list[str]:
        """The ids that the items will have, references included."""
        return [ref.item_id if ref else own for own, ref in zip(self.item_ids, self.references, strict=True)]

    def values(self, now: datetime, author: str) -> dict[str, Any]:
        """The parameters of `sent_rows`; with references of `resolved_rows`, with what they refer to of `copied_rows`.

        Args:
            now: The create_time of items that are not references.
            author: The principal that appends them.
        """
        values: dict[str, Any] = {
            "item_ids": self.item_ids,
            "types": self.types,
            "roles": self.roles,
            "statuses": self.statuses,
            "bodies": self.bodies,
            "now": now,
            "author": author,
            "create_times": self.create_times,
            "authors": self.authors,
        }
        if self.has_references:
            values["reference_conversations"] = [ref.conversation_id if ref else "" for ref in self.references]
            values["reference_items"] = [ref.item_id if ref else "" for ref in self.references]
        return values


EMPTY_BATCH = Batch((), (), (), (), (), ())
