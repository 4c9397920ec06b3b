"""Follows conversations for good: opens a watch whenever it ends, behind the last message that was dealt with.

What it does at each end of a stream is the table of docs/watch.md.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
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
from conversations_client.recovery import Recovery, Renew, behind

SILENCE_SECONDS = 90.0  # three times the pause between two messages of an idle stream
_TRANSIENT = {StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED, StatusCode.CANCELLED}
_STALE = {
    (StatusCode.OUT_OF_RANGE, "RESUME_TOKEN_EXPIRED"),
    (StatusCode.INVALID_ARGUMENT, "RESUME_TOKEN_INVALID"),
}


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
    recovery = Recovery(renew, _TRANSIENT)
    while True:
        call = open_stream(behind(resume_token, request))
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


async def _next(call: "grpc.aio.UnaryStreamCall[_Request, _Response]", silence_seconds: float) -> _Response | None:
    """The next message; None at the end with OK, and if none came for so long."""
    try:
        async with asyncio.timeout(silence_seconds):
            response = await call.read()
    except TimeoutError:
        return None
    return None if response is grpc.aio.EOF else cast("_Response", response)


def _is_stale(error: grpc.aio.AioRpcError) -> bool:
    return (error.code(), details_of(error).reason) in _STALE
