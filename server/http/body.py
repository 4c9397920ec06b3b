"""Bodies: read in parts, with a limit, and no longer than a decent sender takes.

A small body is awaited before the call begins, so that a slow sender holds no place among the calls. The rest of a
large one is read inside of the call: by a caller who is known and allowed, within the deadline, and out of the budget
of large requests.
"""

import asyncio

from aiohttp import ClientPayloadError, web
from aiohttp.web_exceptions import HTTPException
from aiohttp.web_protocol import RequestPayloadError

from server.errors import Overloaded
from server.http.problems import (
    BAD_EXPECTATION,
    BROKEN_BODY,
    SLOW_BODY,
    UNSUPPORTED_ENCODING,
    UNSUPPORTED_MEDIA_TYPE,
    Problem,
    RequestInvalid,
    too_large,
)
from server.interceptors.body_budget import GrowingRoom
from server.requests.large import LARGE_BYTES

EARLY_BYTES = 64 * 1024  # that are read before the caller is known
_PAUSE_SECONDS = 10.0  # between two parts of a body, and for all that is read early
_SLOW_SECONDS = 0.1  # between two parts of a large body, from which on it counts as slow
MAX_SLOW = 16  # large bodies that are slow, at once: each holds a place among the calls


class SlowBodies:
    """Counts the large bodies that are slow, so that they do not take the places of all calls.

    Attributes:
        count: On their way now.
    """

    def __init__(self, limit: int = MAX_SLOW) -> None:
        self._limit = limit
        self.count = 0

    def begin(self) -> None:
        """Counts one in.

        Raises:
            Overloaded: As many as may be are on their way.
        """
        if self.count >= self._limit:
            raise Overloaded("slow request bodies", self._limit)
        self.count += 1

    def end(self) -> None:
        """Counts one out."""
        self.count -= 1


class Body:
    """The body of one request.

    Args:
        request: With the stream that brings it.
        limit: The most bytes, also after they have been decompressed.
    """

    __slots__ = ("_is_complete", "_limit", "_parts", "_request", "_size")

    def __init__(self, request: web.BaseRequest, limit: int) -> None:
        self._request = request
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self._is_complete = request.method != "POST" or not request.body_exists  # other bodies mean nothing

    def refusal(self, *, compressed: bool) -> Problem | None:
        """Returns the answer to a body that need not be read; ``compressed``: whether it may be."""
        if self._is_complete:
            return None
        headers = self._request.headers
        if not _is_json(headers.getall("Content-Type", ())):
            return UNSUPPORTED_MEDIA_TYPE
        if not compressed and headers.get("Content-Encoding", "identity").lower() != "identity":
            return UNSUPPORTED_ENCODING
        if headers.get("Expect", "100-continue").lower() != "100-continue":
            return BAD_EXPECTATION
        length = self._request.content_length
        return too_large(self._limit) if length is not None and length > self._limit else None

    async def read_early(self) -> None:
        """Reads what may be read before the caller is known.

        Raises:
            RequestInvalid: It is too large, too slow, or broken.
        """
        if self._is_complete:
            return
        length = self._request.content_length
        if length is not None and length > EARLY_BYTES:
            return  # the caller may wait for `100 Continue`
        if self._request.content.is_eof():
            await self._read_part()  # all of it is here
            return
        try:
            async with asyncio.timeout(_PAUSE_SECONDS):
                await self._continue()
                while not self._is_complete and self._size <= EARLY_BYTES:
                    await self._read_part()
        except TimeoutError:
            raise RequestInvalid(SLOW_BODY) from None

    async def read(self, room: GrowingRoom, slow: SlowBodies) -> bytes:
        """Returns the whole body, whose large part takes room in the budget.

        Raises:
            RequestInvalid: As `read_early`.
            Overloaded: There is no room, or too many bodies are slow.
        """
        if not self._is_complete and not self._size:
            await self._continue()
        if not await self._read_fast(room):
            slow.begin()
            try:
                await self._read_on(room, _PAUSE_SECONDS)
            except TimeoutError:
                raise RequestInvalid(SLOW_BODY) from None
            finally:
                slow.end()
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _read_fast(self, room: GrowingRoom) -> bool:
        """Reads as long as the sender does not pause; returns whether that was all."""
        try:
            await self._read_on(room, _SLOW_SECONDS)
        except TimeoutError:
            return False
        return True

    async def _read_on(self, room: GrowingRoom, seconds: float) -> None:
        """Reads to the end; raises TimeoutError when the sender pauses for so long."""
        self._count(room)
        while not self._is_complete:
            async with asyncio.timeout(seconds):
                await self._read_part()
            self._count(room)

    def _count(self, room: GrowingRoom) -> None:
        if self._size > LARGE_BYTES:
            room.grow(self._size - room.size)

    async def _continue(self) -> None:
        """Lets a caller send who waits for that (RFC 9110, section 10.1.1)."""
        if "Expect" in self._request.headers and self._request.version >= (1, 1):
            await self._request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._request.writer.output_size = 0

    async def _read_part(self) -> None:
        try:
            part = await self._request.content.readany()
        except (RequestPayloadError, ClientPayloadError, HTTPException):
            raise RequestInvalid(BROKEN_BODY) from None
        self._is_complete = not part or self._request.content.at_eof()
        self._size += len(part)
        if self._size > self._limit:
            self._parts.clear()
            raise RequestInvalid(too_large(self._limit))
        if part:
            self._parts.append(part)


def _is_json(content_types: tuple[str, ...] | list[str]) -> bool:
    if len(content_types) != 1:
        return False
    kind, _, parameters = content_types[0].partition(";")
    charset = parameters.replace(" ", "").replace('"', "").lower()
    return kind.strip().lower() == "application/json" and charset in {"", "charset=utf-8"}
