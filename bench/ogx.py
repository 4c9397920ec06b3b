"""OGX 1.5.0 (formerly Llama Stack): the Conversations API over HTTP.

It needs Python 3.12 and gets a virtual environment in ``build/ogx``, made once for the pins beside this file.
One worker, its default pool (10 connections, 20 more under load), no authentication, no providers, no metrics.

How it differs from this service:

* Each call of this service corresponds to one call of OGX: an append of 20 is one POST, a delete includes the items.
* It logs every call, whatever its log level; this service does not by default. So its process is started with a
  log threshold of warnings, which is in its favour.
* Its API lists items in order but without positions. `sequence_ids` lists through the API and takes the position
  of each item from the column by which the listing is ordered.
* An append reads the highest position in one transaction and inserts in another, so appends at the same time
  take the same positions. Only pages after the first also order by id: between pages, items of one position
  can be left out or come twice.
"""

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import asyncpg
import yaml
from sqlalchemy.engine import make_url

from bench.openai_target import OpenAiTarget, session_at
from bench.target import PeerUnavailable, Target
from tests.support.ports import free_port

NAME = "ogx"
_MODEL = "OGX 1.5.0"
_PINS = Path(__file__).with_name("ogx-requirements.txt")
_HOME = Path(__file__).parents[1] / "build" / "ogx"
_LAUNCH = "import logging; from ogx.cli.ogx import main; logging.disable(logging.INFO); main()"
_VERSION = "import sys; print(*sys.version_info[:2])"
_INSTALL_SECONDS = 600.0
_START_SECONDS = 120.0
_STOP_SECONDS = 15.0
_POSITIONS = "SELECT id, sort_order + 1 FROM conversation_items WHERE conversation_id = $1"


@dataclass(frozen=True)
class _Ogx(OpenAiTarget):
    """A running server, seen through its API and its table."""

    url: str = ""

    async def sequence_ids(self, conversation: str) -> list[tuple[int, str]]:
        listed = [item async for items in self.pages(conversation) for item in items]
        connection = await asyncpg.connect(self.url)
        try:
            positions = dict(await connection.fetch(_POSITIONS, conversation))
        finally:
            await connection.close()
        return [(positions[item["id"]], item["id"]) for item in listed]


@asynccontextmanager
async def ogx(url: str, folder: Path) -> AsyncIterator[Target]:
    """A server that keeps its tables in the database at ``url``, which should be empty, and its files in ``folder``.

    Raises:
        PeerUnavailable: There is no Python 3.12, or the server cannot be installed or started.
    """
    environment, port = await _installed(), free_port()
    config = _configure(folder / NAME, await _place(url), port)
    async with _server(environment, config) as process, session_at(port) as session:
        await _ready(process, session, _log(config))
        yield _Ogx(process.pid, session, NAME, peer=True, url=url)


async def _installed() -> Path:
    """Returns the virtual environment; it is rebuilt if the pins have changed or its Python is missing."""
    made_for = _HOME / "made-for.txt"
    pins = _PINS.read_text()
    if made_for.exists() and made_for.read_text() == pins and await _runs(_HOME / "bin" / "python"):
        return _HOME
    python = await _python()
    await _step(python, "-I", "-m", "venv", "--clear", _HOME)
    pip = (_HOME / "bin" / "python", "-I", "-m", "pip", "--disable-pip-version-check", "--no-input")
    await _step(*pip, "install", "--quiet", "--no-deps", "--only-binary=:all:", "--requirement", _PINS)
    made_for.write_text(pins)
    return _HOME


async def _python() -> Path:
    """Returns the first Python 3.12 that runs: pyenv's shims may be on the path without a version behind them."""
    chosen = os.environ.get("OGX_PYTHON")
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    on_path = (shutil.which("python3.12", path=folder) for folder in folders)
    found = [shutil.which(chosen)] if chosen else [*on_path, sys.executable]
    for python in filter(None, found):
        if await _runs(Path(python)):
            return Path(python)
    where = f"OGX_PYTHON is {chosen}, which is not one" if chosen else "there is none on the path; set OGX_PYTHON"
    raise PeerUnavailable(f"{_MODEL} needs Python 3.12: {where}.")


async def _runs(python: Path) -> bool:
    try:
        status, output = await _run(python, "-I", "-c", _VERSION)
    except OSError:
        return False
    return status == 0 and output.split() == ["3", "12"]


async def _step(*command: str | Path) -> None:
    """Runs a step of the installation."""
    try:
        status, output = await _run(*command)
    except OSError as error:
        raise PeerUnavailable(f"{_MODEL} cannot be installed: {error or 'it takes too long'}.") from error
    if status != 0:
        raise PeerUnavailable(f"{_MODEL} cannot be installed:\n{_tail(output)}")


async def _run(*command: str | Path) -> tuple[int, str]:
    """Returns status and output of a command, and ends it if the call is cancelled."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(_INSTALL_SECONDS):
            output, _ = await process.communicate()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        status = await process.wait()
    return status, output.decode(errors="replace")


async def _place(url: str) -> dict[str, str]:
    """The database in the configuration of OGX, which takes the folder of a Unix socket as the host."""
    connection = await asyncpg.connect(url)
    try:
        user, database = await connection.fetchrow("SELECT current_user, current_database()")
    finally:
        await connection.close()
    parts = make_url(url)
    given = {name: value for name, value in parts.query.items() if isinstance(value, str)}
    password = given.get("password") or parts.password
    return {
        "host": given.get("host") or parts.host or "localhost",
        "port": given.get("port") or str(parts.port or 5432),
        "db": database,
        "user": user,
        **({"password": password} if password else {}),
    }


def _configure(folder: Path, place: Mapping[str, str], port: int) -> Path:
    """Writes the run configuration: the Conversations API and what the server requires."""
    stores = {
        "metadata": {"namespace": "registry", "backend": "files"},
        "inference": None,
        **{name: {"table_name": name, "backend": "sql"} for name in ("prompts", "connectors")},
        "conversations": {"table_name": "openai_conversations", "backend": "sql"},
    }
    backends = {
        "sql": {"type": "sql_postgres", **place},
        "files": {"type": "kv_sqlite", "db_path": str(folder / "registry.db")},
    }
    config = {
        "version": 2,
        "distro_name": "bench",
        "apis": ["conversations"],
        "providers": {},
        "storage": {"backends": backends, "stores": stores},
        "server": {"host": "127.0.0.1", "port": port, "workers": 1, "insecure": True},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.touch(0o600)  # may hold a password
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


@asynccontextmanager
async def _server(environment: Path, config: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Starts the server without our environment variables: OGX_ and OTEL_ variables would change it."""
    folder = str(config.parent)
    with _log(config).open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            environment / "bin" / "python", "-I", "-c", _LAUNCH, "run", config,
            env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "OGX_CONFIG_DIR": folder},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )  # fmt: skip
    try:
        yield process
    finally:
        await _stop(process)


async def _stop(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def _ready(process: asyncio.subprocess.Process, session: aiohttp.ClientSession, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.returncode is None and time.monotonic() < deadline:
        with suppress(aiohttp.ClientError):
            async with session.get("/v1/health"):
                return
        await asyncio.sleep(0.1)
    raise PeerUnavailable(f"{_MODEL} does not start:\n{_tail(log.read_text(errors='replace'))}")


def _log(config: Path) -> Path:
    return config.with_name("server.log")


def _tail(output: str) -> str:
    return "\n".join(output.splitlines()[-12:])
