"""Follows conversations for good: opens a watch whenever it ends, behind the last message that was dealt with.

What it does at each end of a stream is the table of docs/watch.md.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import grpc.aio
from conversations.v1.conversations_service_pb2 import (
    WatchConversationsRequest,
    WatchConversationsResponse,
    WatchItemsRequest,
    WatchItemsResponse,
)
from google.protobuf.message import Message
from grpc import StatusCode

from conversations_client.errors import details_of

SILENCE_SECONDS = 90.0  # three times the pause between two messages of an idle stream
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # seconds
_TRANSIENT = {StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED, StatusCode.CANCELLED}
_STALE = {
    (StatusCode.OUT_OF_RANGE, "RESUME_TOKEN_EXPIRED"),
    (StatusCode.INVALID_ARGUMENT, "RESUME_TOKEN_INVALID"),
}

Renew = Callable[[], Awaitable[None]]


class _Resumable(Protocol):
    resume_token: str


_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=_Resumable)


@dataclass(frozen=True)
class Reset:
    """Forget what was told so far: the watch begins anew, as its request says."""


async def watch_items(
    open_stream: "Callable[[WatchItemsRequest], grpc.aio.UnaryStreamCall[WatchItemsRequest, WatchItemsResponse]]",
    request: WatchItemsRequest,
    *,
    resume_token: str = "",
    renew: Renew | None = None,
    silence_seconds: float = SILENCE_SECONDS,
) -> AsyncGenerator[WatchItemsResponse | Reset, None]:
    """Yields what happens in a conversation, until it has been deleted.

    A message counts as dealt with when the next one is asked for: what has to survive a crash is stored before that,
    together with the message's `resume_token`.

    Args:
        open_stream: `client.watches.WatchItems`; a partial of it if a call needs metadata.
        request: Which conversation, and where to begin without a token.
        resume_token: Of the last message that was dealt with, if one was stored.
        renew: Gets new credentials for the next stream, after the server has refused the last ones.
        silence_seconds: After so long without a message the connection counts as broken.

    Raises:
        grpc.aio.AioRpcError: The watch cannot go on: there is no such conversation, or the caller may not read it.
    """
    events = _follow(open_stream, request, resume_token, renew, silence_seconds)
    async with aclosing(events):
        async for event in events:
            yield event
            if not isinstance(event, Reset) and any(each.HasField("conversation_deleted") for each in event.changes):
                return


async def watch_conversations(
    open_stream: (
        "Callable[[WatchConversationsRequest],"
        " grpc.aio.UnaryStreamCall[WatchConversationsRequest, WatchConversationsResponse]]"
    ),
    request: WatchConversationsRequest,
    *,
    resume_token: str = "",
    renew: Renew | None = None,
    silence_seconds: float = SILENCE_SECONDS,
) -> AsyncGenerator[WatchConversationsResponse | Reset, None]:
    """Yields what happens to all conversations that the caller may read, for good.

    After a `Reset`, list the conversations again. Arguments, and what counts as dealt with, are as of `watch_items`.

    Raises:
        grpc.aio.AioRpcError: The watch cannot go on: the log of changes is off, or the caller may read nothing.
    """
    events = _follow(open_stream, request, resume_token, renew, silence_seconds)
    async with aclosing(events):
        async for event in events:
            yield event


async def _follow(
    open_stream: "Callable[[_Request], grpc.aio.UnaryStreamCall[_Request, _Response]]",
    request: _Request,
    resume_token: str,
    renew: Renew | None,
    silence_seconds: float,
) -> AsyncGenerator[_Response | Reset, None]:
    """Yields the messages of all streams; ``request`` says where to begin without a token."""
    recovery = _Recovery(renew)
    while True:
        call = open_stream(_behind(resume_token, request))
        try:
            while (response := await _next(call, silence_seconds)) is not None:
                recovery.note_message()
                yield response
                resume_token = response.resume_token
            await recovery.after_end()
        except grpc.aio.AioRpcError as error:
            if not (resume_token and _is_stale(error)):
                await recovery.after_error(error)
                continue
            resume_token = ""
            yield Reset()
        finally:
            call.cancel()


def _behind(token: str, request: _Request) -> _Request:
    """The request that begins behind a token; without one ``request`` itself."""
    if not token:
        return request
    resumed = type(request)()
    resumed.CopyFrom(request)
    resumed.resume_token = token  # type: ignore[attr-defined]
    return resumed


async def _next(call: "grpc.aio.UnaryStreamCall[_Request, _Response]", silence_seconds: float) -> _Response | None:
    """The next message; None at the end with OK, and if none came for so long."""
    try:
        async with asyncio.timeout(silence_seconds):
            response = await call.read()
    except TimeoutError:
        return None
    return None if response is grpc.aio.EOF else cast("_Response", response)


class _Recovery:
    """Returns when a stream that has ended may be opened again."""

    def __init__(self, renew: Renew | None) -> None:
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

    async def after_error(self, error: grpc.aio.AioRpcError) -> None:
        """Raises ``error`` if it is final, and if new credentials were refused too."""
        if error.code() in _TRANSIENT:
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


def _is_stale(error: grpc.aio.AioRpcError) -> bool:
    return (error.code(), details_of(error).reason) in _STALE
