"""How far a watch has come."""

import struct
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

LAST_PLACE = 2**63 - 1  # in a version: all of its changes have been told
UNKNOWN = bytes(4)
_FORMAT = struct.Struct(">qqqq4s")


@dataclass(frozen=True, slots=True)
class Position:
    """Everything up to here has been told.

    Attributes:
        version: Of the conversation; deletions up to it are told.
        place: Within that version, the sequence up to which deletions are told; `LAST_PLACE` for all.
        sequence: Items up to it are told.
        revision: Of metadata and attributes; 0 if they were never told.
        anchor: A digest of the id of the item at `sequence`; `UNKNOWN` without one.
    """

    version: int
    place: int
    sequence: int
    revision: int
    anchor: bytes = UNKNOWN

    def pack(self) -> bytes:
        """Returns it as bytes."""
        return _FORMAT.pack(self.version, self.place, self.sequence, self.revision, self.anchor)

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """Returns what `pack` packed."""
        return cls(*_FORMAT.unpack(packed))


def anchor_of(item_id: str | None) -> bytes:
    """Returns the digest of an item's id; `UNKNOWN` for None."""
    return blake2b(item_id.encode(), digest_size=4).digest() if item_id else UNKNOWN
