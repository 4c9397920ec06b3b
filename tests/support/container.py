"""Containers of the image, run by runc: what a node of Kubernetes does, without the node."""

import asyncio
import json
import os
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from tests.support.image import KEPT, Image

SOCKETS = Path("/run/conversations")  # in a container: the service's
POSTGRES = Path("/run/postgresql")  # in a container: the database's
_RUNC = ("runc", "--root", str(KEPT / "runc"))


@dataclass(frozen=True)
class Container:
    """A running container: no network but a loopback of its own, and nothing to write to but the folder of sockets."""

    name: str
    process: Process
    sockets: Path  # on this side

    async def execute(self, *command: str) -> tuple[int, str]:
        """Exit code and output of a command in it, as an exec probe runs one."""
        process = await asyncio.create_subprocess_exec(*_RUNC, "exec", self.name, *command, stdout=PIPE, stderr=PIPE)
        output, errors = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode() + errors.decode()

    async def stopped(self, number: str) -> tuple[int, str]:
        """Exit code and output, after that signal."""
        await _runc("kill", self.name, number)
        return await self.ended()

    async def ended(self) -> tuple[int, str]:
        """Exit code and output, at its end."""
        async with asyncio.timeout(30):
            output, _ = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, output.decode()


@asynccontextmanager
async def container(
    image: Image,
    url: str,
    settings: Mapping[str, str],
    *arguments: str,
    volumes: Mapping[str, Path] = MappingProxyType({}),
) -> AsyncIterator[Container]:
    """The image's command, or its entry point with ``arguments``, on the database at ``url``.

    ``volumes``: folders to read, by where they are in the container.
    """
    name = f"test-{uuid4().hex}"
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)  # for others who may use the socket
        sockets, database = Path(folder) / "sockets", Path(folder) / "database"
        sockets.mkdir()
        os.chown(sockets, 0, 65532)  # what a volume is under fsGroup
        sockets.chmod(0o2770)
        database.mkdir()
        given = {f"CONVERSATIONS_{key.upper()}": value for key, value in settings.items()}
        given["CONVERSATIONS_DATABASE_URL"] = f"postgresql://postgres@/{urlsplit(url).path[1:]}?host={POSTGRES}"
        config = bundle(image, [*image.config["Entrypoint"], *arguments] if arguments else image.command, given)
        config["mounts"] += [_bound(sockets, SOCKETS, "rw"), _bound(database, POSTGRES, "ro")]
        config["mounts"] += [_bound(here, Path(there), "ro") for there, here in volumes.items()]
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        async with relayed(url, database / ".s.PGSQL.5432"):
            run = [*_RUNC, "run", "--bundle", folder, name]
            process = await asyncio.create_subprocess_exec(*run, stdout=PIPE, stderr=STDOUT)
            try:
                yield Container(name, process, sockets)
            finally:
                await _runc("delete", "--force", name)
                with suppress(ProcessLookupError):
                    process.kill()
                await process.communicate()


def bundle(image: Image, command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """For an OCI runtime: the image read-only, as its own user, without capabilities, as deploy/kubernetes has it."""
    user, _, group = image.config.get("User", "").partition(":")
    mounts = [("/proc", "proc", []), ("/dev", "tmpfs", ["nosuid", "mode=755"]), ("/sys", "sysfs", ["ro"])]
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(image.files), "readonly": True},
        "process": {
            "args": command,
            "env": [f"{key}={value}" for key, value in {**image.environment, **environment}.items()],
            "cwd": image.config["WorkingDir"],
            "user": {"uid": int(user or 0), "gid": int(group or 0)},
            "capabilities": {},
            "noNewPrivileges": True,
        },
        "mounts": [
            {"destination": to, "type": kind, "source": kind, "options": options} for to, kind, options in mounts
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")]},
    }


def _bound(here: Path, there: Path, how: str) -> dict[str, Any]:
    return {"destination": str(there), "type": "bind", "source": str(here), "options": ["bind", how]}


async def _runc(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(*_RUNC, *arguments, stderr=PIPE)
    _, errors = await process.communicate()
    assert not process.returncode, errors.decode()


@asynccontextmanager
async def relayed(url: str, socket: Path) -> AsyncIterator[None]:
    """The PostgreSQL at ``url``, for every user, on a socket."""
    parts = urlsplit(url)
    host, port = parse_qs(parts.query).get("host", [parts.hostname or "127.0.0.1"])[0], parts.port or 5432

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if host.startswith("/"):
            back, forth = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            back, forth = await asyncio.open_connection(host, port)
        await asyncio.gather(_copy(reader, forth), _copy(back, writer))

    async with await asyncio.start_unix_server(relay, socket) as server:
        socket.chmod(0o777)
        yield
        server.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while part := await reader.read(65536):
            writer.write(part)
            await writer.drain()
    writer.close()
