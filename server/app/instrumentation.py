"""What tracing changes in how the service is built; off, it changes nothing and costs nothing."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from server.complaint import Complaint
from server.interceptors.chain import Link
from server.settings.service import PREFIX
from server.store.append_batching import Appends
from server.store.connection.database import Database

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


class TracingMissing(Complaint):
    """What sends traces is not installed."""


@dataclass(frozen=True)
class Parts:
    """The parts that are others while calls are traced; by default those of a service without tracing."""

    links: tuple[Link, ...] = ()  # more of the chain
    database: Callable[..., Database] = Database
    appends: type[Appends] = Appends
    tracer: "Tracer | None" = None  # of what the service asks of others


@asynccontextmanager
async def parts(*, tracing: bool) -> AsyncIterator[Parts]:
    """The parts to build with; nothing of OpenTelemetry is imported unless ``tracing``.

    Raises:
        TracingMissing, TracingUnfit: Traces cannot be sent.
    """
    if not tracing:
        yield Parts()
        return
    try:
        from server.interceptors.tracing import Trace  # noqa: PLC0415 - with what is imported here, memory is used
        from server.observability.otlp import sent  # noqa: PLC0415
        from server.store.tracing import TracedAppends, TracedDatabase  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise TracingMissing(
            f"tracing ({PREFIX}TRACING): {error.name} is missing, which comes with the extra `otlp`: "
            "pip install 'conversation-service[otlp]'."
        ) from None
    async with sent() as tracer:
        yield Parts((Trace(tracer),), partial(TracedDatabase, tracer), TracedAppends, tracer)
