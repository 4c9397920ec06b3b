"""``python -m bench.watch.generator``: a process that watches or appends, so that its CPU time is not the server's.

It takes requests as lines of JSON on its standard input: the name of a method of `Watchers` or `Appenders`, and its
arguments. It answers each with a line: the result or the error, and how late its event loop was. It ends when its
input ends.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import uvloop

from bench.percentiles import percentile
from bench.watch.appenders import Appenders
from bench.watch.watchers import Watchers

LINE_BYTES = 2**28
_TICK_SECONDS = 0.01


class LoopLag:
    """How much later than asked the event loop continues a task, in milliseconds."""

    def __init__(self) -> None:
        self._lags: list[float] = []

    async def measure_forever(self) -> None:
        """Takes a value every 10 ms, until it is cancelled."""
        while True:
            due = time.monotonic() + _TICK_SECONDS
            await asyncio.sleep(_TICK_SECONDS)
            self._lags.append(max(0.0, time.monotonic() - due) * 1e3)

    def take(self) -> float:
        """Returns the 99th percentile since the last time."""
        lags, self._lags = self._lags, []
        return percentile(lags, 99) if lags else 0.0


async def generate() -> None:
    """Serves requests until the input ends."""
    loop, reader, lag = asyncio.get_running_loop(), asyncio.StreamReader(limit=LINE_BYTES), LoopLag()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    generators: Mapping[str, Any] = {"watchers": Watchers(), "appenders": Appenders()}
    measuring = asyncio.create_task(lag.measure_forever())
    while line := await reader.readline():
        print(json.dumps(await _answer(generators, json.loads(line)) | {"lag": lag.take()}), flush=True)
    measuring.cancel()


async def _answer(generators: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    method = getattr(generators[request["of"]], request["do"])
    try:
        return {"result": await method(**request["arguments"])}
    except Exception as error:  # noqa: BLE001 - whatever it is, the other process reports it
        return {"error": f"{request['do']}: {error!r}"}


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(generate())
