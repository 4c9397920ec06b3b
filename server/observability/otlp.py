"""Exports spans to a collector, by OTLP over HTTP.

How they get there, and which are kept, is said by the `OTEL_*` variables of OpenTelemetry's
specification, and by nothing of ours. The SDK sends them from a thread of its own; what it
cannot send it drops, and no call waits for it.

Imported with tracing on only: it needs the extra `otlp`.
"""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Tracer

from server import __version__
from server.errors import OperatorError

log = structlog.get_logger(__name__)

SERVICE_NAME = "conversation-service"  # unless OTEL_SERVICE_NAME says otherwise
_FLUSH_SECONDS = 3.0  # at the end, for the remaining spans
_EXPORTERS = ("otlp", "none")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
_PROTOCOL = "http/protobuf"  # not gRPC: its exporter would share the process's gRPC with grpc.aio


class TracingConfigError(OperatorError):
    """The `OTEL_*` variables ask for something that is not supported."""


@asynccontextmanager
async def tracer_provider() -> AsyncIterator[Tracer]:
    """Yields the tracer that makes spans; leaving the context exports the remaining ones.

    Raises:
        TracingConfigError: A variable asks for what there is not.
    """
    provider = _provider()
    try:
        yield provider.get_tracer("conversations", __version__)
    finally:
        await _end(provider)


def _provider() -> TracerProvider:
    ours = {"service.name": SERVICE_NAME, "service.version": __version__}
    resource = Resource.create(ours | dict(OTELResourceDetector().detect().attributes or {}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    if _is_exported():
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _is_exported() -> bool:
    """Returns whether spans are exported; if not, the log has their ids all the same."""
    exporter = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if exporter not in _EXPORTERS:
        raise TracingConfigError(f"tracing: OTEL_TRACES_EXPORTER must be {' or '.join(_EXPORTERS)}.")
    for name in _PROTOCOLS:
        if (os.environ.get(name) or _PROTOCOL) != _PROTOCOL:
            raise TracingConfigError(f"tracing: {name} must be {_PROTOCOL}: spans are sent in no other way.")
    return exporter == "otlp"


async def _end(provider: TracerProvider) -> None:
    """Exports the remaining spans, unless that takes too long.

    In a thread that nobody waits for: a collector that never answers must not hold
    the process, as it would in a thread of the loop's own.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def end() -> None:
        provider.shutdown()
        with suppress(RuntimeError):  # the loop did not wait, and is closed
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=end, name="end of spans", daemon=True).start()
    try:
        async with asyncio.timeout(_FLUSH_SECONDS):
            await ended.wait()
    except TimeoutError:
        log.warning("spans were not sent", seconds=_FLUSH_SECONDS)
