"""Clients in other languages, with the service config of `deploy/`, against a real server that is restarted under them.

`tests/interop/` has a program for each language. It does the same steps in each, and says `ok` after every one of them.
"""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import pytest

from tests.support.build import create
from tests.support.commands import ROOT, connect, environment
from tests.support.postgres import fresh_database

BUILD = ROOT / "build" / "interop"
PROGRAMS = ROOT / "tests" / "interop"
BUILD_SECONDS = 600.0  # on a machine that has nothing of it yet
RUN_SECONDS = 90.0  # on an idle machine six
START = re.compile(r"Conversation Service on (127\.0\.0\.1:\d+) and unix:")
STEPS = ["create", "append", "pages", "etag", "not_found", "denied", "deadline", "stream", "restart"]
POLICY = "- permit: {actions: [create, read, update, share]}\n"  # all but delete


@dataclass(frozen=True)
class Language:
    """How programs of a language are built, in their folder, and run."""

    name: str
    needs: tuple[str, ...]  # executables
    build: tuple[tuple[str, ...], ...]
    run: tuple[str, ...]


LANGUAGES = [
    Language(
        "go",
        needs=("go",),
        build=(("go", "generate"), ("go", "build", "-o", f"{BUILD}/go/interop")),
        run=(f"{BUILD}/go/interop",),
    ),
    Language(
        "node",
        needs=("node", "npm"),
        build=(("npm", "ci", "--no-audit", "--no-fund"), ("npm", "run", "build")),
        run=("node", f"{PROGRAMS}/node/dist/src/main.js"),
    ),
    Language(
        "java",
        needs=("java", "mvn"),
        build=(("mvn", "-q", "-B", "package"),),
        run=("java", "-jar", f"{BUILD}/java/interop.jar"),
    ),
    Language(
        "rust",
        needs=("cargo",),
        build=(("cargo", "build"),),  # no lock file to hold it to: it would name a registry
        run=(f"{BUILD}/rust/debug/interop",),
    ),
]


async def ran(*command: str, folder: Path) -> tuple[int | None, str]:
    """Exit code and output of a command; buf and the plugins of this Python are on its path."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    variables = {**os.environ, "PATH": path, "CARGO_TARGET_DIR": f"{BUILD}/rust"}
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=STDOUT, env=variables, cwd=folder)
    async with ending(process):
        output, _ = await process.communicate()
    return process.returncode, output.decode(errors="replace")


@asynccontextmanager
async def ending(process: Process) -> AsyncIterator[Process]:
    """It is killed if it still runs at the end."""
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@pytest.fixture(scope="session")
async def image() -> None:
    """The descriptors of the contract, which programs are generated from."""
    assert (0, "") == await ran(sys.executable, "proto/generate.py", "--image", "build/image.binpb", folder=ROOT)


@dataclass(frozen=True)
class Program:
    """A client, if it could be built."""

    run: tuple[str, ...]
    problem: str  # what a tool said when it failed


@pytest.fixture(
    scope="session",
    params=[pytest.param(each, marks=pytest.mark.tool(*each.needs), id=each.name) for each in LANGUAGES],
)
async def program(request: pytest.FixtureRequest, image: None) -> Program:
    """The client in a language, built once."""
    language: Language = request.param
    for command in language.build:
        async with asyncio.timeout(BUILD_SECONDS):
            code, output = await ran(*command, folder=PROGRAMS / language.name)
        if code != 0:
            return Program(language.run, f"{' '.join(command)}: exit code {code}\n{output}")
    return Program(language.run, "")


@dataclass
class Server:
    """A server process on two addresses, which it has again after a restart."""

    variables: dict[str, str]
    log: Path
    tcp: str
    socket: str
    process: Process | None = None

    async def start(self) -> None:
        """Returns when it serves."""
        listen = ("--listen", self.tcp, "--listen", self.socket)
        with self.log.open("a") as errors:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "server", "serve", *listen),
                stdout=PIPE,
                stderr=errors,
                env=self.variables,
                cwd=ROOT,
            )
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            line = (await self.process.stdout.readline()).decode()
        match = START.match(line)
        assert match, line + self.log.read_text(encoding="utf-8")
        self.tcp = match[1]

    async def stop(self) -> None:
        """Ends it as an orchestrator does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            await self.process.communicate()
        assert 0 == self.process.returncode, self.log.read_text(encoding="utf-8")


@asynccontextmanager
async def server(url: str, folder: Path) -> AsyncIterator[Server]:
    """A server on the database at ``url``, whose callers may do anything but delete."""
    (folder / "policy.yaml").write_text(POLICY, encoding="utf-8")
    variables = environment(url, policy_file=str(folder / "policy.yaml"))
    served = Server(variables, folder / "log", "127.0.0.1:0", f"unix:{folder}/socket")
    try:
        await served.start()
        yield served
    finally:
        if served.process:
            async with ending(served.process):
                pass


@asynccontextmanager
async def locked(url: str, address: str) -> AsyncIterator[str]:
    """The id of a conversation whose row is locked as long as this is open."""
    async with connect(address) as stub:
        made = await stub.CreateConversation(create())
    connection = await asyncpg.connect(url, server_settings={"idle_in_transaction_session_timeout": "0"})
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM conversations WHERE id = $1 FOR UPDATE", made.id)
            yield made.id
    finally:
        await connection.close()


async def follow(process: Process, served: Server, steps: list[str]) -> None:
    """Adds the steps that a program says went well, until it ends; it has the restart that it asks for."""
    assert process.stdin is not None
    assert process.stdout is not None
    async for line in process.stdout:
        match line.decode().split():
            case ["ok", step]:
                steps.append(step)
            case ["restart?"]:
                await asyncio.sleep(0.5)  # calls are under way
                await served.stop()
                await served.start()
                with suppress(OSError, RuntimeError):  # it has ended, and says why
                    process.stdin.write(b"restarted\n")
            case words:
                pytest.fail(f"unexpected output: {' '.join(words)}")
    await process.wait()


async def outcome(program: Program, served: Server, errors: Path, **variables: str) -> tuple[int | None, list[str]]:
    """Exit code of a program and the steps that went well; it is killed if it takes too long."""
    with errors.open("w") as file:
        process = await asyncio.create_subprocess_exec(
            *program.run, stdin=PIPE, stdout=PIPE, stderr=file, env={**os.environ, **variables}
        )
    steps: list[str] = []
    async with ending(process):
        with suppress(TimeoutError):
            async with asyncio.timeout(RUN_SECONDS):
                await follow(process, served, steps)
    return process.returncode, steps


@pytest.mark.parametrize("network", ["tcp", "unix"])
async def test_a_client(program: Program, network: str, postgres: str, template: str) -> None:
    """Each step goes well in each language, over TCP and over a Unix socket, and a restart is not noticed."""
    assert not program.problem, program.problem
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))  # a short path: a socket has 100 characters at most
        url = await stack.enter_async_context(fresh_database(postgres, template))
        served = await stack.enter_async_context(server(url, folder))
        variables = {
            "TARGET": served.tcp if network == "tcp" else served.socket,
            "SERVICE_CONFIG": str(ROOT / "deploy" / "service_config.json"),
            "LOCKED": await stack.enter_async_context(locked(url, served.tcp)),
        }
        result = await outcome(program, served, folder / "errors", **variables)
        assert (0, STEPS) == result, (folder / "errors").read_text(encoding="utf-8")
