"""Nodes of Citus that fail, and that come, under a running service; on a cluster of its own."""

import asyncio
import os
import signal
from collections.abc import Awaitable
from typing import Any
from uuid import uuid4

from conversations.v1.conversations_service_pb2 import ORDER_ASCENDING

from tests.support.build import append, get, list_items, user_message
from tests.support.citus import Cluster
from tests.support.citus_faults import NEEDS_CITUS, by_worker, codes, writing
from tests.support.postgres import execute, fetch
from tests.support.readiness import FALSE_SECONDS, SERVING, wait_for
from tests.support.service import Service, list_all_items, running_service

pytestmark = NEEDS_CITUS


async def test_a_worker_is_down(cluster: Cluster, served: Service) -> None:
    """The conversations of the other worker live on, in bursts that ask for both too; then all are there again."""
    found = await by_worker(served)
    dead = cluster.workers[0]
    lost, living = found[dead.port], found[cluster.workers[1].port]
    stub = served.stub

    def reads(ids: list[str]) -> list[Awaitable[Any]]:
        return [make(each) for each in ids for make in (lambda each: stub.GetConversation(get(each)), read_items)]

    def read_items(each: str) -> Awaitable[Any]:
        return stub.ListItems(list_items(each))  # type: ignore[no-any-return]

    def appends(ids: list[str]) -> list[Awaitable[Any]]:
        return [stub.CreateItems(append(each, user_message("b"), request_id=str(uuid4()))) for each in ids]

    await asyncio.to_thread(dead.stop)
    try:
        await asyncio.sleep(0.5)
        for calls in (reads, appends):
            failing = asyncio.ensure_future(codes(calls(lost)))
            assert {"OK"} == await codes(calls(living))
            assert {"UNAVAILABLE"} == await failing
    finally:
        await asyncio.to_thread(dead.start)
    deadline = asyncio.get_running_loop().time() + 10
    while await codes([*reads(lost), *appends(lost)]) != {"OK"}:
        assert asyncio.get_running_loop().time() < deadline
    assert [] == await fetch(served.url, "SELECT * FROM pg_prepared_xacts")


async def test_a_worker_is_killed(cluster: Cluster, served: Service) -> None:
    """Five times under load: what was acknowledged is there, once and in order; the other worker serves all calls."""
    found = await by_worker(served, 24)
    killed, other = cluster.workers
    async with writing(served, found[killed.port]) as failing, writing(served, found[other.port]) as going:
        for _ in range(5):
            await asyncio.sleep(1)
            await asyncio.to_thread(killed.kill)
            await asyncio.sleep(0.3)
            await asyncio.to_thread(killed.start)
        await asyncio.sleep(1)
    assert {"UNAVAILABLE"} == {code for code, *_ in failing.told}
    assert not going.told
    assert all(map(len, failing.acknowledged.values()))
    assert {} == await failing.lost() | await going.lost()
    assert [] == await fetch(served.url, "SELECT * FROM pg_prepared_xacts")


async def test_a_start_while_a_worker_does_not_answer(cluster: Cluster) -> None:
    """It is left out of the checks, and the conversations of the other one are served."""
    frozen = cluster.workers[0]
    os.kill(frozen.pid, signal.SIGSTOP)
    try:
        async with running_service(cluster.url) as started:
            assert await wait_for(started, SERVING) < FALSE_SECONDS
    finally:
        os.kill(frozen.pid, signal.SIGCONT)


async def test_a_worker_joins(cluster: Cluster, served: Service) -> None:
    """Shards move to it while callers append: no call fails, and nothing is missing, doubled or out of place."""
    ids = [each for found in (await by_worker(served, 24)).values() for each in found]
    stop = asyncio.Event()
    counts = dict.fromkeys(ids, 1)

    async def write(mine: list[str]) -> None:
        while not stop.is_set():
            for conversation_id in mine:
                await served.stub.CreateItems(append(conversation_id, user_message("b"), request_id=str(uuid4())))
                counts[conversation_id] += 1

    writers = [asyncio.create_task(write(ids[number::8])) for number in range(8)]
    await cluster.add_worker()
    await execute(served.url, "SELECT citus_rebalance_start(shard_transfer_mode := 'force_logical')")
    await rebalanced(served)
    stop.set()
    await asyncio.gather(*writers)
    ports = await fetch(served.url, "SELECT DISTINCT nodeport FROM citus_shards WHERE citus_table_type = 'distributed'")
    assert 3 == len(ports)
    for conversation_id, count in counts.items():
        items = await list_all_items(served.stub, conversation_id, ORDER_ASCENDING)
        assert list(range(1, count + 1)) == [item.sequence for item in items]


async def rebalanced(served: Service, seconds: float = 240) -> None:
    """Returns when no shard moves any more."""
    async with asyncio.timeout(seconds):
        await execute(served.url, "SELECT citus_rebalance_wait()")
