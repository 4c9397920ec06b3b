"""What tracing adds to the service; while it is off, nothing of OpenTelemetry is even imported."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.errors import OperatorError
from server.interceptors.chain import Interceptor
from server.settings.environment import variable_of
from server.store.connection import execution

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


class TracingMissing(OperatorError):
    """The packages that export traces are not installed."""


@dataclass(frozen=True)
class Instrumentation:
    """The parts that trace; none of them by default.

    Attributes:
        interceptors: Of calls.
        statement_interceptors: Of SQL statements.
        tracer: Makes the spans of requests to others, such as those for an issuer's keys.
    """

    interceptors: tuple[Interceptor, ...] = ()
    statement_interceptors: tuple[execution.Interceptor, ...] = ()
    tracer: "Tracer | None" = None


@asynccontextmanager
async def instrument(*, tracing: bool) -> AsyncIterator[Instrumentation]:
    """Yields the parts that trace, and exports their spans while the context is open.

    Args:
        tracing: Whether to trace at all.

    Raises:
        TracingMissing, TracingConfigError: Traces cannot be exported.
    """
    if not tracing:
        yield Instrumentation()
        return
    try:
        from server.interceptors.tracing import Tracing  # noqa: PLC0415 - imported only when traces are wanted
        from server.observability.otlp import tracer_provider  # noqa: PLC0415
        from server.store.tracing import StatementTracing  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise TracingMissing(
            f"tracing ({variable_of('tracing')}): {error.name} is missing, which comes with the extra `otlp`: "
            "pip install 'conversation-service[otlp]'."
        ) from None
    async with tracer_provider() as tracer:
        yield Instrumentation((Tracing(tracer),), (StatementTracing(tracer),), tracer)
