"""Waits for what health says of readiness."""

import asyncio
import time

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from tests.support.service import Service

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
FALSE_SECONDS, TRUE_SECONDS = 5.0, 2.0  # what is promised


async def wait_for(service: Service, status: int) -> float:
    """Seconds until `readiness` has this status."""
    began, stub = time.monotonic(), HealthStub(service.channel)
    async with asyncio.timeout(30):
        while (await stub.Check(HealthCheckRequest(service="readiness"))).status != status:  # noqa: ASYNC110 - as an orchestrator asks
            await asyncio.sleep(0.02)
    return time.monotonic() - began
