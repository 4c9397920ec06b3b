"""The command line, and the service as a process of its own."""

import asyncio
import atexit
import os
import re
import shutil
import subprocess
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import grpc.aio
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub

ROOT = Path(__file__).parents[2]
FORK_CLIENT = str(Path(__file__).with_name("fork_client.py"))


START = re.compile(r"Conversation Service on (\S+), PostgreSQL at (\S+)\n")


def environment(url: str | None = None, **settings: str) -> dict[str, str]:
    """This process's environment, with these settings of the service and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CONVERSATIONS_")}
    given = {"CONVERSATIONS_DATABASE_URL": url} if url else {}
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "client", ROOT / "generated")))
    return {**kept, "PYTHONPATH": paths, **given, **{f"CONVERSATIONS_{key.upper()}": v for key, v in settings.items()}}


def program_path() -> str:
    """The search path for programs: those of this Python, such as buf and the service, come first."""
    return os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))


async def start_command(*arguments: str, **variables: str) -> Process:
    """Starts what `python -m server` does with these arguments and this environment, without its imports."""
    return await _start(*forked_command(*arguments), **variables)


def forked_command(*arguments: str) -> tuple[str, ...]:
    """The command line that does what `python -m server` does with these arguments."""
    return (sys.executable, "-IS", FORK_CLIENT, _fork_server(), *arguments)


async def start_interpreter(*arguments: str, **variables: str) -> Process:
    """Starts `python -m server` itself: for tests of the start, and of what is imported, and those that kill."""
    return await _start(sys.executable, "-m", "server", *arguments, **variables)


async def _start(*command: str, **variables: str) -> Process:
    return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=variables, cwd=ROOT)


@cache
def _fork_server() -> str:
    """The socket of this process's `tests.support.fork_server`, which ends with this process."""
    path = str(Path(tempfile.mkdtemp()) / "forks")
    command = (sys.executable, "-m", "tests.support.fork_server", path)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    atexit.register(shutil.rmtree, Path(path).parent)
    atexit.register(process.communicate)
    return path


async def finish(process: Process, given: str = "") -> tuple[int, str, str]:
    """Sends ``given`` to a process and waits for its end; returns exit code, output and errors."""
    assert process.stdin is not None
    if not given:  # nothing is written to a process that may have ended by now
        process.stdin.close()
    async with asyncio.timeout(20):
        output, errors = await process.communicate(given.encode() if given else None)
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def run_command(
    *arguments: str, given: str = "", url: str | None = None, **settings: str
) -> tuple[int, str, str]:
    """Runs a command; returns exit code, output and errors."""
    return await finish(await start_command(*arguments, **environment(url, **settings)), given)


async def output_of(*arguments: str, **more: Any) -> str:
    """The output of a command that exits with 0 and writes nothing to standard error."""
    code, output, errors = await run_command(*arguments, **more)
    assert (0, "") == (code, errors)
    return output


async def error_line_of(*arguments: str, **more: Any) -> str:
    """The single line on standard error of a command that exits with 1 and prints nothing else."""
    code, output, errors = await run_command(*arguments, **more)
    assert (1, "") == (code, output), errors
    assert re.fullmatch(r"Error: .+\n", errors), errors
    return errors


@asynccontextmanager
async def server_process(url: str, listen: str = "127.0.0.1:0", **settings: str) -> AsyncIterator[tuple[Process, str]]:
    """A server process and its start line; the process is killed at the end if it still runs."""
    variables = environment(url, grace_seconds="1", **settings)
    async with _until_the_end(await start_command("serve", "--listen", listen, **variables)) as (process, line):
        yield process, line


@asynccontextmanager
async def server_interpreter(url: str, listen: str = "127.0.0.1:0") -> AsyncIterator[tuple[Process, str]]:
    """The same, started by `start_interpreter`."""
    variables = environment(url, grace_seconds="1")
    async with _until_the_end(await start_interpreter("serve", "--listen", listen, **variables)) as (process, line):
        yield process, line


@asynccontextmanager
async def _until_the_end(process: Process) -> AsyncIterator[tuple[Process, str]]:
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(15):
            line = (await process.stdout.readline()).decode()
        assert line, (await process.stderr.read()).decode()
        yield process, line
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def address_in(line: str) -> str:
    """The address that a start line names."""
    match = START.fullmatch(line)
    assert match, line
    return match[1]


@asynccontextmanager
async def connect(address: str) -> AsyncIterator[Any]:
    """A client of the service at ``address``."""
    options = [("grpc.default_authority", "localhost")] if address.startswith("unix:") else []
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield ConversationsServiceStub(channel)
