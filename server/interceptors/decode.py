"""Decode: bytes become a request that keeps every rule of the contract.

Innermost, inside `Authorization`: the server neither reads nor parses the request of a
caller who may not send it. Left to itself, grpc.aio would do both first, and answer a
malformed request with UNKNOWN and the text of the exception.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError

from server.authorization.audit_log import current_request
from server.errors import FieldInvalid, ServiceError, Violation, forget_frames
from server.interceptors.body_budget import BodyBudget
from server.interceptors.chain import Context, Handler, Interceptor, is_contract_method
from server.interceptors.slow_reads import SlowReads
from server.interceptors.stream_reads import StreamReads
from server.requests.elements import check_elements
from server.requests.large import LARGE_BYTES, current_size, run_sized
from server.requests.sizes import SMALL_REQUEST_BYTES, max_request_bytes, request_too_large
from server.requests.validation import validate

Parse = Callable[[bytes], Any]

_ARRIVING = 16  # requests at once, of up to max_message_bytes each
_BODIES = 2  # of max_message_bytes, in memory at once


class Decode(Interceptor):
    """Reads, parses and validates requests in place of grpc.aio.

    Requests of other services than the contract's, such as health, are parsed here too:
    a malformed one is INVALID_ARGUMENT, whichever service it was sent to. A large request is parsed
    and validated in a thread, one after the other, so that other calls go on meanwhile.

    Attributes:
        budget: Of the large requests of this process, whichever protocol brings them.
    """

    def __init__(self, max_message_bytes: int = SMALL_REQUEST_BYTES) -> None:
        """``max_message_bytes``: of a request that carries items; any other has 64 KiB at most."""
        self._max_message_bytes = max_message_bytes
        self._max_small_bytes = min(SMALL_REQUEST_BYTES, max_message_bytes)
        self.budget = BodyBudget(_BODIES * max_message_bytes, max_message_bytes)
        self._slow_reads = SlowReads(_ARRIVING)
        self._stream_reads = StreamReads()

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns ``handler`` taking bytes."""
        parse = _parser(handler)
        if handler.request_streaming:
            return self._decode_requests(handler, parse, self._limit(method))
        if handler.response_streaming and is_contract_method(method):
            return self._validate_request_of_stream(handler, parse)
        if handler.response_streaming:
            return self._decode_request_of_stream(handler, parse)
        if not is_contract_method(method):
            return self._decode_request(handler, parse)
        if self._limit(method) > SMALL_REQUEST_BYTES:
            return self._decode_large(handler, parse)
        return self._validate_request(handler, parse)

    def _limit(self, method: str) -> int:
        if not is_contract_method(method):
            return SMALL_REQUEST_BYTES
        described = descriptor_pool.Default().FindMethodByName(method.removeprefix("/").replace("/", "."))
        return max_request_bytes(described.input_type, self._max_message_bytes)

    def _decode_large(self, handler: Handler, parse: Parse) -> Handler:
        """Returns ``handler`` for requests that may be large."""
        method: Any = handler.unary_unary

        async def call(_requests: Any, context: Context) -> Any:
            body = await self._slow_reads.read(context, lambda: _read(context))
            if len(body) <= LARGE_BYTES:
                request = _load(parse, body)
                current_request.set(request)
                return await method(request, context)
            with self.budget.room_for(context.peer(), len(body)) as room:
                if not room:
                    del body
                    raise self.budget.no_room()
                size, read = len(body), [body]
                del body
                loaded = await run_sized(size, _try_load, parse, read)
                if isinstance(loaded, ServiceError):
                    raise loaded
                current_request.set(outline(loaded))
                current_size.set(size)
                try:
                    return await method(loaded, context)
                except ServiceError as error:
                    forget_frames(error)  # before the budget counts the request out
                    raise

        return grpc.unary_unary_rpc_method_handler(call, None, handler.response_serializer)

    def _decode_requests(self, handler: Handler, parse: Parse, limit: int) -> Handler:
        """Returns ``handler`` taking a stream of bytes; the method validates, for not every bad one ends a stream."""
        method: Any = handler.stream_stream

        async def requests(bodies: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
            async for body in self._stream_reads.watch(bodies):
                current_size.set(len(body))
                if len(body) > limit:
                    del body
                    raise request_too_large(limit)
                if len(body) <= LARGE_BYTES:
                    yield parse(body)
                    continue
                with self.budget.room_for(context.peer(), len(body)) as room:
                    size, read = len(body), [body]
                    del body
                    if not room:
                        read.clear()
                        raise self.budget.no_room()
                    parsed = await run_sized(size, _try_parse, parse, read)
                    if isinstance(parsed, ServiceError):
                        raise parsed
                    yield parsed
                    del parsed

        def stream(bodies: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
            return method(requests(bodies, context), context)  # type: ignore[no-any-return]

        return grpc.stream_stream_rpc_method_handler(stream, None, handler.response_serializer)

    def _decode_request(self, handler: Handler, parse: Parse) -> Handler:
        method: Any = handler.unary_unary

        async def call(_requests: Any, context: Context) -> Any:
            return await method(parse(await self._read_small(context)), context)

        return grpc.unary_unary_rpc_method_handler(call, None, handler.response_serializer)

    def _validate_request(self, handler: Handler, parse: Parse) -> Handler:
        method: Any = handler.unary_unary

        async def call(_requests: Any, context: Context) -> Any:
            request = _load(parse, await self._read_small(context))
            current_request.set(request)
            return await method(request, context)

        return grpc.unary_unary_rpc_method_handler(call, None, handler.response_serializer)

    def _validate_request_of_stream(self, handler: Handler, parse: Parse) -> Handler:
        method: Any = handler.unary_stream

        async def stream(_requests: Any, context: Context) -> AsyncIterator[Any]:
            request = _load(parse, await self._read_small(context))
            current_request.set(request)
            async with aclosing(method(request, context)) as responses:
                async for response in responses:
                    yield response

        return grpc.unary_stream_rpc_method_handler(stream, None, handler.response_serializer)

    def _decode_request_of_stream(self, handler: Handler, parse: Parse) -> Handler:
        method: Any = handler.unary_stream

        # A coroutine function that writes its responses itself, as the health service's Watch does.
        async def write(_requests: Any, context: Context) -> None:
            await method(parse(await self._read_small(context)), context)

        return grpc.unary_stream_rpc_method_handler(write, None, handler.response_serializer)

    async def _read_small(self, context: Context) -> bytes:
        body = await self._slow_reads.read_small(context, lambda: _read(context))
        if len(body) > self._max_small_bytes:
            del body  # the error would keep it with this frame
            raise request_too_large(self._max_small_bytes)
        return body


def _parser(handler: Handler) -> Parse:
    from_bytes: Any = handler.request_deserializer

    def parse(body: bytes) -> Any:
        try:
            return from_bytes(body)
        except DecodeError:
            raise FieldInvalid(Violation("", "the request is not a message of its type", "decode")) from None

    return parse


def outline(request: Any) -> Any:
    """Returns a request with the ids of ``request`` only.

    A context variable lives on in every timer, task and connection that is made during the call, and would keep
    the items with it.
    """
    ids = {field.name: value for field, value in request.ListFields() if isinstance(value, str)}
    return type(request)(**ids)


def _load(parse: Parse, body: bytes) -> Any:
    request = parse(body)
    validate(request)
    return request


def _try_load(parse: Parse, read: list[bytes]) -> Any:
    """Returns a valid request, or the error; a raised one would keep the request in memory with its traceback."""
    request = _try_parse(parse, read)
    if isinstance(request, ServiceError):
        return request
    try:
        validate(request)
    except ServiceError as error:
        forget_frames(error)
        return error
    return request


def _try_parse(parse: Parse, read: list[bytes]) -> Any:
    """Returns a request with few enough elements, or the error; takes its bytes out of ``read``, which frees them."""
    try:
        request = parse(read.pop())
        check_elements(request)
    except ServiceError as error:
        forget_frames(error)
        return error
    return request


async def _read(context: Context) -> bytes:
    """Reads the request of a call that has one.

    Raises:
        FieldInvalid: The caller sent none.
    """
    body: Any = await context.read()
    if body is grpc.aio.EOF:
        raise FieldInvalid(Violation("", "the call has no request", "decode"))
    return body  # type: ignore[no-any-return]
