"""A folder for a private PostgreSQL that is gone when this process is gone, however it ends.

Another process cleans up: it waits at a pipe, which the kernel closes with this process, SIGKILL included. Only if both
are killed at once, or the machine stops, something is left.
"""

import asyncio
import os
import shutil
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

PREFIX = "conversations-ephemeral-"
_LOOK_SECONDS = 0.2  # between two looks at who the parent is


@asynccontextmanager
async def temporary_data_dir() -> AsyncIterator[Path]:
    """Yields an empty folder; afterwards what runs in it is stopped, and the folder is removed."""
    folder = _make_folder()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "server.app.ephemeral", str(folder)),
        stdin=PIPE,
        stdout=DEVNULL,  # a reader of our output must not wait for this process
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,  # signals to our group are not for it
    )
    try:
        yield folder
    finally:
        assert process.stdin
        process.stdin.close()
        if await process.wait():
            log.warning("the temporary folder could not be removed", folder=str(folder))


def _make_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    if os.geteuid() == 0:
        folder.chmod(0o711)  # PostgreSQL does not run as root: its own user must reach its folder inside
    return folder


async def parent_ended(parent: int) -> None:
    """Returns when the process that started this one has ended: another one is the parent then.

    Args:
        parent: Its number, from before it is told that this one serves: it may end as soon as it knows.
    """
    while os.getppid() == parent:  # noqa: ASYNC110 - the kernel tells nobody
        await asyncio.sleep(_LOOK_SECONDS)


async def _clean_up(folder: Path) -> None:
    from server.store.embedded.server import Server  # noqa: PLC0415 - not needed while it waits

    await Server(folder).stop()
    shutil.rmtree(folder)


def main() -> None:
    """Runs ``python -m server.app.ephemeral FOLDER``: waits for the end of standard input, then cleans up."""
    sys.stdin.read()
    asyncio.run(_clean_up(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
