"""Observe: counts every call by method and status code, and writes the access log.

Outside of `ErrorStatus`, which turns exceptions into the code that is counted here.
`server.observability.metrics` reads the counts.
"""

import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Any

import grpc
from google.protobuf import descriptor_pool

from server.interceptors.chain import Context, Handler, Interceptor, is_contract_method, is_public_method, wrap_handler
from server.observability.access_log import AccessLog
from server.observability.call_context import begin_call
from server.observability.stats import MethodStats

# `context.code()` is what was set: a StatusCode or its number.
_NAMES = {key: code.name for code in grpc.StatusCode for key in (code, code.value[0])}
_KINDS = {
    (False, False): "unary",
    (True, False): "client_stream",
    (False, True): "server_stream",
    (True, True): "bidi_stream",
}


class Observe(Interceptor):
    """Counts calls and the messages of streams.

    Args:
        methods: Methods of the contract, as ``/package.Service/Method``. Their counts begin
            with zero at start; those of other services appear with their first call.
        access_log: Write a line for each call; otherwise only level debug does.

    Attributes:
        calls: Counts by method.
        unknown: Calls of methods that are not served.
    """

    sees_refusals = True

    def __init__(self, methods: Iterable[str], *, access_log: bool) -> None:
        self.calls = {method: MethodStats(_kind(method)) for method in methods}
        self.unknown = 0
        self._log = AccessLog(always=access_log)

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns ``handler`` with its calls counted, and the messages of streams of the contract."""
        kind = _KINDS[bool(handler.request_streaming), bool(handler.response_streaming)]
        calls = self.calls.setdefault(method, MethodStats(kind))
        log = None if is_public_method(method) else self._log
        if kind == "bidi_stream" or (kind == "server_stream" and is_contract_method(method)):
            handler = _count_messages(handler, calls)
        return wrap_handler(handler, lambda context: _ObserveGuard(method, calls, log, context))

    def on_unknown_method(self) -> None:
        """Counts a call without its method: a name that the caller chose must not become a label."""
        self.unknown += 1


def _kind(method: str) -> str:
    descriptor = descriptor_pool.Default().FindMethodByName(method.removeprefix("/").replace("/", "."))
    return _KINDS[descriptor.client_streaming, descriptor.server_streaming]


def _count_messages(handler: Handler, calls: MethodStats) -> Handler:
    receives = handler.request_streaming
    method: Any = handler.stream_stream if receives else handler.unary_stream
    make = grpc.stream_stream_rpc_method_handler if receives else grpc.unary_stream_rpc_method_handler

    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        received = _CountedMessages(request, calls) if receives else request
        async with aclosing(method(received, context)) as responses:
            async for response in responses:
                calls.sent += 1
                yield response

    return make(stream, handler.request_deserializer, handler.response_serializer)


class _CountedMessages:
    """Counts the messages received. Not a generator: one that is left early has to be closed by somebody."""

    __slots__ = ("_calls", "_messages", "_source")

    def __init__(self, source: AsyncIterable[Any], calls: MethodStats) -> None:
        self._source = source
        self._messages: AsyncIterator[Any] | None = None  # made at first use: gRPC's is a generator
        self._calls = calls

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._messages is None:
            self._messages = aiter(self._source)
        message = await anext(self._messages)
        self._calls.received += 1
        return message


class _ObserveGuard:
    __slots__ = ("_began", "_calls", "_context", "_log", "_method")

    def __init__(self, method: str, calls: MethodStats, log: AccessLog | None, context: Context) -> None:
        self._method = method
        self._calls = calls
        self._log = log
        self._context = context
        self._began = 0.0

    async def __aenter__(self) -> None:
        self._calls.started += 1
        # Not at the end: a cancelled stream ends after gRPC has freed the call, and
        # reading its peer then crashes the process.
        begin_call(self._method, self._context.peer())
        self._began = time.perf_counter()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.perf_counter() - self._began
        code = code_of(self._context, error)
        self._calls.codes[code] += 1
        self._calls.seconds.add(seconds)
        if self._log and (severity := self._log.severity(code)):
            self._log.write(severity, code, seconds)


def code_of(context: Context, error: BaseException | None) -> str:
    """Returns the name of the status code of a call.

    A call that is cancelled has set none; it is DEADLINE_EXCEEDED when its time is over, else CANCELLED.
    """
    code: Any = context.code()
    if code or error is None:
        return _NAMES[code or 0]
    return "DEADLINE_EXCEEDED" if context.time_remaining() == 0 else "CANCELLED"
