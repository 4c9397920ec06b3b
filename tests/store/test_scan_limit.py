"""Reads that no index narrows take neither the connections of other calls nor those of other callers."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import pytest
from conversations.v1.conversations_service_pb2 import ListConversationsRequest

from server.errors import Overloaded
from server.store.connection.execution import Execute, Execution, Rows
from server.store.connection.scan_limit import ScanLimit
from tests.support.access import ANN, BOB, EVE, EVERYTHING, CallerClient, GuardedService, guarded_service
from tests.support.build import delete_many, get, list_items
from tests.support.problems import problem
from tests.support.service import intercepted

FILTER = 'metadata.topic = "none"'
LIST = ListConversationsRequest(filter=FILTER)
# Each way to read many rows and answer with few.
SCANS: dict[str, tuple[str, Any]] = {
    "a filtered list": ("ListConversations", LIST),
    "a list that only the policy narrows": ("ListConversations", ListConversationsRequest()),
    "a filtered list of items": ("ListItems", list_items("conv_scanned", filter='role = "none"')),
    "a delete by a filter": ("DeleteConversations", delete_many(FILTER)),
    "its count": ("DeleteConversations", delete_many(FILTER, validate_only=True)),
}
# Everybody's rows but the caller's own, which lie in no index range.
UNBOUNDED = [{"permit": {"actions": EVERYTHING}, "unless": "user is owner"}]


@pytest.fixture
async def small(postgres: str, template: str) -> AsyncIterator[GuardedService]:
    """A service with four connections: two for scans, one of them for each caller."""
    async with guarded_service(postgres, template, pool_size=4) as served:
        served.obey(UNBOUNDED)
        await served.row("rita", conversation_id="conv_scanned")
        yield served


@contextmanager
def endless_scans(service: GuardedService) -> Iterator[asyncio.Semaphore]:
    """The statements of lists and deletes hold their connections until the end; counts those that have begun."""
    begun, end = asyncio.Semaphore(0), asyncio.Event()

    async def hold(execute: Execute, execution: Execution) -> Rows:
        if {"start_time", "after_time"} & set(execution.statement.names):
            begun.release()
            await end.wait()
        return await execute(execution)

    with intercepted(service.database, hold):
        yield begun
        end.set()


def call(client: CallerClient, scan: tuple[str, Any]) -> Any:
    """Begins a scan."""
    method, request = scan
    return asyncio.ensure_future(getattr(client, method)(request))


@pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS)
async def test_one_more_of_a_caller(small: GuardedService, scan: tuple[str, Any]) -> None:
    """While a caller's scan runs its next one is refused after a second; others, and other calls, are not."""
    with endless_scans(small) as begun:
        first = call(small.by(ANN), scan)
        await begun.acquire()
        told = await problem(call(small.by(ANN), scan))
        assert ("RESOURCE_EXHAUSTED", "RATE_LIMITED", "1") == (told.code, told.reason, told.metadata["limit"])
        assert "RetryInfo" in told.details
        others = call(small.by(BOB), scan)
        await begun.acquire()
        assert "conv_scanned" == (await small.by(ANN).GetConversation(get("conv_scanned"))).id
    await asyncio.gather(first, others)


async def test_one_more_of_all(small: GuardedService) -> None:
    """While as many scans run as may, those of further callers are refused, and no other call."""
    with endless_scans(small) as begun:
        running = [call(small.by(who), SCANS["a filtered list"]) for who in (ANN, BOB)]
        for _ in running:
            await begun.acquire()
        told = await problem(call(small.by(EVE), SCANS["a filtered list"]))
        assert ("RESOURCE_EXHAUSTED", "2") == (told.code, told.metadata["limit"])
        await asyncio.gather(*(small.by(EVE).GetConversation(get("conv_scanned")) for _ in range(8)))
    await asyncio.gather(*running)


async def test_a_list_of_a_range_is_no_scan(small: GuardedService) -> None:
    """What an index narrows is not limited: rows of one owner, or of the whole tenant, all of which are shown."""
    plain = ("ListConversations", ListConversationsRequest())
    for rules in (
        [{"permit": {"actions": EVERYTHING}, "when": "user is owner"}],
        [{"permit": {"actions": EVERYTHING}}],
    ):
        small.obey(rules)
        with endless_scans(small) as begun:
            running = [call(small.by(ANN), plain) for _ in range(3)]
            for _ in running:
                await begun.acquire()
        await asyncio.gather(*running)


async def test_places_come_back() -> None:
    """A caller that leaves, while it waits or while its scan runs, leaves its place; nothing is kept of it."""
    limit = ScanLimit(4, wait=0.05)

    async def scan(caller: str) -> None:
        async with limit.place(caller):
            await asyncio.Event().wait()

    for _ in range(3):
        tasks = [asyncio.ensure_future(scan(caller)) for caller in ("a", "a", "b", "c")]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        del task, tasks
    async with AsyncExitStack() as stack:
        for caller in ("a", "b"):
            await stack.enter_async_context(limit.place(caller))
        for caller, at_most in (("a", 1), ("c", 2)):
            with pytest.raises(Overloaded, match=f"More than {at_most} "):
                await stack.enter_async_context(limit.place(caller))
    gc.collect()  # the errors above have frames
    assert not limit._callers


@pytest.mark.parametrize(("size", "limits"), [(1, (1, 1)), (2, (1, 1)), (4, (2, 1)), (10, (5, 2)), (40, (20, 10))])
def test_the_sizes(size: int, limits: tuple[int, int]) -> None:
    """Half of the connections, and half of that for one caller."""
    limit = ScanLimit(size, wait=1)
    assert limits == (limit.limit, limit.limit_per_caller)
