"""Which process is the server of a cluster: what its lock file says, and whether that is true."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_EXEC_SECONDS = 1.0  # an exec takes less than a millisecond, unless the process has to wait for a processor


@dataclass(frozen=True)
class Postmaster:
    """What a running server writes about itself into postmaster.pid."""

    pid: int
    cluster: str
    socket_dir: Path | None

    @classmethod
    def read(cls, cluster: Path) -> Self | None:
        """Returns None without a file, or with one that is still being written."""
        try:
            lines = (cluster / "postmaster.pid").read_text().splitlines()
            return cls(int(lines[0]), lines[1], Path(lines[4]) if lines[4:5] and lines[4] else None)
        except (FileNotFoundError, ValueError, IndexError):
            return None


def is_running(pid: int, cluster: str, uid: int) -> bool:
    """Returns whether process ``pid`` is the server of ``cluster``; after a crash the number may be anyone's.

    A zombie is not running: it has no command line. The user counts as well: root must not signal whatever
    number the server's user wrote into postmaster.pid.
    """
    process = Path("/proc", str(pid))
    if not Path("/proc/self/cmdline").exists():
        return _process_exists(pid)
    try:
        return process.stat().st_uid == uid and os.fsencode(cluster) in _command_line(process).split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False


def _command_line(process: Path) -> bytes:
    """Returns the command line; empty for a zombie.

    In the middle of an exec, as of a server that has just been launched, it is empty as well: it is read again then.
    """
    deadline = time.monotonic() + _EXEC_SECONDS
    while not (line := (process / "cmdline").read_bytes()) and not _is_zombie(process):
        if time.monotonic() > deadline:
            break
        time.sleep(0.001)
    return line


def _is_zombie(process: Path) -> bool:
    """Returns whether the process has ended; its state comes behind its name, which may hold anything."""
    return (process / "stat").read_bytes().rpartition(b")")[2].split()[0] in b"ZX"


def _process_exists(pid: int) -> bool:
    """The best answer of a system without /proc."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, 0)
        return True
    return False
