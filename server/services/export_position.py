"""How far an export has come."""

import struct
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from server.requests.page_tokens import pack_time, unpack_time

_FORMAT = struct.Struct(">qqqq32s16s")
_COMPLETE = -1


@dataclass(frozen=True, slots=True)
class ExportPosition:
    """Everything up to here has been sent.

    Attributes:
        create_time: Of the conversation.
        conversation_id: The last one of which something was sent.
        version: Of the conversation when its head was read; -1 once its end was sent.
        last: Its last sequence then.
        sequence: Of the last item that was sent; 0 for none.
        count: How many items were sent.
        digest: Of head and items so far (`server.store.checksum`).
        view: Of `Reader.view`, when the head was read.
    """

    create_time: datetime
    conversation_id: str
    version: int = _COMPLETE
    last: int = 0
    sequence: int = 0
    count: int = 0
    digest: bytes = b""
    view: bytes = b""

    @property
    def is_complete(self) -> bool:
        """Whether the end of the conversation was sent."""
        return self.version == _COMPLETE

    def pack(self) -> bytes:
        """Returns it as bytes."""
        numbers = (self.version, self.last, self.sequence, self.count)
        return _FORMAT.pack(*numbers, self.digest, self.view) + pack_time(self.create_time, self.conversation_id)

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """Returns what `pack` packed."""
        place = unpack_time(packed[_FORMAT.size :])
        return cls(*place, *_FORMAT.unpack(packed[: _FORMAT.size]))
