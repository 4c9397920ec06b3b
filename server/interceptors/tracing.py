"""Tracing: a span for each call, in the caller's trace or in a new one.

Outermost: the span has the code the caller receives, and log lines and SQL spans of the
call join its trace. Attributes are those of OpenTelemetry's conventions for gRPC and no
others: no content, no ids of callers or of what they ask for.

In the chain only while tracing is on.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeAlias

from opentelemetry import context as otel
from opentelemetry import propagate
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, format_span_id, format_trace_id, set_span_in_context

from server.interceptors.chain import Guard, Interceptor, is_contract_method
from server.interceptors.observe import code_of
from server.observability.trace_context import current_span, current_trace

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]

# Codes that are failures of the server, by OpenTelemetry's conventions; all others are the caller's.
_ERRORS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
)


class _Values(Getter[Metadata]):
    """Reads the metadata of a call."""

    def get(self, carrier: Metadata, key: str) -> list[str] | None:
        """Returns the values of ``key``; None if `traceparent` came more than once, for then no parent is certain."""
        values = [value for name, value in carrier if name == key and isinstance(value, str)]
        return None if key == "traceparent" and len(values) > 1 else values or None

    def keys(self, carrier: Metadata) -> list[str]:
        """Returns the keys, in their order."""
        return [name for name, _ in carrier]


VALUES = _Values()


def _start_span(tracer: Tracer, name: str, attributes: dict[str, str], metadata: Metadata) -> Span:
    """Starts the span of a call, of which everything else in the call is a part; returns it."""
    parent = propagate.extract(metadata, getter=VALUES)
    span = tracer.start_span(name, parent, SpanKind.SERVER, attributes)
    # Never reset: a generator may be closed in another context (grpc/grpc#42295).
    # Each call has a context of its own.
    otel.attach(set_span_in_context(span, parent))
    own = span.get_span_context()
    if own.is_valid:
        current_trace.set(format_trace_id(own.trace_id))
        current_span.set(format_span_id(own.span_id))
    return span


class Tracing(Interceptor):
    """Traces calls of the contract, but not health checks, which would outnumber them."""

    sees_refusals = True

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def guard(self, method: str) -> Guard | None:
        """Returns a guard that spans the call; None for methods outside of the contract."""
        if not is_contract_method(method):
            return None
        name = method.removeprefix("/")
        attributes = {"rpc.system.name": "grpc", "rpc.method": name}
        return lambda context: _CallSpan(self._tracer, name, attributes, context)


class SpanGuard(ABC):
    """The span of one call.

    Args:
        tracer: Makes it.
        name: Of the span.
        attributes: Known before the call.
        context: Of the call.
    """

    __slots__ = ("_attributes", "_name", "_span", "_tracer", "context")

    def __init__(self, tracer: Tracer, name: str, attributes: dict[str, str], context: Any) -> None:
        self.context = context
        self._tracer = tracer
        self._name = name
        self._attributes = attributes
        self._span: Span

    @abstractmethod
    def result(self, error: BaseException | None) -> tuple[str, str | int, bool]:
        """Returns the name and the value of the attribute that says how the call ended, and whether it failed."""

    async def __aenter__(self) -> None:
        metadata = tuple(self.context.invocation_metadata() or ())
        self._span = _start_span(self._tracer, self._name, self._attributes, metadata)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        name, value, failed = self.result(error)
        self._span.set_attribute(name, value)
        if failed:
            self._span.set_attribute("error.type", str(value))
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class _CallSpan(SpanGuard):
    __slots__ = ()

    def result(self, error: BaseException | None) -> tuple[str, str | int, bool]:
        code = code_of(self.context, error)
        return "rpc.response.status_code", code, code in _ERRORS
