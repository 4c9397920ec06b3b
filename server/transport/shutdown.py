"""How the server ends: a drain that no caller has to notice."""

import asyncio

import grpc
import grpc.aio
import structlog

from server.interceptors.drain_gate import DrainGate
from server.transport.health import Health

log = structlog.get_logger(__name__)

HELD_SECONDS = 0.25  # in which balancers and health checks move calls away; shorter than the pushback of ShuttingDown


_LEAVING_SECONDS = 0.05  # for GOAWAY to arrive


async def drain(server: grpc.aio.Server, health: Health, running: DrainGate, grace: float) -> None:
    """No new calls, then the end of the running ones, before the pool closes.

    `stop` fails calls it has received but not started with CANCELLED, which no
    client retries. So new calls are held for a while, which keeps their callers
    from making more of them, and refused as UNAVAILABLE once `stop` has told every
    connection to go (ADR 17).
    """
    await health.begin_drain()
    running.hold()
    await asyncio.sleep(HELD_SECONDS)
    health.end_watches()
    stopping = asyncio.create_task(server.stop(max(grace, 2 * _LEAVING_SECONDS)))
    await asyncio.sleep(_LEAVING_SECONDS)
    running.release()
    await stopping
    if not await running.ended(seconds=2):
        log.warning("calls were still running at the end")
