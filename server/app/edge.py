"""The HTTP edge as a part of the service; nothing of it is imported unless `http_listen` is set."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from server.interceptors import CallerChain
from server.interceptors.drain_gate import DrainGate
from server.services.conversations import ConversationsServicer
from server.settings.addresses import Address
from server.settings.service import Settings
from server.store.response_budget import ResponseBudget
from server.transport import tls
from server.transport.health import Health

log = structlog.get_logger(__name__)

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from server.http.edge import Edge
    from server.http.listener import Listener
    from server.interceptors.chain import Interceptor


@dataclass(frozen=True)
class HttpEdge:
    """The edge and its listener; both count for the metrics."""

    edge: "Edge"
    listener: "Listener"

    async def start(self) -> None:
        """Accepts connections from now on."""
        await self.listener.start()
        for address in self.addresses:
            log.info("http address", listen=str(address))

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where it is served."""
        return self.listener.addresses


def build_edge(
    settings: Settings,
    servicer: ConversationsServicer,
    chain: CallerChain,
    drain_gate: DrainGate,
    health: Health,
    responses: ResponseBudget,
    certificate: tls.Credentials | None,
    tracer: "Tracer | None",
) -> HttpEdge | None:
    """Returns the edge with its addresses bound, not yet listening; None if `http_listen` is not set.

    Raises:
        StartFailed: An address is taken or not allowed.
    """
    if not settings.http_listen:
        return None
    from server.http.edge import Edge, Parts  # noqa: PLC0415 - a service without the edge need not load it
    from server.http.listener import Listener  # noqa: PLC0415

    tracing: list[Interceptor] = []
    if tracer:
        from server.http.tracing import HttpTracing  # noqa: PLC0415

        tracing.append(HttpTracing(tracer))
    edge = Edge(settings, Parts(servicer, chain, drain_gate, health, responses), tracing)
    return HttpEdge(edge, Listener(settings, edge.handle, certificate))
