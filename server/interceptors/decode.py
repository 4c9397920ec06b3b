"""Decode: bytes become a request that keeps every rule of the contract.

Innermost, inside `Authorization`: the server neither reads nor parses the request of a
caller who may not send it. Left to itself, grpc.aio would do both first, and answer a
malformed request with UNKNOWN and the text of the exception.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError

from server.authorization.audit_log import current_request
from server.errors import FieldInvalid, Violation
from server.interceptors.chain import Context, Handler, Interceptor, is_contract_method
from server.requests.sizes import SMALL_REQUEST_BYTES, check_size, max_request_bytes
from server.requests.validation import validate

Parse = Callable[[bytes], Any]


class Decode(Interceptor):
    """Reads, parses and validates requests in place of grpc.aio.

    Requests of other services than the contract's, such as health, are parsed here too:
    a malformed one is INVALID_ARGUMENT, whichever service it was sent to.
    """

    def __init__(self, max_message_bytes: int = SMALL_REQUEST_BYTES) -> None:
        """``max_message_bytes``: of a request that carries items; any other has 64 KiB at most."""
        self._max_message_bytes = max_message_bytes

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns ``handler`` taking bytes."""
        parse = self._parser(method, handler)
        if handler.request_streaming:
            return _decode_requests(handler, parse)
        if handler.response_streaming:
            return _decode_request_of_stream(handler, parse)
        return _decode_request(handler, parse, validated=is_contract_method(method))

    def _parser(self, method: str, handler: Handler) -> Parse:
        from_bytes: Any = handler.request_deserializer
        limit = self._limit(method)

        def parse(body: bytes) -> Any:
            check_size(body, limit)
            try:
                return from_bytes(body)
            except DecodeError:
                raise FieldInvalid(Violation("", "the request is not a message of its type", "decode")) from None

        return parse

    def _limit(self, method: str) -> int:
        if not is_contract_method(method):
            return SMALL_REQUEST_BYTES
        described = descriptor_pool.Default().FindMethodByName(method.removeprefix("/").replace("/", "."))
        return max_request_bytes(described.input_type, self._max_message_bytes)


def _decode_request(handler: Handler, parse: Parse, *, validated: bool) -> Handler:
    method: Any = handler.unary_unary

    async def call(_requests: Any, context: Context) -> Any:
        request = parse(await _read(context))
        if validated:
            validate(request)
            current_request.set(request)
        return await method(request, context)

    return grpc.unary_unary_rpc_method_handler(call, None, handler.response_serializer)


def _decode_request_of_stream(handler: Handler, parse: Parse) -> Handler:
    method: Any = handler.unary_stream

    # A coroutine function that writes its responses itself, as the health service's Watch does.
    async def write(_requests: Any, context: Context) -> None:
        await method(parse(await _read(context)), context)

    return grpc.unary_stream_rpc_method_handler(write, None, handler.response_serializer)


async def _read(context: Context) -> bytes:
    """Reads the request of a call that has one.

    Raises:
        FieldInvalid: The caller sent none.
    """
    body: Any = await context.read()
    if body is grpc.aio.EOF:
        raise FieldInvalid(Violation("", "the call has no request", "decode"))
    return body  # type: ignore[no-any-return]


def _decode_requests(handler: Handler, parse: Parse) -> Handler:
    """Returns ``handler`` taking a stream of bytes; the method validates, for not every bad message ends a stream."""
    method: Any = handler.stream_stream

    def stream(bodies: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        return method((parse(body) async for body in bodies), context)  # type: ignore[no-any-return]

    return grpc.stream_stream_rpc_method_handler(stream, None, handler.response_serializer)
