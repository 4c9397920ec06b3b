"""The operating system's user that the server runs as: how to run programs as that user, and what it can reach.

PostgreSQL refuses to run as root. For root the server gets a user number of its own, which needs no entry in the user
database; a data folder (or cluster) that belongs to another user keeps that user.
"""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from server.store.embedded.errors import WAY_OUT, EmbeddedError

SERVICE_ID = 65532  # user and group of the server when we are root; below 65536, so that containers map it
_ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/bin:/bin", "TZ": "UTC"}
_FIRST_CLOSED = 'for path; do [ -x "$path" ] || { printf %s "$path"; exit 0; }; done'
_RUN_SECONDS = 120


@dataclass(frozen=True)
class OsUser:
    """Whom the server runs as; None in both fields means: as this process does."""

    uid: int | None = None
    gid: int | None = None

    @classmethod
    def for_cluster(cls, data_dir: Path, cluster: Path) -> Self:
        """Returns this process's user, or for root the owner of what exists (`SERVICE_ID` where that is root).

        Raises:
            EmbeddedError: The cluster belongs to a user as whom the server cannot be run.
        """
        owner = (cluster if cluster.exists() else data_dir).stat()
        if os.geteuid() != 0:
            if cluster.exists() and owner.st_uid != os.geteuid():
                raise EmbeddedError(f"{cluster} belongs to another user ({owner.st_uid}). {WAY_OUT}")
            return cls()
        if cluster.exists() and owner.st_uid == 0:
            raise EmbeddedError(f"{cluster} belongs to root, as whom PostgreSQL does not run. {WAY_OUT}")
        return cls(owner.st_uid or SERVICE_ID, owner.st_gid or SERVICE_ID)

    @property
    def effective_uid(self) -> int:
        """The number of this user, also if that is us."""
        return os.geteuid() if self.uid is None else self.uid

    def run(self, argv: Sequence[str], stderr: int = subprocess.PIPE) -> tuple[int, str, str]:
        """Runs a program as this user, out of reach of the terminal's Ctrl-C.

        It blocks. subprocess and not asyncio.create_subprocess_exec: under uvloop that one cannot change the user.

        Returns:
            Exit status, standard output, standard error.

        Raises:
            OSError: The program cannot be run.
            subprocess.TimeoutExpired: It took longer than two minutes.
        """
        groups: list[int] | None = None if self.uid is None else []
        done = subprocess.run(  # noqa: S603 - our own programs
            argv,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            errors="replace",
            timeout=_RUN_SECONDS,
            cwd="/",
            env=_ENVIRONMENT,
            start_new_session=True,
            user=self.uid,
            group=self.gid,
            extra_groups=groups,
        )
        return done.returncode, done.stdout, done.stderr or ""

    def chown(self, path: Path) -> None:
        """Gives ``path`` to this user; does nothing when that is us, who made it."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def first_closed(self, path: Path) -> Path | None:
        """Returns the topmost folder on the way to ``path`` that this user cannot enter, as the kernel answers."""
        if self.uid is None:
            return None
        way = [str(step) for step in (*reversed(path.parents), path)]
        _, closed, _ = self.run(["/bin/sh", "-c", _FIRST_CLOSED, "sh", *way])
        return Path(closed) if closed else None

    def check_reach(self, path: Path, data_dir: Path) -> None:
        """Checks that this user can enter ``path``, which lies in the data folder.

        Raises:
            EmbeddedError: It cannot; the text names the closed folder.
        """
        if closed := self.first_closed(path):
            raise EmbeddedError(
                f"The embedded database does not run as root but as user {self.uid}, who cannot enter {closed} "
                f"to reach {data_dir}. Set CONVERSATIONS_DATA_DIR to a folder that is open on the way, or run this "
                "program as an ordinary user, or set CONVERSATIONS_DATABASE_URL to your PostgreSQL."
            )
