"""Decode: bytes become a request that keeps every rule of the contract.

Innermost, behind Access: nobody makes the server parse what they may not send.
grpc.aio would decode first and tell a malformed body as UNKNOWN with the
exception's text (traps §2.2).
"""

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from server.authorization.audit_log import current_request
from server.errors import FieldInvalid, Violation
from server.interceptors.chain import Context, Handler, Interceptor, is_ours
from server.requests.validation import validate


class Decode(Interceptor):
    """Replaces grpc's decoding of requests."""

    def wrap(self, method: str, handler: Handler) -> Handler:
        """``handler`` taking bytes, for the methods of this package."""
        if not is_ours(method):
            return handler
        return _streamed(handler) if handler.request_streaming else _decoded(handler)


def _decoded(handler: Handler) -> Handler:
    parse: Any = handler.request_deserializer
    call: Any = handler.unary_unary

    async def decoded(body: bytes, context: Context) -> Any:
        request = _parsed(parse, body)
        validate(request)
        current_request.set(request)
        return await call(request, context)

    return grpc.unary_unary_rpc_method_handler(decoded, None, handler.response_serializer)


def _streamed(handler: Handler) -> Handler:
    """Each message is checked by the method: one that breaks a rule need not end the stream."""
    parse: Any = handler.request_deserializer
    method: Any = handler.stream_stream

    def decoded(bodies: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        return method((_parsed(parse, body) async for body in bodies), context)  # type: ignore[no-any-return]

    return grpc.stream_stream_rpc_method_handler(decoded, None, handler.response_serializer)


def _parsed(parse: Callable[[bytes], Any], body: bytes) -> Any:
    try:
        return parse(body)
    except DecodeError:
        raise FieldInvalid(Violation("", "the request is not a message of its type", "decode")) from None
