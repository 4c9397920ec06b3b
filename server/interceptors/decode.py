"""Decode: bytes become a request that keeps every rule of the contract.

Innermost, inside `Authorization`: the server does not parse the request of a caller
who may not send it. Left to itself, grpc.aio would parse first, and answer a
malformed request with UNKNOWN and the text of the exception.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from server.authorization.audit_log import current_request
from server.errors import FieldInvalid, Violation
from server.interceptors.chain import Context, Handler, Interceptor, is_contract_method
from server.requests.validation import validate


class Decode(Interceptor):
    """Parses and validates requests in place of grpc.aio."""

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns ``handler`` taking bytes, for methods of the contract."""
        if not is_contract_method(method):
            return handler
        return _decode_stream(handler) if handler.request_streaming else _decode_unary(handler)


def _decode_unary(handler: Handler) -> Handler:
    parse: Any = handler.request_deserializer
    method: Any = handler.unary_unary

    async def call(body: bytes, context: Context) -> Any:
        request = _parse(parse, body)
        validate(request)
        current_request.set(request)
        return await method(request, context)

    return grpc.unary_unary_rpc_method_handler(call, None, handler.response_serializer)


def _decode_stream(handler: Handler) -> Handler:
    """Returns ``handler`` taking a stream of bytes; the method validates, for not every bad message ends a stream."""
    parse: Any = handler.request_deserializer
    method: Any = handler.stream_stream

    def stream(bodies: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        return method((_parse(parse, body) async for body in bodies), context)  # type: ignore[no-any-return]

    return grpc.stream_stream_rpc_method_handler(stream, None, handler.response_serializer)


def _parse(parse: Callable[[bytes], Any], body: bytes) -> Any:
    try:
        return parse(body)
    except DecodeError:
        raise FieldInvalid(Violation("", "the request is not a message of its type", "decode")) from None
