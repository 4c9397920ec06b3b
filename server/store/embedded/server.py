"""The server of a data folder: whether it runs, starting it, waiting for it, stopping it."""

import asyncio
import logging
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import asyncpg

from server.store.embedded.binaries import find_programs
from server.store.embedded.errors import EmbeddedError
from server.store.embedded.folders import make_folder
from server.store.embedded.initdb import CLUSTER, create_cluster
from server.store.embedded.launch import Log, launch
from server.store.embedded.os_user import Identity
from server.store.embedded.postmaster import Postmaster, runs
from server.store.embedded.sockets import make_private, socket_dir_for, url_of

STEP = 0.02  # seconds between two looks at what is being waited for
SILENCE = 30.0  # seconds without any sign of life from a starting server
_RECOVERY = 600.0  # seconds for one that says it is replaying its log: stopped, it would begin that anew

log = logging.getLogger(__package__)


class Server:
    """Started and stopped only by the process whose turn it is. The data folder must be absolute."""

    def __init__(self, data_dir: Path) -> None:
        make_folder(data_dir)
        self.data_dir = data_dir
        self.cluster = data_dir / CLUSTER
        self.identity = Identity.of(data_dir, self.cluster)
        self.identity.check_reach(data_dir, data_dir)
        self.log = Log(data_dir)
        self._spawned: int | None = None
        self._heard = 0.0

    @property
    def url(self) -> str:
        """The running server knows best: it may have been started under another name of the folder."""
        master = Postmaster.of(self.cluster)
        return url_of((master and master.socket_dir) or socket_dir_for(self.cluster))

    def pid(self) -> int | None:
        """The server's process, ours or adopted; None if it is not running."""
        master = Postmaster.of(self.cluster)
        user = self.identity.user
        if master and runs(master.pid, master.cluster, user):
            return master.pid
        return self._spawned if self._spawned and runs(self._spawned, str(self.cluster), user) else None

    async def ready(self) -> str | None:
        """Wait until the server answers and give its version; None if none is running (any more)."""
        began = self._heard = time.monotonic()
        while True:
            if version := await self.ask():
                return version
            if self.pid() is None:
                return None
            now = time.monotonic()
            if now - self._heard > SILENCE or now - began > _RECOVERY:
                raise EmbeddedError(f"The embedded database runs but does not answer. {self.log.tail()}")
            await asyncio.sleep(STEP)

    async def ask(self) -> str | None:
        """The version, by a real query; None while nothing listens or it is starting or stopping."""
        try:
            connection = await asyncpg.connect(self.url, timeout=5)
            try:
                return str(await connection.fetchval("SELECT current_setting('server_version')"))
            finally:
                await connection.close()
        except asyncpg.OperatorInterventionError:
            self._heard = time.monotonic()
        except (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError):
            pass
        return None

    async def start(self) -> str:
        """Create the cluster if there is none; its server outlives us if others still use it. The version."""
        programs = await asyncio.to_thread(find_programs, self.data_dir, self.identity)
        if not self.cluster.exists():
            await asyncio.to_thread(create_cluster, programs, self.cluster, self.identity)
        self._launch(programs / "postgres")
        log.info("started the embedded database in %s", self.data_dir)
        version = await self.ready()
        if version is None:
            raise EmbeddedError(f"The embedded database did not start. {self.log.tail()}")
        return version

    def _launch(self, postgres: Path) -> None:
        socket_dir = socket_dir_for(self.cluster)
        if socket_dir != self.cluster:
            make_private(socket_dir, self.identity)
        with self.log.opened() as output:
            self._spawned = launch(postgres, self.cluster, socket_dir, self.identity, output)

    async def stop(self) -> None:
        """Fast shutdown, or the crash-safe immediate one if that hangs; never SIGKILL, which leaves parts."""
        pid = self.pid()
        if pid is None:
            return
        if not (await self._ended(signal.SIGINT, 60) or await self._ended(signal.SIGQUIT, 15)):
            log.error("the embedded database in %s does not stop (process %d)", self.data_dir, pid)
            return
        self._tidy(pid)
        log.info("stopped the embedded database in %s", self.data_dir)

    async def _ended(self, number: signal.Signals, patience: float) -> bool:
        """Repeats the signal, which changes nothing: a server that has just been spawned still ignores it."""
        deadline = time.monotonic() + patience
        while pid := self.pid():
            if time.monotonic() > deadline:
                return False
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            await asyncio.sleep(STEP)
        return True

    def _tidy(self, pid: int) -> None:
        """What an ended server leaves behind."""
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # as process 1 of a container we inherit it
        with suppress(OSError):
            if (short := socket_dir_for(self.cluster)) != self.cluster:
                short.rmdir()
