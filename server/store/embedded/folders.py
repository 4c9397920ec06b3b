"""Folders and files of the private server: their owners and modes."""

import os
import stat
from pathlib import Path

from server.store.embedded.os_user import OsUser


def make_folder(folder: Path) -> None:
    """Makes a folder and its parents; only those made here get a mode.

    For root that mode lets the server's user pass through, but not list (0711); else it is 0700.

    Raises:
        OSError: It cannot be made, or is a file.
    """
    mode = 0o711 if os.geteuid() == 0 else 0o700
    for path in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        path.mkdir(exist_ok=True)
        path.chmod(mode)
    folder.mkdir(exist_ok=True)  # raises if it is a file


def open_owned(path: Path, flags: int) -> int:
    """Opens, or creates, a file of mode 0600 that belongs to the owner of its folder; returns its descriptor.

    A file that root kept for itself would lock that owner out later.
    """
    descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


def chown_tree(folder: Path, user: OsUser) -> None:
    """Gives a folder and all in it to ``user``."""
    if user.uid is None:
        return
    for root, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            user.chown(Path(root, name))


def make_readable_by_all(folder: Path) -> None:
    """Lets everybody read and run a copy of programs, whose originals may have been installed under a strict umask."""
    for root, _, files in os.walk(folder):
        Path(root).chmod(0o755)
        for path in (Path(root, name) for name in files):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)


def sync_folder(folder: Path) -> None:
    """Makes a rename into ``folder`` survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
