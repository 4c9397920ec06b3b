"""A coordinator and workers of Citus on this machine, from programs that are installed.

``python -m tests.support.citus --bin DIR`` starts them, prints ``CITUS_URL=…`` for the tests marked `citus`, and ends
them with Ctrl-C. ``DIR`` has ``initdb`` and ``pg_ctl`` of a PostgreSQL for which Citus is installed. Everybody on this
machine can log in to them.
"""

import argparse
import asyncio
import os
import pwd
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from server.store.embedded.os_user import OsUser
from tests.support.ports import HOST, free_port
from tests.support.postgres import execute, fetch, memory_folder

STANDBY = "standby"  # the name that a primary knows its standby by
_SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "shared_preload_libraries": "citus",
    "wal_level": "logical",
    "max_connections": "300",
    "max_prepared_transactions": "600",
    "max_worker_processes": "64",  # Citus keeps one for each database
    "shared_buffers": "64MB",
    "citus.node_conninfo": "sslmode=prefer",
    "citus.local_hostname": HOST,
    "citus.max_adaptive_executor_pool_size": "1",
}


class ProgramFailed(Exception):
    """A program of PostgreSQL has failed; the text is what it said."""


@dataclass(frozen=True)
class Node:
    """One server."""

    programs: Path
    folder: Path
    port: int
    user: OsUser

    @property
    def url(self) -> str:
        """Its database of that name."""
        return f"postgresql://postgres@{HOST}:{self.port}/postgres"

    @property
    def pid(self) -> int:
        """Of its postmaster."""
        return int((self.folder / "postmaster.pid").read_text().split()[0])

    def initialize(self) -> None:
        """Makes its data folder."""
        self.folder.mkdir()
        self.user.chown(self.folder)
        self._run("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions")
        self._set({**_SETTINGS, "port": str(self.port)})

    def copy(self, primary: "Node") -> None:
        """Makes its data folder as that of a standby, which follows ``primary`` under the name `STANDBY`."""
        address = f"host={HOST} port={primary.port} user=postgres application_name={STANDBY}"
        self._run("pg_basebackup", f"--dbname={address}", "--checkpoint=fast", "--write-recovery-conf")
        self._set({"port": str(self.port), "primary_conninfo": address})

    def start(self) -> None:
        """Starts it, and waits until it takes connections."""
        self._run("pg_ctl", "start", "--wait", "--silent", f"--log={self.folder / 'log'}")

    def stop(self, mode: str = "immediate") -> None:
        """Stops it; what is committed stays."""
        self._run("pg_ctl", "stop", "--wait", "--silent", f"--mode={mode}")

    def kill(self) -> None:
        """Kills all its processes at once."""
        pid = self.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in (pid, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.01)

    def promote(self) -> None:
        """Makes a primary of a standby."""
        self._run("pg_ctl", "promote", "--wait", "--silent")

    def _set(self, settings: dict[str, str]) -> None:
        with (self.folder / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def _run(self, program: str, *arguments: str) -> None:
        argv = [str(self.programs / program), *arguments, f"--pgdata={self.folder}"]
        status, output, error = self.user.run(argv)
        if status:
            raise ProgramFailed(f"{program}: {error or output}")


@dataclass
class Cluster:
    """A coordinator and its workers, and standbys of them."""

    programs: Path
    folder: Path
    user: OsUser
    nodes: list[Node] = field(default_factory=list)
    standbys: list[Node] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Of the coordinator."""
        return self.nodes[0].url

    @property
    def workers(self) -> list[Node]:
        """All but the coordinator."""
        return self.nodes[1:]

    async def start(self, workers: int) -> None:
        """Starts everything."""
        await asyncio.to_thread(self._make_node)
        await fetch(self.url, "CREATE EXTENSION citus", f"SELECT citus_set_coordinator_host('{HOST}')")
        for _ in range(workers):
            await self.add_worker()

    async def add_worker(self, *urls: str) -> Node:
        """Starts one more; ``urls`` are those of further databases of the coordinator that it joins, and that exist."""
        node = await asyncio.to_thread(self._make_node)
        for url in (self.url, *urls):
            name = url.rpartition("/")[2]
            if name != "postgres":
                await fetch(node.url, f'CREATE DATABASE "{name}"')
            await fetch(node.url.removesuffix("postgres") + name, "CREATE EXTENSION citus")
            await fetch(url, f"SELECT citus_add_node('{HOST}', {node.port})")
        return node

    async def add_standby(self, primary: Node) -> Node:
        """Starts a standby of ``primary``, which waits from then on with each commit until the standby has it."""
        node = self._node()
        await asyncio.to_thread(node.copy, primary)
        self.standbys.append(node)
        await asyncio.to_thread(node.start)
        await execute(primary.url, f"ALTER SYSTEM SET synchronous_standby_names = '{STANDBY}'")
        await execute(primary.url, "SELECT pg_reload_conf()")
        async with asyncio.timeout(20):
            while not await fetch(primary.url, "SELECT FROM pg_stat_replication WHERE sync_state = 'sync'"):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.1)
        return node

    def stop(self) -> None:
        """Stops everything that runs."""
        for node in (*self.standbys, *reversed(self.nodes)):
            if (node.folder / "postmaster.pid").exists():
                node.stop()

    def _make_node(self) -> Node:
        node = self._node()
        node.initialize()
        node.start()
        self.nodes.append(node)
        return node

    def _node(self) -> Node:
        port = free_port()
        return Node(self.programs, self.folder / str(port), port, self.user)


@asynccontextmanager
async def running_cluster(programs: Path, workers: int = 2) -> AsyncIterator[Cluster]:
    """Runs a cluster meanwhile; ``programs`` as the argument of the command.

    Raises:
        ProgramFailed: A node cannot be started.
    """
    user = _user()
    folder = Path(tempfile.mkdtemp(prefix="citus-", dir=memory_folder()))
    user.chown(folder)
    cluster = Cluster(programs, folder, user)
    try:
        await cluster.start(workers)
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _user() -> OsUser:
    """PostgreSQL refuses to run as root, and initdb wants a user that has a name."""
    if os.geteuid() != 0:
        return OsUser()
    nobody = pwd.getpwnam("nobody")
    return OsUser(nobody.pw_uid, nobody.pw_gid)


async def _main() -> None:
    parser = argparse.ArgumentParser(description="Starts a coordinator and workers of Citus until Ctrl-C.")
    parser.add_argument("--bin", type=Path, required=True, help="Folder of PostgreSQL's programs.")
    parser.add_argument("--workers", type=int, default=2, help="How many workers. [2]")
    options = parser.parse_args()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running_cluster(options.bin, options.workers) as cluster:
        print(f"CITUS_URL={cluster.url}", flush=True)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(_main())
