"""What tracing changes in how the service is built; off, it changes nothing and costs nothing."""

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
    """What sends traces is not installed."""


@dataclass(frozen=True)
class Instrumentation:
    """The parts that are others while calls are traced; by default those of a service without tracing."""

    interceptors: tuple[Interceptor, ...] = ()  # more of the chain
    statement_interceptors: tuple[execution.Interceptor, ...] = ()
    tracer: "Tracer | None" = None  # of what the service asks of others


@asynccontextmanager
async def instrument(*, tracing: bool) -> AsyncIterator[Instrumentation]:
    """The parts to build with; nothing of OpenTelemetry is imported unless ``tracing``.

    Raises:
        TracingMissing, TracingConfigError: Traces cannot be sent.
    """
    if not tracing:
        yield Instrumentation()
        return
    try:
        from server.interceptors.tracing import Tracing  # noqa: PLC0415 - with what is imported here, memory is used
        from server.observability.otlp import tracer_provider  # noqa: PLC0415
        from server.store.tracing import StatementTracing  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise TracingMissing(
            f"tracing ({variable_of('tracing')}): {error.name} is missing, which comes with the extra `otlp`: "
            "pip install 'conversation-service[otlp]'."
        ) from None
    async with tracer_provider() as tracer:
        yield Instrumentation((Tracing(tracer),), (StatementTracing(tracer),), tracer)
