"""Clusters of Citus that are broken, and callers that go on meanwhile."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc.aio
import pytest
from conversations.v1.conversations_service_pb2 import ORDER_ASCENDING

from server.store.distribution import distribute
from server.store.migrate import migrate
from tests.support.build import append, create, user_message
from tests.support.citus import Cluster, running_cluster
from tests.support.postgres import fetch
from tests.support.problems import problem_of
from tests.support.service import Service, list_all_items

BIN = "CITUS_BIN"  # an environment variable: the programs of a PostgreSQL for which Citus is installed
NEEDS_CITUS = [
    pytest.mark.slow,
    pytest.mark.skipif(BIN not in os.environ, reason=f"needs {BIN}, PostgreSQL with Citus"),
]
_PLACE = "SELECT nodeport FROM citus_shards WHERE shardid = get_shard_id_for_distribution_column('conversations', '{}')"


@asynccontextmanager
async def distributed_cluster() -> AsyncIterator[Cluster]:
    """A coordinator and two workers, with distributed tables."""
    async with running_cluster(Path(os.environ[BIN])) as cluster:
        await migrate(cluster.url)
        await distribute(cluster.url, 8)
        yield cluster


async def by_worker(service: Service, count: int = 40) -> dict[int, list[str]]:
    """New conversations, by the port of the worker that has them."""
    made = [(await service.stub.CreateConversation(create(user_message("a")))).id for _ in range(count)]
    found: dict[int, list[str]] = {}
    for conversation_id in made:
        (row,) = await fetch(service.url, _PLACE.format(conversation_id))
        found.setdefault(row["nodeport"], []).append(conversation_id)
    return found


async def codes(calls: list[Awaitable[Any]]) -> set[str]:
    """The codes that calls end with."""

    async def code(call: Awaitable[Any]) -> str:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    return set(await asyncio.gather(*map(code, calls)))


async def until(ask: Callable[[], Awaitable[Any]], seconds: float = 20) -> Any:
    """What ``ask`` returns as soon as that is true."""
    async with asyncio.timeout(seconds):
        while not (found := await ask()):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)
    return found


@dataclass
class Writers:
    """Callers that append one after the other, each to a conversation of its own, and repeat what fails.

    Attributes:
        told: How often calls ended with which code, reason and details.
        longest: Seconds from the first attempt of an append until it was acknowledged.
        acknowledged: The texts of the appends that succeeded, by conversation.
    """

    service: Service
    told: Counter[tuple[str, ...]] = field(default_factory=Counter)
    longest: float = 0.0
    acknowledged: dict[str, list[str]] = field(default_factory=dict)

    async def write(self, conversation_id: str) -> None:
        """Appends until it is cancelled."""
        mine = self.acknowledged.setdefault(conversation_id, [])
        while True:
            text, began = f"{len(mine)}", time.monotonic()
            request = append(conversation_id, user_message(text), request_id=str(uuid4()))
            while not await self._try(request):  # noqa: ASYNC110 - a caller who waits and repeats
                await asyncio.sleep(0.05)
            mine.append(text)
            self.longest = max(self.longest, time.monotonic() - began)

    async def _try(self, request: Any) -> bool:
        try:
            await self.service.stub.CreateItems(request, timeout=10)
        except grpc.aio.AioRpcError as error:
            problem = problem_of(error)
            self.told[(problem.code, problem.reason, *problem.details)] += 1
            return False
        return True

    async def lost(self) -> dict[str, list[str]]:
        """The conversations that do not hold what was acknowledged, in order and once; at most one append more."""
        wrong: dict[str, list[str]] = {}
        for conversation_id, texts in self.acknowledged.items():
            items = await list_all_items(self.service.stub, conversation_id, ORDER_ASCENDING)
            stored = [item.message.content[0].input_text.text for item in items[1:]]
            if texts != stored[: len(texts)] or len(stored) > len(texts) + 1:
                wrong[conversation_id] = stored
        return wrong


@asynccontextmanager
async def writing(service: Service, conversation_ids: Iterable[str]) -> AsyncIterator[Writers]:
    """Writers meanwhile, one for each conversation."""
    writers = Writers(service)
    tasks = [asyncio.create_task(writers.write(each)) for each in conversation_ids]
    try:
        yield writers
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in ended), ended
