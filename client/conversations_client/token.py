"""Bearer tokens, which are fetched anew before they expire."""

import asyncio
import json
import math
import time
from base64 import urlsafe_b64decode
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

if TYPE_CHECKING:
    from concurrent.futures import Future

EARLY_SECONDS = 30.0  # before a token expires


class BearerToken:
    """A token that is fetched when a call first needs it, and again shortly before it expires.

    The time is the claim `exp` of a JSON Web Token; one without it, or a token of another form, is kept until `renew`.
    However many calls need a token at once, it is fetched once.
    """

    def __init__(self, fetch: Callable[[], Awaitable[str]]) -> None:
        """``fetch``: returns a new token. What it raises ends the calls that wait for it."""
        self._fetch = fetch
        self._lock = asyncio.Lock()
        self._value = ""
        self._good_until = -math.inf  # seconds since the epoch

    async def get(self) -> str:
        """Returns a token that has not expired."""
        async with self._lock:
            if time.time() >= self._good_until:
                value = await self._fetch()
                self._value, self._good_until = value, expiry_of(value) - EARLY_SECONDS
            return self._value

    async def renew(self) -> None:
        """Forgets the token, so that the next call fetches a new one: the server has refused this one."""
        self._good_until = -math.inf


def expiry_of(token: str) -> float:
    """When a token expires, in seconds since the epoch; infinity if it does not say so.

    The signature is not looked at: the server decides whether the token is good.
    """
    try:
        payload = token.split(".")[1]
        expiry = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"]
        return float(expiry)
    except (IndexError, KeyError, TypeError, ValueError, RecursionError):
        return math.inf


def call_credentials(token: BearerToken) -> grpc.CallCredentials:
    """Credentials for a channel with TLS: gRPC asks them for each attempt of a call."""
    return grpc.metadata_call_credentials(_Plugin(token, asyncio.get_running_loop()), "bearer")


class _Plugin(grpc.AuthMetadataPlugin):
    """Called on a thread of gRPC, which must not wait."""

    def __init__(self, token: BearerToken, loop: asyncio.AbstractEventLoop) -> None:
        self._token = token
        self._loop = loop

    def __call__(self, _context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        def answer(fetched: "Future[str]") -> None:
            if fetched.cancelled():
                callback((), RuntimeError("the event loop has ended"))
            elif error := fetched.exception():
                callback((), RuntimeError(f"no token: {type(error).__name__}"))
            else:
                callback((_header(fetched.result()),), None)

        asyncio.run_coroutine_threadsafe(self._token.get(), self._loop).add_done_callback(answer)


def bearer_interceptors(token: BearerToken) -> Sequence[grpc.aio.ClientInterceptor]:
    """Interceptors for a channel without TLS, where gRPC takes no call credentials."""
    return [_UnaryUnary(token), _UnaryStream(token), _StreamStream(token)]


class _Bearer:
    def __init__(self, token: BearerToken) -> None:
        self._token = token

    async def _add_token(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        header = _header(await self._token.get())
        metadata = grpc.aio.Metadata(*(details.metadata or ()), header)
        return grpc.aio.ClientCallDetails(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
        )


class _UnaryUnary(_Bearer, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(await self._add_token(client_call_details), request)


class _UnaryStream(_Bearer, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(await self._add_token(client_call_details), request)


class _StreamStream(_Bearer, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(await self._add_token(client_call_details), request_iterator)


def _header(token: str) -> tuple[str, str]:
    return "authorization", f"Bearer {token}"
