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
from server.store.embedded.launch import ServerLog, launch
from server.store.embedded.os_user import OsUser
from server.store.embedded.postmaster import Postmaster, is_running
from server.store.embedded.sockets import create_private_folder, socket_dir_for, url_of

POLL_SECONDS = 0.02
SILENCE_SECONDS = 30.0  # without any sign of life from a starting server
_RECOVERY_SECONDS = 600.0  # of one that says it is replaying its log: stopped, it would begin that anew
_FAST_STOP_SECONDS, _IMMEDIATE_STOP_SECONDS = 60, 15

log = logging.getLogger(__package__)


class Server:
    """The server of a data folder; only the process that holds the lock of `SharedServer` may start or stop it.

    Args:
        data_dir: An absolute path; the folder is made if need be.

    Raises:
        EmbeddedError: The server's user cannot reach the folder.
    """

    def __init__(self, data_dir: Path) -> None:
        make_folder(data_dir)
        self.data_dir = data_dir
        self.cluster = data_dir / CLUSTER
        self.user = OsUser.for_cluster(data_dir, self.cluster)
        self.user.check_reach(data_dir, data_dir)
        self.log = ServerLog(data_dir)
        self._spawned: int | None = None
        self._last_sign_of_life = 0.0

    @property
    def url(self) -> str:
        """Where it listens, as it says itself: it may have been started under another name of the folder."""
        master = Postmaster.read(self.cluster)
        return url_of((master and master.socket_dir) or socket_dir_for(self.cluster))

    def pid(self) -> int | None:
        """Returns the server's process, whoever started it; None if it is not running."""
        master = Postmaster.read(self.cluster)
        uid = self.user.effective_uid
        if master and is_running(master.pid, master.cluster, uid):
            return master.pid
        return self._spawned if self._spawned and is_running(self._spawned, str(self.cluster), uid) else None

    async def wait_until_ready(self) -> str | None:
        """Waits until the server answers; returns its version, or None if none is running (any more).

        Raises:
            EmbeddedError: It gave no sign of life for `SILENCE_SECONDS`, or has been replaying its log for too long.
        """
        began = self._last_sign_of_life = time.monotonic()
        while True:
            if version := await self.query_version():
                return version
            if self.pid() is None:
                return None
            now = time.monotonic()
            if now - self._last_sign_of_life > SILENCE_SECONDS or now - began > _RECOVERY_SECONDS:
                raise EmbeddedError(f"The embedded database runs but does not answer. {self.log.tail()}")
            await asyncio.sleep(POLL_SECONDS)

    async def query_version(self) -> str | None:
        """Returns the version, by a real query; None while nothing listens or it is starting or stopping."""
        try:
            connection = await asyncpg.connect(self.url, timeout=5)
            try:
                return str(await connection.fetchval("SELECT current_setting('server_version')"))
            finally:
                await connection.close()
        except asyncpg.OperatorInterventionError:
            self._last_sign_of_life = time.monotonic()
        except (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError):
            pass
        return None

    async def start(self) -> str:
        """Starts the server, in a new cluster if there is none, and returns its version once it answers.

        Its process does not end with ours.

        Raises:
            EmbeddedError: It did not start; the text has the end of its log.
        """
        programs = await asyncio.to_thread(find_programs, self.data_dir, self.user)
        if not self.cluster.exists():
            await asyncio.to_thread(create_cluster, programs, self.cluster, self.user)
        self._launch(programs / "postgres")
        log.info("started the embedded database in %s", self.data_dir)
        version = await self.wait_until_ready()
        if version is None:
            raise EmbeddedError(f"The embedded database did not start. {self.log.tail()}")
        return version

    def _launch(self, postgres: Path) -> None:
        socket_dir = socket_dir_for(self.cluster)
        if socket_dir != self.cluster:
            create_private_folder(socket_dir, self.user)
        with self.log.open_for_start() as output:
            self._spawned = launch(postgres, self.cluster, socket_dir, self.user, output)

    async def stop(self) -> None:
        """Stops the server: a fast shutdown, or the immediate one, which is safe as a crash is, if that hangs.

        Never SIGKILL: it would leave child processes and shared memory behind.
        """
        pid = self.pid()
        if pid is None:
            return
        stopped = await self._signal_until_gone(signal.SIGINT, _FAST_STOP_SECONDS)
        if not (stopped or await self._signal_until_gone(signal.SIGQUIT, _IMMEDIATE_STOP_SECONDS)):
            log.error("the embedded database in %s does not stop (process %d)", self.data_dir, pid)
            return
        self._clean_up(pid)
        log.info("stopped the embedded database in %s", self.data_dir)

    async def _signal_until_gone(self, number: signal.Signals, seconds: float) -> bool:
        """Repeats the signal, which changes nothing: a server that has just been spawned still ignores it."""
        deadline = time.monotonic() + seconds
        while pid := self.pid():
            if time.monotonic() > deadline:
                return False
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            await asyncio.sleep(POLL_SECONDS)
        return True

    def _clean_up(self, pid: int) -> None:
        """Removes what an ended server leaves behind."""
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # as process 1 of a container we inherit it
        with suppress(OSError):
            if (short := socket_dir_for(self.cluster)) != self.cluster:
                short.rmdir()
