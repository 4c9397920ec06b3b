"""How the links of the chain wrap a call: one guard around all four kinds.

grpc.aio asks its interceptors for a handler at every call. Ours depends on the
method only, so it is made once, out of all links, and kept.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, TypeAlias

import grpc
import grpc.aio

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Guard: TypeAlias = Callable[[Context], AbstractAsyncContextManager[None]]


def is_ours(method: str) -> bool:
    """Whether a method is of our contract, and not of gRPC's own services."""
    return method.startswith("/conversations.")


def streams(handler: Handler) -> bool:
    """Whether requests or responses are a stream."""
    return bool(handler.request_streaming or handler.response_streaming)


class Interceptor:
    """Does something before, after or instead of the calls it guards."""

    def wrap(self, method: str, handler: Handler) -> Handler:
        """``handler`` inside the guard of ``method``; the handler itself when there is none."""
        guard = self.guard(method)
        return wrap_handler(handler, guard) if guard else handler

    def guard(self, method: str) -> Guard | None:
        """What to put around the calls of ``method``, as ``/package.Service/Method``; by default nothing."""
        return None

    def on_unknown_method(self) -> None:
        """Sees a call of a method that is not served; by default nothing."""


class InterceptorChain(grpc.aio.ServerInterceptor):
    """The one interceptor that grpc.aio sees: for each of its own it makes coroutines anew at every call."""

    def __init__(self, links: Sequence[Interceptor]) -> None:
        """``links``, the outermost first."""
        self.interceptors = tuple(links)
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The method's handler inside all links; None for an unknown method, which becomes UNIMPLEMENTED."""
        wrapped = self._wrapped.get(details.method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(details)
        if handler is None:
            for link in self.interceptors:
                link.on_unknown_method()
            return None
        for link in reversed(self.interceptors):
            handler = link.wrap(details.method, handler)
        self._wrapped[details.method] = handler
        return handler


def wrap_handler(handler: Handler, guard: Guard) -> Handler:
    """``handler`` with each call inside ``guard``.

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

    async def writing(request: Any, context: Context) -> None:
        async with guard(context):
            await method(request, context)

    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        # Closed here and now: left to the collector, a cancelled stream ends link by link, much later.
        async with guard(context), aclosing(method(request, context)) as responses:
            async for response in responses:
                yield response

    # A method may also write its responses itself, as the health service's does.
    wrapped: Any = writing if inspect.iscoroutinefunction(method) else stream
    return make(wrapped, handler.request_deserializer, handler.response_serializer)


# Services of gRPC itself: they show no data of the service.
OPEN = (
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1.ServerReflection/",
    "/grpc.reflection.v1alpha.ServerReflection/",
)
