"""When and where a stream that has ended is opened again."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

import grpc.aio
from google.protobuf.message import Message
from grpc import StatusCode

from conversations_client.errors import details_of

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # seconds

Renew = Callable[[], Awaitable[None]]

_Request = TypeVar("_Request", bound=Message)


def behind(token: str, request: _Request) -> _Request:
    """The request that begins behind a token; without one ``request`` itself."""
    if not token:
        return request
    resumed = type(request)()
    resumed.CopyFrom(request)
    resumed.resume_token = token  # type: ignore[attr-defined]
    return resumed


class Recovery:
    """Returns when a stream that has ended may be opened again.

    Args:
        renew: Gets new credentials for the next stream.
        transient: What a stream may end with that another one need not.
    """

    def __init__(self, renew: Renew | None, transient: Collection[StatusCode]) -> None:
        self._transient = transient
        self._renew = renew
        self._has_renewed = False
        self._has_message = False
        self._pause = _FIRST_PAUSE

    def note_message(self) -> None:
        """The server answers: whatever failed before has passed."""
        self._has_renewed, self._has_message, self._pause = False, True, _FIRST_PAUSE

    async def after_end(self) -> None:
        """At once, unless streams end before they have brought anything."""
        if not self._has_message:
            await self._wait()
        self._has_message = False

    async def after_loss(self) -> None:
        """When nobody knows how the stream ended."""
        await self._wait()

    async def after_error(self, error: grpc.aio.AioRpcError) -> None:
        """Raises ``error`` if it is final, and if new credentials were refused too."""
        if error.code() in self._transient:
            delay = details_of(error).retry_delay
            await self._wait(delay.total_seconds() if delay else 0.0)
        elif error.code() is StatusCode.UNAUTHENTICATED and not self._has_renewed:
            self._has_renewed = True
            if self._renew:
                await self._renew()
        else:
            raise error

    async def _wait(self, least_seconds: float = 0.0) -> None:
        await asyncio.sleep(least_seconds + self._pause * random.uniform(0.8, 1.2))  # noqa: S311 - spreads callers
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
