"""The coordinator of a distributed database dies under a running service, and comes back."""

import asyncio

from tests.support.citus_faults import NEEDS_CITUS, by_worker, distributed_cluster, writing
from tests.support.readiness import FALSE_SECONDS, NOT_SERVING, SERVING, TRUE_SECONDS, wait_for
from tests.support.service import running_service

pytestmark = NEEDS_CITUS
PAUSE_SECONDS = 1.0
UNAVAILABLE = ("UNAVAILABLE", "STORE_UNAVAILABLE", "ErrorInfo", "RetryInfo")


async def test_the_coordinator_is_down() -> None:
    """All calls end as on one server, health says it as soon, and what was acknowledged is there afterwards."""
    async with distributed_cluster() as cluster, running_service(cluster.url) as service:
        ids = [each for found in (await by_worker(service, 16)).values() for each in found]
        coordinator = cluster.nodes[0]
        async with writing(service, ids) as writers:
            await asyncio.sleep(PAUSE_SECONDS)
            told = asyncio.create_task(wait_for(service, NOT_SERVING))
            await asyncio.to_thread(coordinator.stop)
            down = await told
            await asyncio.sleep(PAUSE_SECONDS)
            before = sum(map(len, writers.acknowledged.values()))
            await asyncio.to_thread(coordinator.start)
            up = await wait_for(service, SERVING)
            await asyncio.sleep(PAUSE_SECONDS)
        assert down <= FALSE_SECONDS
        assert up <= TRUE_SECONDS
        assert {UNAVAILABLE} == writers.told.keys()
        assert all(map(len, writers.acknowledged.values()))
        assert before < sum(map(len, writers.acknowledged.values()))
        assert {} == await writers.lost()
