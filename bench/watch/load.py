"""The processes that watch and append, as the measurements see them."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bench.watch.generator import LINE_BYTES


class LoadFailed(Exception):
    """A process that makes load could not do what it was told; the text says why."""


class Load:
    """A process that runs `bench.watch.generator`.

    Attributes:
        pid: Of the process.
        lag: How late its event loop was between its last two answers, in milliseconds (99 %).
    """

    def __init__(self, process: Process, kind: str) -> None:
        self.pid = process.pid
        self.lag = 0.0
        self._process = process
        self._kind = kind

    async def ask(self, method: str, **arguments: Any) -> Any:
        """Has it run a method, and returns the result as JSON has it: a tuple is a list.

        Raises:
            LoadFailed: The method raised, or the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"of": self._kind, "do": method, "arguments": arguments}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        await self._process.stdin.drain()
        line = await self._process.stdout.readline()
        if not line:
            raise LoadFailed(f"The process of the {self._kind} ended during {method}.")
        answer = json.loads(line)
        self.lag = answer["lag"]
        if "error" in answer:
            raise LoadFailed(answer["error"])
        return answer["result"]


@asynccontextmanager
async def started_load(kind: str) -> AsyncIterator[Load]:
    """Runs a process of "watchers" or "appenders" while this is open."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.watch.generator"), stdin=PIPE, stdout=PIPE, env=environment, limit=LINE_BYTES
    )
    assert process.stdin is not None
    try:
        yield Load(process, kind)
    finally:
        process.stdin.close()
        await process.wait()
