"""Replicas are restarted one after the other under load: with the shipped service config nobody notices."""

import asyncio
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc.aio
import pytest
from conversations.v1.conversations_service_pb2 import ORDER_ASCENDING
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub

from server.errors import ShuttingDown
from server.transport.shutdown import HOLD_SECONDS
from tests.support.build import append, create, get, list_items, text_of, user_message
from tests.support.commands import address_in, environment, start_interpreter
from tests.support.postgres import fresh_database

SERVICE_CONFIG = (Path(__file__).parents[2] / "deploy" / "service_config.json").read_text(encoding="utf-8")
CALLERS = 16
ROUNDS = 5  # in which each server is restarted once


@dataclass
class Replica:
    """A server process that is ended and started again on its address."""

    url: str
    address: str = "127.0.0.1:0"
    process: Process | None = None

    async def start(self) -> None:
        """Starts it, and waits until it serves."""
        variables = environment(self.url, listen=self.address, purge_every_minutes="0")
        self.process = await start_interpreter("serve", **variables)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = (await self.process.stdout.readline()).decode()
        assert line, (await self.process.stderr.read()).decode()
        self.address = address_in(line)

    async def restart(self) -> None:
        """Ends it as Kubernetes does, and starts the next."""
        assert self.process is not None
        self.process.terminate()
        async with asyncio.timeout(20):
            await self.process.communicate()
        assert 0 == self.process.returncode
        await self.start()


@asynccontextmanager
async def replicas(url: str) -> AsyncIterator[list[Replica]]:
    """Two of them."""
    both = [Replica(url), Replica(url)]
    try:
        for each in both:
            await each.start()
        yield both
    finally:
        for each in both:
            if each.process is not None:
                with suppress(ProcessLookupError):
                    each.process.kill()
                await each.process.communicate()


@asynccontextmanager
async def calling(stub: Any, conversation_id: str) -> AsyncIterator[tuple[Counter[str], list[str]]]:
    """Codes of the calls that many callers make meanwhile, and what was appended."""
    codes: Counter[str] = Counter()
    appended: list[str] = []
    ending = asyncio.Event()

    async def once(call: Any) -> bool:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            codes[error.code().name] += 1
            await asyncio.sleep(0.005)  # a caller that fails at once would count nothing but itself
            return False
        codes["OK"] += 1
        return True

    async def caller(name: str) -> None:
        number = 0
        while not ending.is_set():
            await once(stub.GetConversation(get(conversation_id)))
            await asyncio.sleep(0.005)  # the machine is for the restarts, not for as many calls as it can take
            text, number = f"{name} {number}", number + 1
            if await once(stub.CreateItems(append(conversation_id, user_message(text), request_id=str(uuid4())))):
                appended.append(text)

    async with asyncio.TaskGroup() as group:
        for name in range(CALLERS):
            group.create_task(caller(str(name)))
        try:
            yield codes, appended
        finally:
            ending.set()


async def texts_of(stub: Any, conversation_id: str) -> list[str]:
    """Every item of a conversation, as text."""
    texts: list[str] = []
    token = ""
    while True:
        request = list_items(conversation_id, page_size=100, page_token=token, order=ORDER_ASCENDING)
        page = await stub.ListItems(request)
        texts += map(text_of, page.items)
        token = page.next_page_token
        if not token:
            return texts


@pytest.mark.slow
@pytest.mark.parametrize("configured", [pytest.param(True, id="service config"), pytest.param(False, id="bare")])
async def test_rolling_restart(postgres: str, template: str, *, configured: bool) -> None:
    """With the config no call fails and each append is there once; without it, what fails is UNAVAILABLE."""
    options = [("grpc.service_config", SERVICE_CONFIG)] if configured else [("grpc.enable_retries", 0)]
    async with fresh_database(postgres, template) as url, replicas(url) as both:
        target = "ipv4:" + ",".join(each.address for each in both)
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            stub = ConversationsServiceStub(channel)
            made = await stub.CreateConversation(create())
            async with calling(stub, made.id) as (codes, appended):
                for _ in range(ROUNDS):
                    for each in both:
                        await each.restart()
                        await asyncio.sleep(0.3)
            stored = await texts_of(stub, made.id)
        assert codes["OK"] > 200 * ROUNDS
        if configured:
            assert {"OK"} == set(codes)
            assert sorted(appended) == sorted(stored)
        else:
            assert {"OK", "UNAVAILABLE"} == set(codes)  # some do fail, or the other case proves nothing
            assert set(appended) <= set(stored)
            assert len(stored) == len(set(stored))


def test_the_pushback_fits_the_window() -> None:
    """A client that is told to wait comes back when the refusal is over, not into it again."""
    assert ShuttingDown.retry_after_ms is not None
    assert ShuttingDown.retry_after_ms > HOLD_SECONDS * 1000
