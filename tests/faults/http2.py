"""HTTP/2 by hand, as far as attacks need it: what a library would refuse to send (RFC 9113, RFC 7541)."""

import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from enum import IntEnum, IntFlag

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_FRAME = 16_384  # bytes of a payload, unless the peer says otherwise
_HEADER = struct.Struct(">BHBBL")  # length in 8 and 16 bits, type, flags, stream


class Kind(IntEnum):
    """Types of frames."""

    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Flag(IntFlag):
    """Flags of frames."""

    NONE = 0
    END_STREAM = 1  # DATA, HEADERS
    ACK = 1  # SETTINGS, PING
    END_HEADERS = 4


class Setting(IntEnum):
    """Names of settings."""

    HEADER_TABLE_SIZE = 1
    INITIAL_WINDOW_SIZE = 4


def frame(kind: Kind, stream: int = 0, payload: bytes | memoryview = b"", flags: int = 0) -> bytes:
    """One frame."""
    size = len(payload)
    return _HEADER.pack(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def settings(**values: int) -> bytes:
    """A SETTINGS frame."""
    return frame(Kind.SETTINGS, payload=b"".join(struct.pack(">HL", Setting[name], v) for name, v in values.items()))


def headers(fields: Iterable[tuple[str, str]]) -> bytes:
    """A header block: literals without indexing and without Huffman."""
    return b"".join(b"\x00" + _string(name.encode()) + _string(value.encode()) for name, value in fields)


def _string(value: bytes) -> bytes:
    return _integer(len(value), 7) + value


def _integer(number: int, bits: int) -> bytes:
    most = (1 << bits) - 1
    if number < most:
        return bytes([number])
    digits, number = bytearray([most]), number - most
    while number >= 0x80:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def request_headers(method: str, token: str = "", timeout: str = "", **more: str) -> bytes:
    """The header block of a gRPC call; ``method`` as `/package.Service/Method`."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ]
    if timeout:
        fields.append(("grpc-timeout", timeout))
    if token:
        fields.append(("authorization", f"Bearer {token}"))
    return headers([*fields, *((name.replace("_", "-"), value) for name, value in more.items())])


def message(body: bytes, *, compressed: bool = False) -> bytes:
    """A gRPC message."""
    return struct.pack(">BL", compressed, len(body)) + body


def call(stream: int, block: bytes, body: bytes) -> bytes:
    """All frames of a unary call."""
    data = message(body)
    pieces = [data[at : at + MAX_FRAME] for at in range(0, len(data), MAX_FRAME)] or [b""]
    frames = [frame(Kind.HEADERS, stream, block, Flag.END_HEADERS)]
    frames += [frame(Kind.DATA, stream, piece) for piece in pieces[:-1]]
    return b"".join((*frames, frame(Kind.DATA, stream, pieces[-1], Flag.END_STREAM)))


class Frames:
    """Takes bytes apart as they come."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
        """Kind, flags, stream and payload of each frame that is complete."""
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= 9:
            high, low, kind, flags, stream = _HEADER.unpack_from(self._buffer, at)
            size = (high << 16) + low
            if len(self._buffer) - at < 9 + size:
                break
            yield kind, flags, stream & 0x7FFFFFFF, bytes(self._buffer[at + 9 : at + 9 + size])
            at += 9 + size
        del self._buffer[:at]


class FlowControl:
    """How much of DATA may be sent on a connection and on each of its streams (RFC 9113, section 5.2)."""

    def __init__(self) -> None:
        self._initial = self._connection = 65_535
        self._streams: Counter[int] = Counter()  # beside the initial window

    def update(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """Takes what a frame of the peer says of windows."""
        if kind == Kind.WINDOW_UPDATE:
            more = int.from_bytes(payload) & 0x7FFFFFFF
            if stream:
                self._streams[stream] += more
            else:
                self._connection += more
        elif kind == Kind.SETTINGS and not flags & Flag.ACK:
            named = dict(struct.iter_unpack(">HL", payload))
            self._initial = named.get(Setting.INITIAL_WINDOW_SIZE, self._initial)

    def take(self, stream: int, size: int) -> int:
        """Takes the room for up to ``size`` bytes in one frame; how many."""
        room = max(0, min(size, MAX_FRAME, self._connection, self._initial + self._streams[stream]))
        self._connection -= room
        self._streams[stream] -= room
        return room


def grpc_status(block: bytes) -> int | None:
    """The value of `grpc-status` in a header block that does not use the dynamic table; None without it."""
    at = block.find(b"grpc-status")
    if at < 0:
        return None
    at += len(b"grpc-status")
    size = block[at]
    return int(block[at + 1 : at + 1 + size])
