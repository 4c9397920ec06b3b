"""A span for each request, by OpenTelemetry's conventions for HTTP servers; imported only while tracing is on."""

from collections.abc import Iterable
from types import TracebackType
from typing import Any

from opentelemetry.trace import Span, StatusCode, Tracer

from server.http.context import HttpContext
from server.http.observe import status_of
from server.http.routes import Route
from server.interceptors.chain import Guard, Interceptor
from server.interceptors.tracing import start_span


class HttpTracing(Interceptor):
    """Traces the requests of routes."""

    def __init__(self, tracer: Tracer, routes: Iterable[Route]) -> None:
        self._tracer = tracer
        self._routes = {route.method: route for route in routes}

    def guard(self, method: str) -> Guard:
        """Returns a guard that spans the call."""
        route = self._routes[method]

        def trace(context: Any) -> _TracingGuard:
            return _TracingGuard(self._tracer, route, context)

        return trace


class _TracingGuard:
    __slots__ = ("_context", "_route", "_span", "_tracer")

    def __init__(self, tracer: Tracer, route: Route, context: HttpContext) -> None:
        self._tracer = tracer
        self._route = route
        self._context = context
        self._span: Span

    async def __aenter__(self) -> None:
        attributes = {"http.request.method": self._route.verb, "http.route": self._route.path}
        name = f"{self._route.verb} {self._route.path}"
        self._span = start_span(self._tracer, name, attributes, self._context.invocation_metadata())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = status_of(self._context, error)
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self._span.set_attribute("error.type", str(status))
            self._span.set_status(StatusCode.ERROR)
        self._span.end()
