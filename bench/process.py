"""A service in a process of its own."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

_PLACE = re.compile(r" on (127\.0\.0\.1:\d+),")


class StartFailed(Exception):
    """The service ended before it said where it listens; the text is what it wrote last."""


@dataclass(frozen=True)
class Started:
    """Where it listens and who it is."""

    address: str
    pid: int


@asynccontextmanager
async def started(module: Sequence[str], settings: Mapping[str, str], log: Path) -> AsyncIterator[Started]:
    """``python -m`` ``module``, from the line that names its address until this is left; errors go to ``log``.

    Raises:
        StartFailed: It wrote no such line.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **settings}
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *module, stdout=asyncio.subprocess.PIPE, stderr=errors, env=environment
        )
        assert process.stdout is not None
        try:
            found = _PLACE.search((await process.stdout.readline()).decode())
            if found is None:
                raise StartFailed(f"{module[0]} did not start: {log.read_text(errors='replace')[-2000:]}")
            yield Started(found[1], process.pid)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.wait()
