"""Databases for single tests, and the PostgreSQL processes that serve them."""

import asyncio
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

EMPTY_TEMPLATE = "template0"  # PostgreSQL's own database without anything
CITUS = "CITUS_URL"  # an environment variable: the address of a coordinator, for tests on a distributed database
_numbers = itertools.count(1)


def with_database(url: str, name: str) -> str:
    """``url`` with another database."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc or "", f"/{name}", parts.query, ""))


@asynccontextmanager
async def fresh_database(postgres: str, template: str) -> AsyncIterator[str]:
    """The address of a migrated database of its own."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    await execute_everywhere(postgres, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    try:
        yield with_database(postgres, name)
    finally:
        await drop_everywhere(postgres, name)


async def execute_everywhere(postgres: str, statement: str) -> None:
    """Runs a statement on a server or, for that of `CITUS_URL`, on each node; again while a daemon is in the way."""
    for url in await node_urls(postgres):
        for _ in range(50):
            with suppress(asyncpg.ObjectInUseError):
                await execute(url, statement)
                break
            await asyncio.sleep(0.1)


async def drop_everywhere(postgres: str, name: str) -> None:
    """Drops a database as `execute_everywhere` runs a statement."""
    await execute_everywhere(postgres, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


async def node_urls(postgres: str) -> list[str]:
    """The addresses of all nodes behind a coordinator, itself first; of a single server only its own."""
    if postgres != os.environ.get(CITUS):
        return [postgres]
    nodes = await fetch(postgres, "SELECT nodename, nodeport FROM pg_dist_node WHERE groupid > 0 ORDER BY groupid")
    parts = urlsplit(postgres)
    user = f"{parts.username}@" if parts.username else ""
    return [postgres, *(f"{parts.scheme}://{user}{row['nodename']}:{row['nodeport']}{parts.path}" for row in nodes)]


async def execute(url: str, statement: str) -> None:
    """Runs one statement on a connection of its own."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@asynccontextmanager
async def row_locked(url: str, conversation_id: str) -> AsyncIterator[None]:
    """Holds the lock of a conversation's row on another connection meanwhile."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT 1 FROM conversations WHERE id = $1 FOR UPDATE", conversation_id)
            yield
    finally:
        await connection.close()


def memory_folder() -> Path | None:
    """A folder in memory with room for a private PostgreSQL of tests, if this machine has one; None: use the disk.

    Creating a database from a template writes some 300 files: on a disk that takes ten times as long.
    """
    shared = Path("/dev/shm")
    if not shared.is_dir() or os.statvfs(shared).f_flag & os.ST_NOEXEC:  # some servers run programs from their folder
        return None
    return shared if shutil.disk_usage(shared).free > 2 * 2**30 else None


@asynccontextmanager
async def inserts_blocked(url: str, table: str) -> AsyncIterator[None]:
    """Keeps every INSERT into ``table`` waiting meanwhile."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN SHARE MODE")
            yield
    finally:
        await connection.close()


def data_folder() -> Path:
    """A folder for a private PostgreSQL. `tmp_path` has mode 0700, which root's server, another user, cannot enter."""
    folder = Path(tempfile.mkdtemp(prefix="embedded-", dir=memory_folder()))
    folder.chmod(0o711)
    return folder


def postmasters_in(path: Path) -> list[int]:
    """Process ids of running postmasters whose data folder is below ``path``, read from their command lines.

    A child that a postmaster has just forked has the same command line for a moment; it is left out.
    """
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            parent = int((process / "stat").read_bytes().rpartition(b")")[2].split()[1])
        except OSError:
            continue
        if words[0].endswith(b"/postgres") and any(word.startswith(bytes(path)) for word in words):
            parents[int(process.name)] = parent
    return [pid for pid, parent in parents.items() if parent not in parents]


def kill_postmasters_in(path: Path) -> list[int]:
    """Kills them at once, and returns their process ids."""
    found = postmasters_in(path)
    for pid in found:
        os.kill(pid, signal.SIGQUIT)
    return found


async def fetch(url: str, *statements: str) -> list[asyncpg.Record]:
    """Runs statements one after the other; returns the rows of the last."""
    connection = await asyncpg.connect(url)
    try:
        rows: list[asyncpg.Record] = []
        for statement in statements:
            rows = await connection.fetch(statement)
        return rows
    finally:
        await connection.close()
