"""A server of a run: `python -m server` as a process that is killed, stopped and started again on its address."""

import asyncio
import json
import os
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_PLACE = re.compile(r"Conversation Service on (\S+?),")
_PATIENCE = 60.0  # seconds for a start on a machine that has other work


@dataclass
class Server:
    """One parent process with one worker or more; ``code`` is the folder that holds the package `server`.

    Attributes:
        http_address: Of the HTTP edge, if the settings have one; it is kept when the server starts again.
    """

    settings: dict[str, str]
    log: Path
    code: Path = ROOT
    address: str = "127.0.0.1:0"
    http_address: str = ""
    process: Process | None = None
    exits: list[int] = field(default_factory=list)  # exit codes of those that were asked to end
    _output: "asyncio.Task[None] | None" = None

    async def start(self) -> None:
        """Starts it and waits until it says where it listens.

        Raises:
            RuntimeError: It ended instead.
        """
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "server", "serve", "--listen", self.address),
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=log,
                env=self._environment(),
                cwd=self.code,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        async with asyncio.timeout(_PATIENCE):
            line = (await self.process.stdout.readline()).decode()
        if (match := _PLACE.match(line)) is None:
            raise RuntimeError(f"The server did not start: {line}{self.log.read_text(errors='replace')[-2000:]}")
        self.address = match[1]
        self._output = asyncio.create_task(_discard(self.process.stdout))
        if "http_listen" in self.settings and not self.http_address:
            self.http_address = self.settings["http_listen"] = await self._logged_http_address()

    async def _logged_http_address(self) -> str:
        async with asyncio.timeout(_PATIENCE):
            while True:
                for line in self.lines():
                    if line.get("event") == "http address":
                        return str(line["listen"])
                await asyncio.sleep(0.05)

    async def run_command(self, *arguments: str) -> None:
        """Runs another command of the same program to its end.

        Raises:
            RuntimeError: It failed.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "server", *arguments),
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
            env=self._environment(),
            cwd=self.code,
        )
        _, errors = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"{arguments}: {errors.decode()}")

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CONVERSATIONS_")}
        own = {f"CONVERSATIONS_{name.upper()}": value for name, value in self.settings.items()}
        paths = os.pathsep.join((str(self.code), str(ROOT / "generated")))
        return {**kept, "PYTHONPATH": paths, **own}

    @property
    def pid(self) -> int:
        """The parent process."""
        assert self.process is not None
        return self.process.pid

    def pids(self) -> list[int]:
        """It and its workers."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        with suppress(OSError):
            return [self.pid, *map(int, children.read_text().split())]
        return [self.pid]

    def workers(self) -> list[int]:
        """The processes that serve: its workers, or itself."""
        return self.pids()[1:] or [self.pid]

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the parent and to its workers."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    async def kill(self) -> None:
        """SIGKILL to the parent and its workers."""
        if self.process is not None and self.process.returncode is None:
            self.send(signal.SIGKILL)
            await self.process.wait()

    async def end(self) -> None:
        """SIGTERM, and time to drain; SIGKILL if that was not enough."""
        if self.process is None or self.process.returncode is not None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            async with asyncio.timeout(20):
                self.exits.append(await self.process.wait())
        except TimeoutError:
            self.exits.append(-9)
            await self.kill()

    def lines(self) -> list[dict[str, Any]]:
        """The lines of its log that are JSON."""
        found = []
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
        return [line for line in found if isinstance(line, dict)]


async def _discard(stream: asyncio.StreamReader) -> None:
    while await stream.read(4096):
        pass
