"""Several processes share a server: the first starts it, the last one to leave stops it.

Users hold a shared flock, decisions are taken under an exclusive one, and the kernel drops both when a
process dies. A server whose users were all killed runs on until the next one adopts it and leaves.
"""

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from server.store.embedded.errors import EmbeddedError
from server.store.embedded.folders import open_owned
from server.store.embedded.initdb import CLUSTER
from server.store.embedded.server import STEP, Server

_TURN = 120.0  # seconds to wait for another process that is starting or stopping the server


@dataclass(frozen=True)
class Embedded:
    """A server that answers queries; ``started`` is False if another process had started it before."""

    url: str
    data_dir: Path
    started: bool
    version: str


class Share:
    """One process's share in a server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._joined = False
        self._lock = open_owned(server.data_dir / f"{CLUSTER}.lock", os.O_RDWR)
        self._users = open_owned(server.data_dir / f"{CLUSTER}.users", os.O_RDWR)

    async def enter(self) -> Embedded:
        """Count as a user first, so that a failure below is cleaned up by leave()."""
        async with self._turn():
            self._joined = _locked(self._users, fcntl.LOCK_SH)  # always: exclusive is only held in a turn
            found = await self.server.ready()
            version = found or await self.server.start()
            return Embedded(self.server.url, self.server.data_dir, found is None, version)

    async def leave(self) -> None:
        """Stop the server unless others use it: only the last user can make the shared lock exclusive."""
        try:
            if self._joined:
                async with self._turn():
                    if _locked(self._users, fcntl.LOCK_EX):
                        await self.server.stop()
                    fcntl.flock(self._users, fcntl.LOCK_UN)
        finally:
            os.close(self._users)
            os.close(self._lock)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Be the only process that starts or stops this server."""
        deadline = time.monotonic() + _TURN
        while not _locked(self._lock, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                where = self.server.data_dir
                raise EmbeddedError(f"Another process keeps starting or stopping what is in {where}.")
            await asyncio.sleep(STEP)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)


def _locked(descriptor: int, kind: int) -> bool:
    """Try to get the lock; failing to turn a shared one exclusive loses it (which is fine on leaving)."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
