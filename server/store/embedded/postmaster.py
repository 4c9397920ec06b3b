"""Which process is the server of a cluster: what it says of itself, and whether that is true."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Postmaster:
    """What a running server writes about itself into postmaster.pid."""

    pid: int
    cluster: str
    socket_dir: Path | None

    @classmethod
    def of(cls, cluster: Path) -> Self | None:
        """None without a file, or with one that is still being written."""
        try:
            lines = (cluster / "postmaster.pid").read_text().splitlines()
            return cls(int(lines[0]), lines[1], Path(lines[4]) if lines[4:5] and lines[4] else None)
        except (FileNotFoundError, ValueError, IndexError):
            return None


def runs(pid: int, cluster: str, uid: int) -> bool:
    """Whether pid is this cluster's server: after a crash it may be anyone's. A zombie has no cmdline.

    The user counts as well: root must not signal whatever the server's user wrote into postmaster.pid.
    """
    process = Path("/proc", str(pid))
    if not Path("/proc/self/cmdline").exists():
        return _exists(pid)
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
        return process.stat().st_uid == uid and os.fsencode(cluster) in words
    except (FileNotFoundError, ProcessLookupError):
        return False


def _exists(pid: int) -> bool:
    """The best answer of a system without /proc."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, 0)
        return True
    return False
