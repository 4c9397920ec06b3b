"""The drain: how the server stops without a failed call."""

import asyncio
from collections.abc import Iterable
from typing import Protocol

import grpc
import grpc.aio
import structlog

from server.interceptors.drain_gate import DrainGate
from server.transport.health import Health

log = structlog.get_logger(__name__)

# New calls are held so long, while balancers and health checks move callers away.
# Shorter than the pushback of ShuttingDown, or retries would use themselves up.
HOLD_SECONDS = 0.25
_GOAWAY_SECONDS = 0.05  # for GOAWAY to arrive


class Listener(Protocol):
    """What serves callers beside the gRPC server, such as the HTTP edge."""

    async def stop(self, grace: float) -> None:
        """Takes no connections any more, closes idle ones, and the others when their calls end.

        Calls that still run after ``grace`` seconds are cancelled.
        """


async def drain(
    server: grpc.aio.Server, health: Health, drain_gate: DrainGate, grace: float, others: Iterable[Listener] = ()
) -> None:
    """Stops taking calls and waits for the running ones; after that the pool may close.

    `stop` fails calls it has received but not started with CANCELLED, which no client
    retries (grpc/grpc#41785). So new calls are held at first, which keeps their callers
    from making more, and refused as UNAVAILABLE once `stop` has sent GOAWAY to every
    connection (docs/adr/0017).

    Args:
        server: Stops within ``grace`` seconds; calls that still run then are aborted.
        health: NOT_SERVING from now on.
        drain_gate: Holds and counts the calls.
        grace: Seconds; at least twice the time GOAWAY takes.
        others: Stop as the server does, in the same time.
    """
    await health.begin_drain()
    drain_gate.begin_drain()
    await asyncio.sleep(HOLD_SECONDS)
    health.end_watches()
    grace = max(grace, 2 * _GOAWAY_SECONDS)
    stopping = [asyncio.create_task(each.stop(grace)) for each in (server, *others)]
    await asyncio.sleep(_GOAWAY_SECONDS)
    drain_gate.refuse_held()
    await asyncio.gather(*stopping)
    if not await drain_gate.running.wait_idle(seconds=2):
        log.warning("calls were still running at the end")
