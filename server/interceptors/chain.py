"""The chain of interceptors: one guard around a call, whichever of the four kinds it is.

grpc.aio asks its interceptors for a handler at every call. A handler depends on its
method only, so the chain wraps each method once and keeps the result.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, ClassVar, TypeAlias

import grpc
import grpc.aio

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"
Guard: TypeAlias = Callable[[Context], AbstractAsyncContextManager[None]]

# Services of gRPC itself. They give access to no data, so nobody is authenticated for them.
_PUBLIC_SERVICES = (
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1.ServerReflection/",
    "/grpc.reflection.v1alpha.ServerReflection/",
)


def is_public_method(method: str) -> bool:
    """Whether ``method`` is one of health or reflection."""
    return method.startswith(_PUBLIC_SERVICES)


def is_contract_method(method: str) -> bool:
    """Whether ``method`` is one of our contract, and not of a service of gRPC itself."""
    return method.startswith("/conversations.")


def is_streaming(handler: Handler) -> bool:
    """Whether requests or responses are a stream."""
    return bool(handler.request_streaming or handler.response_streaming)


class Interceptor:
    """Does something before, after or instead of a call.

    Attributes:
        sees_refusals: Whether it also wraps calls that are refused before any other work.
    """

    sees_refusals: ClassVar[bool] = False

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns ``handler`` inside the guard of ``method``; ``handler`` itself when there is no guard."""
        guard = self.guard(method)
        return wrap_handler(handler, guard) if guard else handler

    def guard(self, method: str) -> Guard | None:
        """Returns what to put around the calls of ``method``, a ``/package.Service/Method``; by default None."""
        return None

    def on_unknown_method(self) -> None:
        """Called for a call of a method that is not served; by default does nothing."""


class InterceptorChain(grpc.aio.ServerInterceptor):
    """The only interceptor grpc.aio sees: for each of its own it makes new coroutines at every call."""

    def __init__(self, interceptors: Sequence[Interceptor]) -> None:
        """``interceptors``: the outermost first."""
        self.interceptors = tuple(interceptors)
        self._handlers: dict[str, Handler] = {}

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns ``handler`` inside all interceptors."""
        for interceptor in reversed(self.interceptors):
            handler = interceptor.wrap(method, handler)
        return read_later(handler)

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Handler | None:
        """Returns the method's handler inside all interceptors; None, which is UNIMPLEMENTED, if it is not served."""
        known = self._handlers.get(details.method)
        if known is not None:
            return known
        handler = await continuation(details)
        if handler is None:
            for interceptor in self.interceptors:
                interceptor.on_unknown_method()
            return None
        wrapped = self._handlers[details.method] = self.wrap(details.method, handler)
        return wrapped


def read_later(handler: Handler) -> Handler:
    """Returns ``handler``, which reads its request from the context, as one that grpc.aio reads no request for.

    grpc.aio reads the request of a unary call before it calls the handler, and so before anybody has been
    authenticated. Of a client's stream it reads nothing by itself; on the wire the two look the same.
    """
    if handler.request_streaming:
        return handler
    method: Any = handler.unary_stream if handler.response_streaming else handler.unary_unary
    make = grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler
    return make(method, None, handler.response_serializer)


def wrap_handler(handler: Handler, guard: Guard) -> Handler:
    """Returns ``handler`` with each call inside ``guard``.

    The wrappers are real async functions: grpc.aio takes partials and callable
    objects for synchronous code and runs them in a thread.
    """
    if handler.response_streaming:
        return _wrap_stream(handler, guard)
    method: Any = handler.stream_unary if handler.request_streaming else handler.unary_unary

    async def call(request: Any, context: Context) -> Any:
        async with guard(context):
            return await method(request, context)

    make = grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
    return make(call, handler.request_deserializer, handler.response_serializer)


def _wrap_stream(handler: Handler, guard: Guard) -> Handler:
    method: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream
    make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler

    async def write(request: Any, context: Context) -> None:
        async with guard(context):
            await method(request, context)

    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        # Closed here: left to the collector, the guards of a cancelled stream end one by one, much later.
        async with guard(context), aclosing(method(request, context)) as responses:
            async for response in responses:
                yield response

    # A method may also write its responses itself, as the health service's Watch does.
    wrapper: Any = write if inspect.iscoroutinefunction(method) else stream
    return make(wrapper, handler.request_deserializer, handler.response_serializer)
