"""Trace: a span for each call, in the caller's trace or in one of its own.

Outermost: it has the code the caller gets, and whatever is logged of the call, or
asked of the database, finds it. Attributes are those of OpenTelemetry's conventions for
gRPC, and no others: nothing of the content, and no id of who asks or of what is asked for.

Not in the chain unless tracing is on.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import TypeAlias

from opentelemetry import context as otel
from opentelemetry import propagate
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, format_span_id, format_trace_id, set_span_in_context

from server.interceptors.chain import Context, Guard, Interceptor, is_ours
from server.interceptors.observe import code_of
from server.observability.trace_context import current_span, current_trace

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]

# Codes with which a server says that it failed; the others say that the caller did.
_ERRORS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
)
# grpc.aio gives what was set, a StatusCode or its number.


class _Values(Getter[Metadata]):
    """Reads metadata."""

    def get(self, carrier: Metadata, key: str) -> list[str] | None:
        """The values of ``key``; none when there are several parents, of which nobody knows the right one."""
        values = [value for name, value in carrier if name == key and isinstance(value, str)]
        return None if key == "traceparent" and len(values) > 1 else values or None

    def keys(self, carrier: Metadata) -> list[str]:
        return [name for name, _ in carrier]


VALUES = _Values()


class Tracing(Interceptor):
    """Traces the calls of the contract; those of health would hide them."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def guard(self, method: str) -> Guard | None:
        """A guard that makes a span of the call."""
        if not is_ours(method):
            return None
        name = method.removeprefix("/")
        attributes = {"rpc.system.name": "grpc", "rpc.method": name}
        return lambda context: _TracingGuard(self._tracer, name, attributes, context)


class _TracingGuard:
    __slots__ = ("_attributes", "_context", "_name", "_span", "_tracer")

    def __init__(self, tracer: Tracer, name: str, attributes: dict[str, str], context: Context) -> None:
        self._tracer = tracer
        self._name = name
        self._attributes = attributes
        self._context = context
        self._span: Span

    async def __aenter__(self) -> None:
        parent = propagate.extract(tuple(self._context.invocation_metadata() or ()), getter=VALUES)
        self._span = self._tracer.start_span(self._name, parent, SpanKind.SERVER, self._attributes)
        # Set and never reset: a generator may be closed in another context (traps §2.12),
        # and every call has a context of its own.
        otel.attach(set_span_in_context(self._span, parent))
        found = self._span.get_span_context()
        if found.is_valid:
            current_trace.set(format_trace_id(found.trace_id))
            current_span.set(format_span_id(found.span_id))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        code = code_of(self._context, error)
        self._span.set_attribute("rpc.response.status_code", code)
        if code in _ERRORS:
            self._span.set_attribute("error.type", code)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()
