"""How far a watch of all conversations has come in the log of changes."""

import struct
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

WHOLE = 2**63 - 1  # a place behind all items of a change
DIGEST_BYTES = 8
_FORMAT = struct.Struct(f">qqqq{DIGEST_BYTES}s")


class ChangeKey(NamedTuple):
    """The primary key of a change; changes are told in the order of their keys."""

    position: int
    conversation_id: str
    version: int


NO_CHANGE = ChangeKey(0, "", 0)


@dataclass(frozen=True, slots=True)
class LogPosition:
    """Everything up to here has been told.

    Attributes:
        horizon: A position: all changes below it have been told.
        last: The last change that was told, which may be beyond it; `NO_CHANGE` for none.
        place: Items of `last` up to this sequence are told; `WHOLE` for all.
        scanned: All changes up to this one have been looked at. It is in no token: it can be one that the caller may
            not know of.
    """

    horizon: int
    last: ChangeKey = NO_CHANGE
    place: int = WHOLE
    scanned: ChangeKey = NO_CHANGE

    @property
    def start(self) -> ChangeKey:
        """The key behind which to go on reading; just before that of `last` if not all of its items are told."""
        if self.place != WHOLE:
            return self.last._replace(version=self.last.version - 1)
        return max(self.last, self.scanned, ChangeKey(self.horizon, "", 0))

    def pack(self, plan: bytes) -> bytes:
        """Returns it as bytes, with the digest of a plan."""
        position, conversation_id, version = self.last
        fixed = _FORMAT.pack(self.horizon, position, version, self.place, plan)
        return fixed + conversation_id.encode()

    @classmethod
    def unpack(cls, packed: bytes) -> tuple[Self, bytes]:
        """Returns what `pack` packed."""
        horizon, position, version, place, plan = _FORMAT.unpack_from(packed)
        return cls(horizon, ChangeKey(position, packed[_FORMAT.size :].decode(), version), place), plan

    def told(self, change: ChangeKey, place: int = WHOLE) -> Self:
        """Returns the position behind ``change``, or behind its items up to ``place``."""
        return replace(self, last=change, place=place)
