"""The items of one write, as parallel arrays, and the INSERT that places them."""

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
    """Items to append, in order; where ``references`` has one, the rest of that row is empty."""

    item_ids: Sequence[str]
    types: Sequence[str]
    roles: Sequence[str]
    statuses: Sequence[str]
    bodies: Sequence[bytes]
    references: Sequence[Reference | None]

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def refers(self) -> bool:
        """Whether an item is a reference."""
        return any(self.references)

    @property
    def all_ids(self) -> list[str]:
        """The ids the items will have, those of references included."""
        return [ref.item_id if ref else own for own, ref in zip(self.item_ids, self.references, strict=True)]

    def values(self, now: datetime) -> dict[str, Any]:
        """The parameters of `placed`."""
        values: dict[str, Any] = {
            "item_ids": self.item_ids,
            "types": self.types,
            "roles": self.roles,
            "statuses": self.statuses,
            "bodies": self.bodies,
            "now": now,
        }
        if self.refers:
            values["reference_conversations"] = [ref.conversation_id if ref else "" for ref in self.references]
            values["reference_items"] = [ref.item_id if ref else "" for ref in self.references]
        return values
