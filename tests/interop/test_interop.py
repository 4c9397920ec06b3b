"""Clients in other languages, with the service config of `deploy/`, against a real server that is restarted under them.

`tests/interop/` has a program for each language. It does the same steps in each, and says `ok` after every one of them.
"""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import pytest
from grpc import StatusCode

from tests.support.build import create
from tests.support.commands import ROOT, connect, environment
from tests.support.postgres import fresh_database
from tests.support.programs import BUILD, RestartableServer, build_problem, ending, output_of, restartable_server
from tests.support.scripted_watches import Stream, scripted_watches

PROGRAMS = ROOT / "tests" / "interop"
RUN_SECONDS = 120.0  # on an idle machine fifteen
STEPS = [
    *("create", "append", "pages", "etag", "not_found", "denied", "deadline", "stream"),
    *("retention", "rewind", "fork", "undelete", "delete_many", "transfer"),
    "restart",
    *("watch", "watch_reset", "watch_refused", "watch_silence", "watch_ends", "watch_restart"),
]
# What the streams of the step watch_ends bring: the table "How a stream ends" of docs/watch.md.
ENDS = [
    Stream(token="one"),
    Stream(code=StatusCode.UNAVAILABLE, retry_seconds=0.4, least_pause=0.4 + 0.08),
    Stream(code=StatusCode.RESOURCE_EXHAUSTED, least_pause=0.16),
    Stream(code=StatusCode.CANCELLED, least_pause=0.32),
    Stream(code=StatusCode.UNAVAILABLE, least_pause=0.64),
    Stream(token="two"),
    Stream(code=StatusCode.UNAUTHENTICATED),
    Stream(code=StatusCode.OUT_OF_RANGE, reason="RESUME_TOKEN_EXPIRED"),
    Stream(token="three"),
    Stream(code=StatusCode.INVALID_ARGUMENT, reason="RESUME_TOKEN_INVALID"),
    Stream(token="four", is_last=True),
]
# What clients send meanwhile.
TOKENS = ["", *["one"] * 5, "two", "two", "", "three", ""]
CREDENTIALS = [*["Bearer old"] * 7, *["Bearer new"] * 4]
EARLY = 0.95  # timers may fire a little before their time
POLICY = """
- permit: {actions: [create, read, update, delete]}  # all but share
- permit: {actions: [import, erase], resource: "tenant::*"}
"""


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
    Language("python", needs=(), build=(), run=(sys.executable, "-m", "tests.interop.python")),
]


@pytest.fixture(scope="session")
async def image() -> None:
    """The descriptors of the contract, which programs are generated from."""
    assert (0, "") == await output_of(sys.executable, "proto/generate.py", "--image", "build/image.binpb", folder=ROOT)


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
    return Program(language.run, await build_problem(language.build, PROGRAMS / language.name))


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


async def follow(process: Process, served: RestartableServer, steps: list[str]) -> None:
    """Adds the steps that a program says went well, until it ends; it has the restarts that it asks for."""
    assert process.stdin is not None
    assert process.stdout is not None
    async for line in process.stdout:
        match line.decode().split():
            case ["ok", step]:
                steps.append(step)
            case [("restart?" | "kill?") as ask]:
                await asyncio.sleep(0.5)  # calls are under way
                await served.stop(signal.SIGTERM if ask == "restart?" else signal.SIGKILL)
                await served.start()
                with suppress(OSError, RuntimeError):  # it has ended, and says why
                    process.stdin.write(b"restarted\n")
            case words:
                pytest.fail(f"unexpected output: {' '.join(words)}")
    await process.wait()


async def outcome(
    program: Program, served: RestartableServer, errors: Path, **variables: str
) -> tuple[int | None, list[str]]:
    """Exit code of a program and the steps that went well; it is killed if it takes too long."""
    with errors.open("w") as file:
        process = await asyncio.create_subprocess_exec(
            *program.run, stdin=PIPE, stdout=PIPE, stderr=file, env={**environment(), **variables}, cwd=ROOT
        )
    steps: list[str] = []
    async with ending(process):
        with suppress(TimeoutError):
            async with asyncio.timeout(RUN_SECONDS):
                await follow(process, served, steps)
    return process.returncode, steps


@pytest.mark.parametrize("network", ["tcp", "unix"])
async def test_a_client(program: Program, network: str, postgres: str, template: str) -> None:
    """Each step goes well in each language, over TCP and over a Unix socket, and restarts are not noticed."""
    assert not program.problem, program.problem
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))  # a short path: a socket has 100 characters at most
        url = await stack.enter_async_context(fresh_database(postgres, template))
        (folder / "policy.yaml").write_text(POLICY, encoding="utf-8")
        served = await stack.enter_async_context(
            restartable_server(url, folder, policy_file=str(folder / "policy.yaml"))
        )
        scripted = await stack.enter_async_context(scripted_watches(ENDS))
        variables = {
            "TARGET": served.tcp if network == "tcp" else served.socket,
            "SERVICE_CONFIG": str(ROOT / "deploy" / "service_config.json"),
            "SCRIPTED": scripted.address,
            "LOCKED": await stack.enter_async_context(locked(url, served.tcp)),
        }
        result = await outcome(program, served, folder / "errors", **variables)
        assert (0, STEPS) == result, (folder / "errors").read_text(encoding="utf-8")
        assert TOKENS == [call.token for call in scripted.calls]
        assert CREDENTIALS == [call.authorization for call in scripted.calls]
        pauses = zip((stream.least_pause for stream in ENDS), (call.pause for call in scripted.calls[1:]), strict=False)
        assert [] == [(least, pause) for least, pause in pauses if pause < least * EARLY]
