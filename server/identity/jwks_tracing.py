"""A span for each fetch of keys, whose context is sent along in `traceparent`."""

from types import SimpleNamespace
from typing import TYPE_CHECKING

import aiohttp
from opentelemetry.trace import SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from opentelemetry.util.types import AnyValue

# Not baggage, which the caller did not mean for the issuer of tokens.
_PROPAGATOR = TraceContextTextMapPropagator()


def trace_config(tracer: Tracer) -> aiohttp.TraceConfig:
    """Returns the configuration that makes a client session of aiohttp trace its requests."""
    config = aiohttp.TraceConfig()
    config.on_request_start.append(_StartSpan(tracer))
    config.on_request_end.append(_end_span)
    config.on_request_exception.append(_fail_span)
    return config


class _StartSpan:
    """Starts a span, in the trace of the call that needs a key or in a trace of its own."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    async def __call__(
        self, _session: aiohttp.ClientSession, request: SimpleNamespace, params: aiohttp.TraceRequestStartParams
    ) -> None:
        attributes: dict[str, AnyValue] = {
            "http.request.method": params.method,
            "url.full": str(params.url.with_query(None)),
            "server.address": params.url.host or "",
            "server.port": params.url.port or 0,
        }
        request.span = self._tracer.start_span(params.method, kind=SpanKind.CLIENT, attributes=attributes)
        _PROPAGATOR.inject(params.headers, set_span_in_context(request.span))


async def _end_span(
    _session: aiohttp.ClientSession, request: SimpleNamespace, params: aiohttp.TraceRequestEndParams
) -> None:
    request.span.set_attribute("http.response.status_code", params.response.status)
    if params.response.status >= 400:
        _set_error(request, str(params.response.status))
    request.span.end()


async def _fail_span(
    _session: aiohttp.ClientSession, request: SimpleNamespace, params: aiohttp.TraceRequestExceptionParams
) -> None:
    _set_error(request, type(params.exception).__name__)
    request.span.end()


def _set_error(request: SimpleNamespace, error: str) -> None:
    request.span.set_attribute("error.type", error)
    request.span.set_status(StatusCode.ERROR)
