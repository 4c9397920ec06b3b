"""Running a service in a separate process."""

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
    """The service ended before it printed its address; the text is its last output."""


@dataclass(frozen=True)
class Started:
    """The address and the process id of a service."""

    address: str
    pid: int


@asynccontextmanager
async def started(module: Sequence[str], settings: Mapping[str, str], log: Path) -> AsyncIterator[Started]:
    """Runs ``python -m`` ``module`` while this is open, once it has printed its address; errors go to ``log``.

    Raises:
        StartFailed: It printed no address.
    """
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **settings}
    async with started_program((sys.executable, "-m", *module), environment, log) as process:
        yield process


@asynccontextmanager
async def started_program(command: Sequence[str], settings: Mapping[str, str], log: Path) -> AsyncIterator[Started]:
    """Runs a program, as `started` runs a module.

    Raises:
        StartFailed: It printed no address.
    """
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=errors, env={**os.environ, **settings}
        )
        assert process.stdout is not None
        try:
            found = _PLACE.search((await process.stdout.readline()).decode())
            if found is None:
                raise StartFailed(f"{' '.join(command)[:200]} did not start: {log.read_text(errors='replace')[-2000:]}")
            yield Started(found[1], process.pid)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.wait()
