"""Page tokens: positions in a list, signed and bound to their query.

A token is a position, never a permission: the access policy is applied again
on every page. It is base64url of version, 16 bytes of HMAC-SHA256 and the
position; the HMAC covers the query as well, so that a token of another method,
caller, filter or order is refused (traps §5.12).
"""

import hmac
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain

from server.errors import PageTokenInvalid

DEFAULT_PAGE_SIZE = 20
MAX_PAGE_SIZE = 100
_VERSION = b"\x01"
_MAC_SIZE = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def page_size(asked: int) -> int:
    """The size to use: 0 is the default, more than the maximum is lowered (AIP-158)."""
    return min(asked or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


class PageTokens:
    """Signs and reads page tokens.

    Args:
        keys: Secrets of at least 32 bytes. The first signs, all of them verify,
            so that keys can be rotated.
    """

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self._keys = keys

    def use(self, keys: Sequence[bytes]) -> None:
        """Replaces the keys: they are in the database, which may come later than the server."""
        self._keys = keys

    def sign(self, position: bytes, *query: str) -> str:
        """A token for ``position`` in the list that ``query`` describes."""
        mac = _mac(self._keys[0], position, query)
        return _encoded(_VERSION + mac + position)

    def read(self, token: str, *query: str) -> bytes:
        """The position ``token`` stands for.

        Raises:
            PageTokenInvalid: Not signed here, or for another query.
        """
        raw = _decoded(token)
        version, mac, position = raw[:1], raw[1 : 1 + _MAC_SIZE], raw[1 + _MAC_SIZE :]
        good = [hmac.compare_digest(mac, _mac(key, position, query)) for key in self._keys]
        if version != _VERSION or not any(good):
            raise PageTokenInvalid
        return position


def _decoded(token: str) -> bytes:
    """The bytes of ``token``; Python's decoder skips what is not base64, so the way back must give the same."""
    try:
        raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (NotBase64, ValueError):
        raise PageTokenInvalid from None
    if _encoded(raw) != token:
        raise PageTokenInvalid
    return raw


def _encoded(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _mac(key: bytes, position: bytes, query: tuple[str, ...]) -> bytes:
    parts = chain((position,), (part.encode() for part in query))
    text = b"".join(struct.pack(">I", len(part)) + part for part in parts)
    return hmac.digest(key, text, "sha256")[:_MAC_SIZE]


def pack_sequence(sequence: int) -> bytes:
    """A position in a list of items."""
    return struct.pack(">q", sequence)


def unpack_sequence(position: bytes) -> int:
    """The sequence that `pack_sequence` packed."""
    sequence: int
    (sequence,) = struct.unpack(">q", position)
    return sequence


def pack_time(time: datetime, identifier: str) -> bytes:
    """A position in a list of conversations: microseconds, then the id."""
    return struct.pack(">q", (time - _EPOCH) // timedelta(microseconds=1)) + identifier.encode()


def unpack_time(position: bytes) -> tuple[datetime, str]:
    """The time and id that `pack_time` packed."""
    (microseconds,) = struct.unpack(">q", position[:8])
    return _EPOCH + timedelta(microseconds=microseconds), position[8:].decode()
