"""Two processes on one HTTP address, restarted one after the other under the calls of an SDK."""

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from openai import AsyncOpenAI

from tests.support.postgres import fresh_database
from tests.support.workers import eventually, team

CALLERS = 4


@pytest.mark.slow
async def test_a_rolling_restart(postgres: str, template: str, tmp_path: Path) -> None:
    """With its default retries and a key, an SDK sees no failed call, and each item is stored once."""
    async with (
        fresh_database(postgres, template) as url,
        team(url, tmp_path / "log", http_listen="127.0.0.1:0") as both,
    ):

        async def until_served(times: int) -> None:
            await eventually(lambda: len(both.lines("http address")) >= times)

        await until_served(2)
        (address,) = {line["listen"] for line in both.lines("http address")}
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
                    os.kill(both.pids()[number], signal.SIGTERM)
                    await until_served(3 + number)
                    await asyncio.sleep(0.5)
                ended.set()
            found: Any = client.conversations.items.list(conversation.id, order="asc", limit=100)
            texts = [item.content[0].text async for item in found]
        assert len(appended) > 50
        assert Counter() == failed
        assert sorted(appended) == sorted(texts)
        assert {0, 1} == {line["worker"] for line in both.lines("call") if line.get("protocol") == "http"}
