"""The chain of interceptors: one guard around a call, whichever of the four kinds it is.

grpc.aio asks its interceptors for a handler at every call. A handler depends on its
method only, so the chain wraps each method once and keeps the result.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import grpc
import grpc.aio

if TYPE_CHECKING:
    from types import TracebackType

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

    # A method may also write its responses itself, as the health service's Watch does.
    wrapper = write if inspect.iscoroutinefunction(method) else _guard_stream(method, guard)
    return make(wrapper, handler.request_deserializer, handler.response_serializer)


class _GuardStack:
    """Several guards around a call, the outermost first; none of them hides an error.

    `AsyncExitStack` does the same with six times the memory.
    """

    __slots__ = ("_context", "_guards", "_inside")

    def __init__(self, guards: Sequence[Guard], context: Context) -> None:
        self._guards = guards
        self._context = context
        self._inside: list[AbstractAsyncContextManager[None]] = []

    async def __aenter__(self) -> None:
        try:
            for guard in self._guards:
                entered = guard(self._context)
                await entered.__aenter__()
                self._inside.append(entered)
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the guards, the innermost first; each sees the error of the one before, as if it was nested in it."""
        last = error
        try:
            while self._inside:
                try:
                    await self._inside.pop().__aexit__(*_details(last))
                except BaseException as raised:  # noqa: BLE001 - it goes on to the next guard, and out of the last one
                    last = raised
            if last is not None and last is not error:
                raise last
        finally:
            last = error = None  # an error refers to this frame, which must not refer to it


def _details(
    error: BaseException | None,
) -> tuple[type[BaseException] | None, BaseException | None, TracebackType | None]:
    return (None, None, None) if error is None else (type(error), error, error.__traceback__)


def _guard_stream(method: Any, guard: Guard) -> Any:
    """Returns ``method``, an async generator function, with each call inside ``guard`` and those it is in already.

    All guards share one generator. A generator for each takes half a kilobyte for as long as a watch lasts, and time at
    every message.
    """
    guards: tuple[Guard, ...] = (guard, *getattr(method, "guards", ()))
    inner = getattr(method, "inner", method)

    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        # Closed here: left to the collector, the guards of a cancelled stream end one by one, much later.
        async with _GuardStack(guards, context), aclosing(inner(request, context)) as responses:
            async for response in responses:
                yield response

    wrapper: Any = stream
    wrapper.guards, wrapper.inner = guards, inner
    return wrapper
