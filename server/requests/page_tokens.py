"""Page tokens: signed positions in a list (AIP-158).

A token is a position and not a permission: the access policy applies again on
every page. It is the base64url of a version byte, 16 bytes of HMAC-SHA256 and the
position. The HMAC covers the query as well, so that a token of another method,
caller, filter or order is refused.
"""

import hmac
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain

from server.errors import PageTokenInvalid, ResumeTokenInvalid

DEFAULT_PAGE_SIZE = 20
MAX_PAGE_SIZE = 100
_VERSION = b"\x01"
_MAC_SIZE = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def page_size(requested: int) -> int:
    """Returns the page size to use: for 0 the default, and never more than the maximum (AIP-158)."""
    return min(requested or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


class PageTokens:
    """Signs and verifies page tokens, and the resume tokens of streams.

    Args:
        keys: Secrets of 32 bytes or more. The first signs and all of them verify, so
            that keys can be rotated.
    """

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self._keys = keys

    def set_keys(self, keys: Sequence[bytes]) -> None:
        """Replaces the keys: they are in the database, which may be reached after the start."""
        self._keys = keys

    def sign(self, position: bytes, *query: str) -> str:
        """Returns a token for ``position`` in the list that ``query`` names: method, caller, filter and order."""
        mac = _mac(self._keys[0], position, query)
        return _encode(_VERSION + mac + position)

    def verify(self, token: str, *query: str) -> bytes:
        """Returns the position in ``token``.

        Raises:
            PageTokenInvalid: It is malformed, or not signed by these keys for this query.
        """
        raw = _decode(token)
        version, mac, position = raw[:1], raw[1 : 1 + _MAC_SIZE], raw[1 + _MAC_SIZE :]
        good = [hmac.compare_digest(mac, _mac(key, position, query)) for key in self._keys]
        if version != _VERSION or not any(good):
            raise PageTokenInvalid
        return position

    def verify_resume(self, token: str, *query: str) -> bytes:
        """Returns the position in a token that a stream goes on behind.

        Raises:
            ResumeTokenInvalid: It is malformed, or not signed by these keys for this query.
        """
        try:
            return self.verify(token, *query)
        except PageTokenInvalid:
            raise ResumeTokenInvalid from None


def _decode(token: str) -> bytes:
    """Returns the bytes of ``token``. The decoder skips other characters: encoding must give ``token`` again."""
    try:
        raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (NotBase64, ValueError):
        raise PageTokenInvalid from None
    if _encode(raw) != token:
        raise PageTokenInvalid
    return raw


def _encode(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _mac(key: bytes, position: bytes, query: tuple[str, ...]) -> bytes:
    parts = chain((position,), (part.encode() for part in query))
    text = b"".join(struct.pack(">I", len(part)) + part for part in parts)
    return hmac.digest(key, text, "sha256")[:_MAC_SIZE]


def pack_sequence(sequence: int) -> bytes:
    """Returns the position of the item with this sequence in a list of items."""
    return struct.pack(">q", sequence)


def unpack_sequence(position: bytes) -> int:
    """Returns what `pack_sequence` packed."""
    sequence: int
    (sequence,) = struct.unpack(">q", position)
    return sequence


def pack_time(time: datetime, identifier: str) -> bytes:
    """Returns the position of a conversation in a list: its creation in microseconds since 1970, then its id."""
    return struct.pack(">q", (time - _EPOCH) // timedelta(microseconds=1)) + identifier.encode()


def unpack_time(position: bytes) -> tuple[datetime, str]:
    """Returns what `pack_time` packed."""
    (microseconds,) = struct.unpack(">q", position[:8])
    return _EPOCH + timedelta(microseconds=microseconds), position[8:].decode()
