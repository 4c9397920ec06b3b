"""A PostgreSQL of a run, as a process that may be killed, stopped and started again."""

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from server.store.embedded.binaries import find_programs
from server.store.embedded.folders import chown_tree, make_folder
from server.store.embedded.initdb import CLUSTER, create_cluster
from server.store.embedded.os_user import OsUser
from server.store.embedded.sockets import PORT, socket_dir_for, url_of

ROLE = "conversations"  # whom the service is in the database; no superuser
DATABASE = "conversations"
_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "60",
    "shared_buffers": "64MB",
    "log_checkpoints": "off",
    "log_min_error_statement": "panic",
    "unix_socket_permissions": "0777",  # of a folder that only this run's user enters
}
_PATIENCE = 30.0  # seconds for a start, with the recovery of a crash


@dataclass
class Programs:
    """PostgreSQL's programs, and a cluster that was made once, to copy."""

    folder: Path
    cluster: Path
    user: OsUser

    @classmethod
    async def find(cls, folder: Path) -> "Programs":
        """Makes the cluster in ``folder``."""
        make_folder(folder)
        user = OsUser.for_cluster(folder, folder / CLUSTER)
        programs = await asyncio.to_thread(find_programs, folder, user)
        await asyncio.to_thread(create_cluster, programs, folder / CLUSTER, user)
        return cls(programs, folder / CLUSTER, user)

    def run(self, program: str, *arguments: str) -> None:
        """Runs one of the programs to its end.

        Raises:
            RuntimeError: It failed.
        """
        status, _, errors = self.user.run([str(self.folder / program), *arguments])
        if status != 0:
            raise RuntimeError(f"{program}: {errors}")


@dataclass
class Postgres:
    """A server of its own."""

    programs: Programs
    data: Path
    settings: dict[str, str] = field(default_factory=dict)
    database: str = DATABASE
    process: subprocess.Popen[bytes] | None = None

    @property
    def own_url(self) -> str:
        """How a superuser reaches it."""
        return url_of(self.folder)

    @property
    def folder(self) -> Path:
        """Where its socket is."""
        return self.data

    @property
    def log(self) -> Path:
        """What it says."""
        return self.data.with_suffix(".log")

    @property
    def pid(self) -> int:
        """The postmaster."""
        assert self.process is not None
        return self.process.pid

    def create(self) -> None:
        """Copies the cluster."""
        shutil.copytree(self.programs.cluster, self.data)
        self.give()

    def give(self) -> None:
        """The files to the user that it runs as."""
        self.data.chmod(0o700)
        chown_tree(self.data, self.programs.user)

    async def start(self) -> None:
        """Starts it, and waits until it answers."""
        user = self.programs.user
        own = {**_SETTINGS, **self.settings}
        options = [part for name, value in own.items() for part in ("-c", f"{name}={value}")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                (str(self.programs.folder / "postgres"), "-D", str(self.data), "-k", str(self.data), *options),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"LC_ALL": "C", "PATH": "/usr/bin:/bin", "TZ": "UTC"},
                user=user.uid,
                group=user.gid,
                extra_groups=None if user.uid is None else [],
                start_new_session=True,
            )
        await self.answers()

    async def answers(self) -> None:
        """Waits until it answers.

        Raises:
            RuntimeError: It does not, or has ended.
        """
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and self.process is not None and self.process.poll() is None:
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                await self.execute("SELECT 1")
                return
            await asyncio.sleep(0.02)
        raise RuntimeError(f"PostgreSQL does not answer: {self.log.read_text(errors='replace')[-2000:]}")

    async def connect(self, database: str = "postgres", user: str = "postgres") -> asyncpg.Connection:
        """A connection, of the superuser unless told otherwise."""
        return await asyncpg.connect(host=str(self.folder), port=PORT, user=user, database=database, timeout=5)

    async def execute(self, *statements: str, database: str = "postgres") -> None:
        """Runs statements as a superuser."""
        connection = await self.connect(database)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def create_database(self, tables: Path | None = None) -> None:
        """The role and the database of the service; ``tables``: a folder of their own for its tables."""
        place = ""
        if tables is not None:
            await self.execute(f"CREATE TABLESPACE own LOCATION '{tables}'")
            place = " TABLESPACE own"
        await self.execute(f"CREATE ROLE {ROLE} LOGIN", f"CREATE DATABASE {DATABASE} OWNER {ROLE}{place}")

    async def create_standby(self, data: Path) -> "Postgres":
        """A server that repeats all that this one commits, before it is acknowledged; not started yet."""
        parts = ("-h", str(self.folder), "-p", str(PORT), "-U", "postgres", "-D", str(data), "-R", "-c", "fast")
        data.mkdir(0o700)
        self.programs.user.chown(data)
        await asyncio.to_thread(self.programs.run, "pg_basebackup", *parts)
        for lock in data.glob(".s.PGSQL.*"):  # the primary's, which are copied as everything else is
            lock.unlink()
        return Postgres(self.programs, data, dict(self.settings))

    async def wait_for_standby(self) -> None:
        """From now on nothing is acknowledged that the standby would not show."""
        await self.execute(
            "ALTER SYSTEM SET synchronous_standby_names = '*'",
            "ALTER SYSTEM SET synchronous_commit = remote_apply",
            "SELECT pg_reload_conf()",
        )

    def url(self, address: str) -> str:
        """How the service reaches it by way of a proxy at ``address``."""
        return f"postgresql://{ROLE}@{address}/{DATABASE}"

    def kill(self) -> None:
        """SIGKILL to the postmaster alone, as the kernel does when memory ends; its backends see it and leave."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def pids(self) -> list[int]:
        """All its processes."""
        return _processes_in(self.data)

    async def gone(self) -> None:
        """Waits until no process of a killed server is left: until then a new one refuses to start."""
        await _until(lambda: not _processes_in(self.data))

    async def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Ends it: SIGINT is a fast shutdown, SIGQUIT an immediate one."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(number)
        try:
            await asyncio.to_thread(self.process.wait, 20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            await asyncio.to_thread(self.process.wait)


@dataclass
class EmbeddedPostgres(Postgres):
    """The service's own server, which only the service starts and ends."""

    @property
    def folder(self) -> Path:
        """Where its socket is."""
        return socket_dir_for(self.data)

    @property
    def pid(self) -> int:
        """The postmaster."""
        return int((self.data / "postmaster.pid").read_text(encoding="utf-8").split()[0])

    def kill(self) -> None:
        """SIGKILL to the postmaster alone."""
        os.kill(self.pid, signal.SIGKILL)

    async def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Ends what a service that failed left running."""
        del number
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGQUIT)


def _processes_in(data: Path) -> list[int]:
    """Processes that still have the cluster as their working folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink() == data:
                found.append(int(process.name))
    return found


async def _until(holds: Callable[[], Any], seconds: float = _PATIENCE) -> None:
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - the end of another's child has no event
            await asyncio.sleep(0.02)
