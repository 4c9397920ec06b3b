"""A span for each fetch of keys, and its trace told to whom they are fetched from."""

from types import SimpleNamespace
from typing import TYPE_CHECKING

import aiohttp
from opentelemetry.trace import SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from opentelemetry.util.types import AnyValue

# The trace alone: baggage is a caller's, and the issuer of tokens is nobody it was meant for.
_PROPAGATOR = TraceContextTextMapPropagator()


def fetch_trace(tracer: Tracer) -> aiohttp.TraceConfig:
    """What a client session of aiohttp is to be given."""
    config = aiohttp.TraceConfig()
    config.on_request_start.append(_Begun(tracer))
    config.on_request_end.append(_ended)
    config.on_request_exception.append(_failed)
    return config


class _Begun:
    """Makes the span, in the trace of the call that needs a key, or in one of its own."""

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


async def _ended(
    _session: aiohttp.ClientSession, request: SimpleNamespace, params: aiohttp.TraceRequestEndParams
) -> None:
    request.span.set_attribute("http.response.status_code", params.response.status)
    if params.response.status >= 400:
        _mark(request, str(params.response.status))
    request.span.end()


async def _failed(
    _session: aiohttp.ClientSession, request: SimpleNamespace, params: aiohttp.TraceRequestExceptionParams
) -> None:
    _mark(request, type(params.exception).__name__)
    request.span.end()


def _mark(request: SimpleNamespace, error: str) -> None:
    request.span.set_attribute("error.type", error)
    request.span.set_status(StatusCode.ERROR)
