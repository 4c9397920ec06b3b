"""Programs that are no part of this Python, and a server that is restarted under them."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.commands import ROOT, environment, program_path

BUILD = ROOT / "build" / "interop"
BUILD_SECONDS = 600.0  # on a machine that has nothing of it yet
_START = re.compile(r"Conversation Service on (127\.0\.0\.1:\d+) and unix:")


async def build_problem(steps: Iterable[tuple[str, ...]], folder: Path) -> str:
    """Builds a program; what a tool says if it fails, else nothing."""
    for command in steps:
        async with asyncio.timeout(BUILD_SECONDS):
            code, output = await output_of(*command, folder=folder)
        if code != 0:
            return f"{' '.join(command)}: exit code {code}\n{output}"
    return ""


async def output_of(*command: str, folder: Path) -> tuple[int | None, str]:
    """Exit code and output of a command; buf and the plugins of this Python are on its path."""
    variables = {**os.environ, "PATH": program_path(), "CARGO_TARGET_DIR": f"{BUILD}/rust"}
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=STDOUT, env=variables, cwd=folder)
    async with ending(process):
        output, _ = await process.communicate()
    return process.returncode, output.decode(errors="replace")


async def run_program(*command: str, seconds: float, folder: Path = ROOT) -> str:
    """The output of a program that has to end well, within so many seconds; it has nothing of this Python."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=STDOUT, cwd=folder, env=kept)
    async with ending(process), asyncio.timeout(seconds):
        output, _ = await process.communicate()
    assert 0 == process.returncode, output.decode(errors="replace")
    return output.decode()


@asynccontextmanager
async def ending(process: Process) -> AsyncIterator[Process]:
    """It is killed if it still runs at the end."""
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@dataclass
class RestartableServer:
    """A server process on two addresses, which it has again after a restart."""

    variables: dict[str, str]
    log: Path
    tcp: str
    socket: str
    process: Process | None = None

    async def start(self) -> None:
        """Returns when it serves."""
        listen = ("--listen", self.tcp, "--listen", self.socket)
        with self.log.open("a") as errors:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "server", "serve", *listen),
                stdout=PIPE,
                stderr=errors,
                env=self.variables,
                cwd=ROOT,
            )
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            line = (await self.process.stdout.readline()).decode()
        match = _START.match(line)
        assert match, line + self.log.read_text(encoding="utf-8")
        self.tcp = match[1]

    async def stop(self, number: signal.Signals) -> None:
        """Ends it: by SIGTERM as an orchestrator does, or by SIGKILL as the kernel does."""
        assert self.process is not None
        self.process.send_signal(number)
        async with asyncio.timeout(30):
            await self.process.communicate()
        expected = -signal.SIGKILL if number is signal.SIGKILL else 0
        assert expected == self.process.returncode, self.log.read_text(encoding="utf-8")


@asynccontextmanager
async def restartable_server(url: str, folder: Path, **settings: str) -> AsyncIterator[RestartableServer]:
    """A server on the database at ``url``; its socket and its log are in ``folder``."""
    served = RestartableServer(environment(url, **settings), folder / "log", "127.0.0.1:0", f"unix:{folder}/socket")
    try:
        await served.start()
        yield served
    finally:
        if served.process:
            async with ending(served.process):
                pass
