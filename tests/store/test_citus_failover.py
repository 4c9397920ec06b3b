"""A node of a distributed database is lost for good, and its standby takes its place under a running service."""

import asyncio
import time
from functools import partial

from tests.support.build import append, list_items, user_message
from tests.support.citus_faults import NEEDS_CITUS, by_worker, codes, distributed_cluster, until, writing
from tests.support.ports import HOST
from tests.support.postgres import fetch
from tests.support.readiness import NOT_SERVING, SERVING, TRUE_SECONDS, wait_for
from tests.support.service import Service, running_service

pytestmark = NEEDS_CITUS
UPDATE = f"SELECT citus_update_node(nodeid, '{HOST}', {{new}}) FROM pg_dist_node WHERE nodeport = {{old}}"
PAUSE_SECONDS = 1.0
RECOVERY_SECONDS = 5.0  # from the moment at which the coordinator knows the new address


async def test_a_standby_takes_the_place_of_a_worker() -> None:
    """What was acknowledged is there, the other worker serves all the time, and calls go on without a restart."""
    async with distributed_cluster() as cluster, running_service(cluster.url) as service:
        found = await by_worker(service, 24)
        lost, living = (found[worker.port] for worker in cluster.workers)
        worker = cluster.workers[0]
        standby = await cluster.add_standby(worker)

        async def recovered() -> bool:
            calls = [service.stub.CreateItems(append(each, user_message("c")), timeout=10) for each in spared]
            return await codes(calls) == {"OK"}

        lost, spared = lost[:-2], lost[-2:]
        async with writing(service, lost) as failing, writing(service, living) as going:
            await asyncio.sleep(PAUSE_SECONDS)
            await asyncio.to_thread(worker.stop)
            await asyncio.sleep(PAUSE_SECONDS)
            assert not await recovered()
            await asyncio.to_thread(standby.promote)
            began = time.monotonic()
            await fetch(service.url, UPDATE.format(old=worker.port, new=standby.port))
            await until(recovered)
            took = time.monotonic() - began
            await asyncio.sleep(PAUSE_SECONDS)
        assert took < RECOVERY_SECONDS
        assert {"UNAVAILABLE"} == {code for code, *_ in failing.told}
        assert not going.told
        assert {} == await failing.lost() | await going.lost()
        assert [] == await fetch(service.url, "SELECT FROM pg_prepared_xacts")


async def are_read(service: Service, conversation_ids: list[str]) -> bool:
    """Whether all of them can be read at the same time, and so over all sessions."""
    return await codes([service.stub.ListItems(list_items(each), timeout=10) for each in conversation_ids]) == {"OK"}


async def test_a_standby_takes_the_place_of_the_coordinator() -> None:
    """The service finds it among the hosts of its URL, and both workers know it then."""
    async with distributed_cluster() as cluster:
        coordinator = cluster.nodes[0]
        standby = await cluster.add_standby(coordinator)
        url = coordinator.url.replace(str(coordinator.port), f"{coordinator.port},{HOST}:{standby.port}")
        async with running_service(url) as service:
            ids = [each for found in (await by_worker(service, 16)).values() for each in found]
            async with writing(service, ids) as writers:
                await asyncio.sleep(PAUSE_SECONDS)
                await asyncio.to_thread(coordinator.stop)
                await wait_for(service, NOT_SERVING)
                await asyncio.to_thread(standby.promote)
                assert await wait_for(service, SERVING) <= TRUE_SECONDS
                began = time.monotonic()
                await fetch(standby.url, UPDATE.format(old=coordinator.port, new=standby.port))
                await until(partial(are_read, service, ids))
                took = time.monotonic() - began
                await asyncio.sleep(PAUSE_SECONDS)
            assert took < RECOVERY_SECONDS
            assert {"UNAVAILABLE"} == {code for code, *_ in writers.told}
            assert {} == await writers.lost()
        for worker in cluster.workers:
            known = await fetch(worker.url, "SELECT nodeport FROM pg_dist_node WHERE groupid = 0")
            assert [standby.port] == [row["nodeport"] for row in known]
