"""A service of several worker processes."""

import asyncio
import json
import os
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.commands import ROOT, environment

SOON = 20.0  # seconds; on an idle machine all of it takes less than two
START = re.compile(r"Conversation Service on (\S+), (.+)\n")


@dataclass(frozen=True)
class Team:
    """A parent, its workers and what they log."""

    process: Process
    address: str
    database: str
    log: Path
    url: str | None  # of the database

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The log's lines of an event."""
        text = self.log.read_text(encoding="utf-8")
        found = [json.loads(line) for line in text.splitlines(keepends=True) if line[:1] == "{" and line[-1:] == "\n"]
        return [line for line in found if line["event"] == event]

    def pids(self) -> dict[int, int]:
        """The newest process of each worker."""
        return {line["worker"]: line["pid"] for line in self.lines("worker started")}

    def calls(self) -> Counter[int]:
        """How many calls each worker has answered."""
        return Counter(line["worker"] for line in self.lines("call") if line["code"] == "OK")

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int | None, str]:
        """Exit code and the rest of the output."""
        self.process.send_signal(number)
        async with asyncio.timeout(SOON):
            output, _ = await self.process.communicate()
        return self.process.returncode, output.decode()


@asynccontextmanager
async def team(url: str | None, log: Path, listen: str = "127.0.0.1:0", **settings: str) -> AsyncIterator[Team]:
    """Two workers, once they serve; they are killed if they still run at the end."""
    values = {"log_level": "debug", "log_format": "json", "grace_seconds": "15", "purge_every_minutes": "0"}
    variables = environment(url, **{**values, **settings})
    command = (sys.executable, "-m", "server", "serve", "--listen", listen, "--workers", "2")
    with log.open("a") as errors:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=DEVNULL, stdout=PIPE, stderr=errors, env=variables, cwd=ROOT
        )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(3 * SOON):
            line = (await process.stdout.readline()).decode()
        match = START.fullmatch(line)
        assert match, line + log.read_text(encoding="utf-8")
        yield Team(process, match[1], match[2], log, url)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        for pid in re.findall(r'"pid": (\d+)', log.read_text(encoding="utf-8")):
            if b"server.app.worker" in command_line(int(pid)):
                os.kill(int(pid), signal.SIGKILL)
        await process.wait()


async def eventually(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """Waits until it does, for a while."""
    async with asyncio.timeout(SOON):
        while True:
            held = holds()
            if held if isinstance(held, bool) else await held:
                return
            await asyncio.sleep(0.05)


def command_line(pid: int) -> bytes:
    """Nothing for a process that has ended, also if nobody has waited for it."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def runs(pid: int) -> bool:
    """Whether there is such a process."""
    return bool(command_line(pid))
