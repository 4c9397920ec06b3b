"""Metrics for Prometheus, served on an address of their own.

The parts of the service count for themselves, in plain numbers; they are read when somebody
asks. A server has a registry of its own, so several of them fit in a process.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from server.observability.metrics.event_loop_lag import EventLoopLag
from server.observability.metrics.sources import Probes, Sources
from server.observability.task_supervisor import TaskSupervisor
from server.settings.addresses import Address

log = structlog.get_logger(__name__)


@asynccontextmanager
async def expose_metrics(
    sources: Sources, worker: int, tasks: TaskSupervisor, probes: Probes
) -> AsyncIterator[Address | None]:
    """Serves metrics and probes while the context is open; yields their address, None without `metrics_listen`.

    Args:
        sources: What the metrics are read from.
        worker: The number of this process.
        tasks: Runs what measures.
        probes: What tells whether a probe succeeds, by path.

    Raises:
        StartFailed: The address is taken.
    """
    if not (listen := sources.settings.metrics_listen):
        yield None
        return
    # Imported only when metrics are served.
    from server.observability.metrics.collectors import registry_of  # noqa: PLC0415
    from server.observability.metrics.exposition import serve_metrics  # noqa: PLC0415

    lag = EventLoopLag()
    async with serve_metrics(listen.for_worker(worker), registry_of(sources, lag), probes) as address:
        log.info("metrics", listen=str(address))
        async with tasks.running("event loop lag", lag.measure):
            yield address
