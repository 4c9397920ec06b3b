"""A span for each request, by OpenTelemetry's conventions for HTTP servers; imported only while tracing is on."""

from opentelemetry.trace import Tracer

from server.http.observe import status_of
from server.http.routes import BY_METHOD
from server.interceptors.chain import Guard, Interceptor
from server.interceptors.tracing import SpanGuard


class HttpTracing(Interceptor):
    """Traces the requests of routes."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def guard(self, method: str) -> Guard:
        """Returns a guard that spans the call."""
        route = BY_METHOD[method]
        name = f"{route.verb} {route.path}"
        attributes = {"http.request.method": route.verb, "http.route": route.path}

        return lambda context: _RequestSpan(self._tracer, name, attributes, context)


class _RequestSpan(SpanGuard):
    __slots__ = ()

    def result(self, error: BaseException | None) -> tuple[str, str | int, bool]:
        status = status_of(self.context, error)
        return "http.response.status_code", status, status >= 500
