"""What a run needs: a PostgreSQL, two servers on one database, and the processes that make load."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import grpc.aio

from bench.cpu import family_seconds
from bench.grpc_target import target
from bench.operations import own
from bench.postgres import Postgres, private_postgres
from bench.process import Started, started
from bench.watch.load import Load, started_load
from bench.watch.usage import Meter

DATABASE = "watch"
_MOST_WATCHES = "20000"  # more than any measurement opens
_QUIET_SHARE = 0.15  # of a core, below which a server is said to do nothing but hold its watches
_PATIENCE_SECONDS = 20.0


@dataclass
class Scene:
    """What runs while measurements are taken.

    Attributes:
        postgres: With its database `DATABASE`.
        url: Of the database.
        holder: The server whose watches are measured.
        other: Another server on the same database.
        watchers: Watch the holder.
        appenders: Append through either.
        quiet: Seconds for which a server must have done nothing before a measurement.
        warnings: What makes figures doubtful, with what it was that was measured.
    """

    postgres: Postgres
    url: str
    folder: Path
    holder: Started
    other: Started
    watchers: Load
    appenders: Load
    quiet: float
    warnings: dict[str, str] = field(default_factory=dict)
    _numbers: "count[int]" = field(default_factory=count)

    def meter(self) -> Meter:
        """Begins to measure what the processes use."""
        servers = (self.holder.pid, self.other.pid)
        return Meter(servers, self.postgres.pid, (self.watchers.pid, self.appenders.pid))

    async def conversations(self, number: int) -> list[str]:
        """Creates empty conversations, and returns their ids."""
        async with grpc.aio.insecure_channel(self.other.address) as channel:
            made = await own(0)(target("", self.other.pid, channel), number)
        await self.postgres.settle(DATABASE)
        return made

    @asynccontextmanager
    async def fresh_server(self) -> AsyncIterator[Started]:
        """Runs one more server on the database, which has not watched anything yet."""
        log = self.folder / f"fresh-{next(self._numbers)}.log"
        async with started(["server"], _settings(self.url), log) as server:
            yield server

    @asynccontextmanager
    async def watched(self, conversations: Sequence[str], server: Started | None = None) -> AsyncIterator[None]:
        """Watches conversations through the holder or another server, which is quiet when this opens and after it."""
        if not conversations:
            yield
            return
        server = server or self.holder
        await self.watchers.ask("open", address=server.address, conversations=conversations)
        await self._wait_until_quiet(server)
        try:
            yield
        finally:
            await self.watchers.ask("close")
            await self._wait_until_quiet(server)

    async def _wait_until_quiet(self, server: Started) -> None:
        until = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < until:
            before = family_seconds(server.pid)
            await asyncio.sleep(self.quiet)
            if family_seconds(server.pid) - before < _QUIET_SHARE * self.quiet:
                return
        self.warnings["quiet"] = f"A server was still busy {_PATIENCE_SECONDS:.0f} s after its watches had changed."


def _settings(url: str) -> dict[str, str]:
    return {
        "CONVERSATIONS_DATABASE_URL": url,
        "CONVERSATIONS_LISTEN": "127.0.0.1:0",
        "CONVERSATIONS_MAX_WATCHES": _MOST_WATCHES,
        "CONVERSATIONS_MAX_WATCHES_PER_PRINCIPAL": _MOST_WATCHES,
    }


@asynccontextmanager
async def opened_scene(folder: Path, quiet: float) -> AsyncIterator[Scene]:
    """Starts everything in a folder, and ends it when this closes; ``quiet`` is that of `Scene`."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        postgres = await enter(private_postgres(folder))
        url = await postgres.database(DATABASE)
        holder = await enter(started(["server"], _settings(url), folder / "holder.log"))
        other = await enter(started(["server"], _settings(url), folder / "other.log"))
        watchers, appenders = await enter(started_load("watchers")), await enter(started_load("appenders"))
        yield Scene(postgres, url, folder, holder, other, watchers, appenders, quiet)
