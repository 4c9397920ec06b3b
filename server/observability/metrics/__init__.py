"""Metrics for Prometheus, on an address of their own.

The parts of the service count for themselves, in plain numbers; they are read when somebody
asks. A server has a registry of its own, so several of them fit in a process.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import structlog

from server.authorization.policy_file import PolicyFile
from server.identity import Source
from server.interceptors.chain import InterceptorChain
from server.interceptors.drain_gate import DrainGate
from server.observability.metrics.event_loop_lag import EventLoopLag
from server.observability.stats import PurgeStats
from server.settings.service import Settings
from server.store.connection.database import Database
from server.transport.readiness import Readiness
from server.transport.server import of_worker
from server.transport.tls import Credentials

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Sources:
    """What is read."""

    settings: Settings
    chain: InterceptorChain
    running: DrainGate
    readiness: Readiness
    database: Database
    policy: PolicyFile
    purges: PurgeStats
    identity: Source
    credentials: Credentials | None


@asynccontextmanager
async def expose_metrics(sources: Sources, worker: int) -> AsyncIterator[str]:
    """Serves metrics as long as this is open, if `metrics_listen` is an address; the one in use, or ''.

    Raises:
        StartFailed: The address is taken.
    """
    if not (listen := sources.settings.metrics_listen):
        yield ""
        return
    # What formats and serves is loaded when it is wanted.
    from server.observability.metrics.collectors import registry_of  # noqa: PLC0415
    from server.observability.metrics.exposition import serve_metrics  # noqa: PLC0415

    lag = EventLoopLag()
    async with serve_metrics(of_worker(listen, worker), registry_of(sources, lag)) as address:
        log.info("metrics", listen=address)
        measuring = asyncio.create_task(lag.measure(), name="lag of the event loop")
        try:
            yield address
        finally:
            measuring.cancel()
            with suppress(asyncio.CancelledError):
                await measuring
