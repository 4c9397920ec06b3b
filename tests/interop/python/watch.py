"""Follows a conversation for good: opens WatchItems whenever it ends, behind the last message that was dealt with.

What it does at each end of a stream is the table of docs/watch.md. It needs grpcio and the generated messages only.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import grpc.aio
from conversations.v1.conversations_service_pb2 import WatchItemsRequest, WatchItemsResponse
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

if TYPE_CHECKING:
    Stream = grpc.aio.UnaryStreamCall[WatchItemsRequest, WatchItemsResponse]

SILENCE_SECONDS = 90.0  # three times the pause between two messages of an idle stream
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # seconds
_TRANSIENT = {StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED, StatusCode.CANCELLED}
_STALE = {
    (StatusCode.OUT_OF_RANGE, "RESUME_TOKEN_EXPIRED"),
    (StatusCode.INVALID_ARGUMENT, "RESUME_TOKEN_INVALID"),
}

_Detail = TypeVar("_Detail", bound=Message)


@dataclass(frozen=True)
class Reset:
    """Forget what was told so far: the watch begins anew, as its request says."""


async def watch_items(
    open_stream: Callable[[WatchItemsRequest], "Stream"],
    request: WatchItemsRequest,
    *,
    resume_token: str = "",
    renew: Callable[[], Awaitable[None]] | None = None,
    silence_seconds: float = SILENCE_SECONDS,
) -> AsyncGenerator[WatchItemsResponse | Reset, None]:
    """Yields what happens in a conversation, until it has been deleted.

    A message counts as dealt with when the next one is asked for: what has to survive a crash is stored before that,
    together with the message's `resume_token`.

    Args:
        open_stream: `stub.WatchItems` with a channel of its own; a partial of it if a call needs metadata.
        request: Which conversation, and where to begin without a token.
        resume_token: Of the last message that was dealt with, if one was stored.
        renew: Gets new credentials for the next stream, after the server has refused the last ones.
        silence_seconds: After so long without a message the connection counts as broken.

    Raises:
        grpc.aio.AioRpcError: The watch cannot go on: there is no such conversation, or the caller may not read it.
    """
    recovery = _Recovery(renew)
    while True:
        call = open_stream(_starting_behind(resume_token, request))
        try:
            while (response := await _next(call, silence_seconds)) is not None:
                recovery.note_message()
                yield response
                resume_token = response.resume_token
                if any(change.HasField("conversation_deleted") for change in response.changes):
                    return
            await recovery.after_end()
        except grpc.aio.AioRpcError as error:
            if not (resume_token and _is_stale(error)):
                await recovery.after_error(error)
                continue
            resume_token = ""
            yield Reset()
        finally:
            call.cancel()


def _starting_behind(token: str, request: WatchItemsRequest) -> WatchItemsRequest:
    if not token:
        return request
    return WatchItemsRequest(conversation_id=request.conversation_id, resume_token=token)


async def _next(call: "Stream", silence_seconds: float) -> WatchItemsResponse | None:
    """The next message; None at the end with OK, and if none came for so long."""
    try:
        async with asyncio.timeout(silence_seconds):
            response = await call.read()
    except TimeoutError:
        return None
    return response if isinstance(response, WatchItemsResponse) else None


class _Recovery:
    """Returns when a stream that has ended may be opened again."""

    def __init__(self, renew: Callable[[], Awaitable[None]] | None) -> None:
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
            await self._wait(_detail(error, RetryInfo).retry_delay.ToTimedelta().total_seconds())
        elif error.code() is StatusCode.UNAUTHENTICATED and not self._has_renewed:
            self._has_renewed = True
            if self._renew:
                await self._renew()
        else:
            raise error

    async def _wait(self, least_seconds: float = 0.0) -> None:
        await asyncio.sleep(least_seconds + self._pause * random.uniform(0.8, 1.2))
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)


def _is_stale(error: grpc.aio.AioRpcError) -> bool:
    return (error.code(), _detail(error, ErrorInfo).reason) in _STALE


def _detail(error: grpc.aio.AioRpcError, kind: type[_Detail]) -> _Detail:
    """The detail of this type that an error carries; an empty one if it has none."""
    found = kind()
    encoded = error.trailing_metadata().get("grpc-status-details-bin", b"")
    for detail in Status.FromString(encoded).details:
        detail.Unpack(found)  # does nothing with a detail of another type; an error has at most one of each
    return found
