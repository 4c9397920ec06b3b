"""A span for each request, by OpenTelemetry's conventions for HTTP servers; imported only while tracing is on."""

from types import TracebackType
from typing import Any

from opentelemetry.trace import Span, StatusCode, Tracer

from server.http.context import HttpContext
from server.http.observe import status_of
from server.http.routes import BY_METHOD
from server.interceptors.chain import Guard, Interceptor
from server.interceptors.tracing import start_span


class HttpTracing(Interceptor):
    """Traces the requests of routes."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def guard(self, method: str) -> Guard:
        """Returns a guard that spans the call."""
        route = BY_METHOD[method]
        name = f"{route.verb} {route.path}"
        attributes = {"http.request.method": route.verb, "http.route": route.path}

        def trace(context: Any) -> _TracingGuard:
            return _TracingGuard(self._tracer, name, attributes, context)

        return trace


class _TracingGuard:
    __slots__ = ("_attributes", "_context", "_name", "_span", "_tracer")

    def __init__(self, tracer: Tracer, name: str, attributes: dict[str, str], context: HttpContext) -> None:
        self._tracer = tracer
        self._name = name
        self._attributes = attributes
        self._context = context
        self._span: Span

    async def __aenter__(self) -> None:
        self._span = start_span(self._tracer, self._name, self._attributes, self._context.invocation_metadata())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = status_of(self._context, error)
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self._span.set_attribute("error.type", str(status))
            self._span.set_status(StatusCode.ERROR)
        self._span.end()
