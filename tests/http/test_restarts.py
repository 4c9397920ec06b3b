"""Two processes on one HTTP address, restarted one after the other under the calls of an SDK."""

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from openai import AsyncOpenAI

from tests.support.commands import environment, start_command
from tests.support.postgres import fresh_database

CALLERS = 4


class Team:
    """A parent with two workers, and what they log."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The lines of an event."""
        text = self._log.read_text(encoding="utf-8").splitlines()
        return [line for line in (json.loads(each) for each in text if each[:1] == "{") if line["event"] == event]

    async def until(self, event: str, count: int) -> list[dict[str, Any]]:
        """The lines of an event once there are so many."""
        async with asyncio.timeout(60):
            while len(found := self.lines(event)) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return found


@asynccontextmanager
async def team(url: str, folder: Path) -> AsyncIterator[Team]:
    """Two workers that serve HTTP on a port of their own."""
    settings = {"listen": "127.0.0.1:0", "http_listen": "127.0.0.1:0", "workers": "2", "log_format": "json"}
    log = folder / "log"
    process = await start_command("serve", **environment(url, **settings, access_log="true"))
    assert process.stdout is not None
    assert process.stderr is not None

    async def copy(stream: asyncio.StreamReader) -> None:
        with log.open("wb", buffering=0) as file:
            while line := await stream.readline():
                file.write(line)

    copying = asyncio.create_task(copy(process.stderr))
    try:
        async with asyncio.timeout(60):
            assert await process.stdout.readline()
        yield Team(log)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        await copying


@pytest.mark.slow
async def test_a_rolling_restart(postgres: str, template: str, tmp_path: Path) -> None:
    """With its default retries and a key, an SDK sees no failed call, and each item is stored once."""
    async with fresh_database(postgres, template) as url, team(url, tmp_path) as both:
        addresses = {line["listen"] for line in await both.until("http address", 2)}
        (address,) = addresses
        ended, failed, appended = asyncio.Event(), Counter[str](), []
        async with AsyncOpenAI(base_url=f"http://{address}/v1", api_key="unused") as client:
            conversation = await client.conversations.create()

            async def call(name: int) -> None:
                number = 0
                while not ended.is_set():
                    text, number = f"{name} {number}", number + 1
                    items: Any = [{"role": "user", "content": text}]
                    key = {"Idempotency-Key": str(uuid4())}
                    try:
                        await client.conversations.items.create(conversation.id, items=items, extra_headers=key)
                        appended.append(text)
                    except Exception as error:  # noqa: BLE001 - whatever fails is counted
                        failed[repr(error)] += 1
                    await asyncio.sleep(0.005)

            async with asyncio.TaskGroup() as callers:
                for name in range(CALLERS):
                    callers.create_task(call(name))
                for number in range(2):
                    pids = {line["worker"]: line["pid"] for line in both.lines("worker started")}
                    os.kill(pids[number], signal.SIGTERM)
                    await both.until("http address", 3 + number)
                    await asyncio.sleep(0.5)
                ended.set()
            found: Any = client.conversations.items.list(conversation.id, order="asc", limit=100)
            texts = [item.content[0].text async for item in found]
        assert len(appended) > 50
        assert Counter() == failed
        assert sorted(appended) == sorted(texts)
        assert {0, 1} == {line["worker"] for line in both.lines("call") if line.get("protocol") == "http"}
