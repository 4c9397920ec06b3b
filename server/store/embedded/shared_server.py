"""Several processes share a server: the first starts it, the last one to leave stops it.

Users hold a shared flock, decisions are taken under an exclusive one, and the kernel drops both when a process dies. A
server whose users were all killed runs on until the next one adopts it and leaves.
"""

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from server.store.embedded.errors import EmbeddedError, explain_os_errors
from server.store.embedded.folders import open_owned
from server.store.embedded.initdb import CLUSTER
from server.store.embedded.server import POLL_SECONDS, Server

_LOCK_SECONDS = 120.0  # to wait for another process that is starting or stopping the server
_WATCH_SECONDS, _MAX_PAUSE_SECONDS = (
    0.5,
    10.0,
)  # between two looks at the server; the pauses grow while it does not start

log = logging.getLogger(__package__)


@dataclass(frozen=True)
class RunningServer:
    """A server that answers queries; ``started`` is False if another process had started it before."""

    url: str
    data_dir: Path
    started: bool
    version: str


class SharedServer:
    """One process's share in a server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._joined = False
        self._lock = open_owned(server.data_dir / f"{CLUSTER}.lock", os.O_RDWR)
        self._users = open_owned(server.data_dir / f"{CLUSTER}.users", os.O_RDWR)

    async def join(self) -> RunningServer:
        """Becomes a user of the server, and starts it if it does not run.

        Raises:
            EmbeddedError: It cannot be started. The process is a user all the same: `leave` cleans up.
        """
        async with self._exclusive():
            self._joined = _try_lock(self._users, fcntl.LOCK_SH)  # succeeds: others hold it exclusively in a lock only
            found = await self.server.wait_until_ready()
            version = found or await self.server.start()
            return RunningServer(self.server.url, self.server.data_dir, found is None, version)

    async def keep_running(self) -> None:
        """Starts the server again whenever it has ended, until it is cancelled; of several users one does it.

        PostgreSQL repairs itself from its log then, as after any crash.
        """
        pause = _WATCH_SECONDS
        while True:
            await asyncio.sleep(pause)
            try:
                with explain_os_errors(self.server.data_dir):
                    await self._restart_if_ended()
            except EmbeddedError as error:
                log.warning("%s", error)  # it is tried again; its text is for the operator
                pause = min(pause * 2, _MAX_PAUSE_SECONDS)
            else:
                pause = _WATCH_SECONDS

    async def _restart_if_ended(self) -> None:
        if self.server.pid() is not None:
            return
        async with self._exclusive():
            if await self.server.wait_until_ready() is None:
                log.warning("the embedded database in %s has ended and is started again", self.server.data_dir)
                await self.server.start()

    async def leave(self) -> None:
        """Stops the server unless others use it: only the last user can make the shared lock exclusive."""
        try:
            if self._joined:
                async with self._exclusive():
                    if _try_lock(self._users, fcntl.LOCK_EX):
                        await self.server.stop()
                    fcntl.flock(self._users, fcntl.LOCK_UN)
        finally:
            os.close(self._users)
            os.close(self._lock)

    @asynccontextmanager
    async def _exclusive(self) -> AsyncIterator[None]:
        """Makes this the only process that starts or stops the server.

        Raises:
            EmbeddedError: Another one held the lock for `_LOCK_SECONDS`.
        """
        deadline = time.monotonic() + _LOCK_SECONDS
        while not _try_lock(self._lock, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                where = self.server.data_dir
                raise EmbeddedError(f"Another process keeps starting or stopping what is in {where}.")
            await asyncio.sleep(POLL_SECONDS)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)


def _try_lock(descriptor: int, kind: int) -> bool:
    """Returns whether the lock was got; failing to turn a shared one exclusive loses it, which is fine on leaving."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
