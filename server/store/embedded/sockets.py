"""Where the server listens: the folder of its socket, and the URL that leads there."""

import hashlib
import os
import re
import stat
import sys
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from server.store.embedded.errors import EmbeddedError
from server.store.embedded.os_user import OsUser

PORT = 5432  # only part of the socket's file name
_LONGEST_FOLDER = (107 if sys.platform == "linux" else 103) - len(f"/.s.PGSQL.{PORT}")


def socket_dir_for(cluster: Path) -> Path:
    """Returns the cluster's folder, if its name suits a socket address (short) and a connection URL (plain).

    Otherwise it is a folder under /tmp named by a hash; not $TMPDIR, which may be long and differ by process.
    """
    name = os.fsencode(cluster)
    if len(name) <= _LONGEST_FOLDER and re.fullmatch(r"[A-Za-z0-9/._-]+", str(cluster)):
        return cluster
    return Path("/tmp", f"conversations-{hashlib.sha256(name).hexdigest()[:16]}")


def create_private_folder(folder: Path, user: OsUser) -> None:
    """Creates a folder that only ``user`` can enter.

    Raises:
        EmbeddedError: Someone else has put a folder of this name there; anyone may write to /tmp.
    """
    with suppress(FileExistsError):
        folder.mkdir(0o700)
    found = folder.lstat()
    if (
        not stat.S_ISDIR(found.st_mode)
        or found.st_uid not in {os.geteuid(), user.effective_uid}
        or found.st_mode & 0o077
    ):
        raise EmbeddedError(f"{folder}, needed for the database's socket, is not private. Please remove it.")
    user.chown(folder)


def url_of(socket_dir: Path) -> str:
    """Returns a URL that names the port too: PGPORT in our environment would change it."""
    return f"postgresql://postgres@/postgres?host={quote(str(socket_dir), safe='/')}&port={PORT}"
