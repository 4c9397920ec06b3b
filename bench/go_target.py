"""The minimal server in Go (`bench/go`): the statements of `bench.limit` on grpc-go and pgx.

The ratio to it shows what Python and its gRPC server cost. It is built when a run asks for it; Go must be installed.
"""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio

from bench import limit
from bench.grpc_target import GrpcTarget, target
from bench.process import started_program
from bench.target import PeerUnavailable

NAME = "go"
_SOURCE = Path(__file__).with_name("go")
_PROGRAM = Path(__file__).parents[1] / "build" / "bench-go" / "limit"
_STEPS = (("generate",), ("build", "-o", str(_PROGRAM)))
_BUILD_SECONDS = 600.0  # on a machine that has none of the modules yet
_STATEMENTS = {name: text for name, text in vars(limit).items() if name.isupper() and isinstance(text, str)}


@asynccontextmanager
async def go(url: str, folder: Path) -> AsyncIterator[GrpcTarget]:
    """Runs it on the database at ``url`` while this is open; its log is in ``folder``.

    Raises:
        PeerUnavailable: Go is not installed, or the server cannot be built.
    """
    await build()
    command = (str(_PROGRAM), "--database-url", url, "--statements", json.dumps(_STATEMENTS))
    async with (
        started_program(command, {}, folder / f"{NAME}.log") as process,
        grpc.aio.insecure_channel(process.address) as channel,
    ):
        yield target(NAME, process.pid, channel)


async def build() -> None:
    """Builds the server, within seconds if nothing has changed.

    Raises:
        PeerUnavailable: As `go`.
    """
    program = shutil.which("go")
    if program is None:
        raise PeerUnavailable("Go is not installed")
    for step in _STEPS:
        await _run(program, *step)


async def _run(*command: str) -> None:
    """Runs a step of the build; buf, which generates the messages, is beside this Python."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=_SOURCE,
        env={**os.environ, "PATH": path},
    )
    try:
        async with asyncio.timeout(_BUILD_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise PeerUnavailable(f"{' '.join(command)} took longer than {_BUILD_SECONDS:.0f} s") from None
    if process.returncode:
        raise PeerUnavailable(f"{' '.join(command)}: {output.decode(errors='replace')[-2000:]}")
