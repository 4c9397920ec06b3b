"""Folders and files: who gets them, and with which mode."""

import os
import stat
from pathlib import Path

from server.store.embedded.os_user import Identity


def make_folder(folder: Path) -> None:
    """Only folders made here get a mode: for root one that its server may pass through, but not list."""
    mode = 0o711 if os.geteuid() == 0 else 0o700
    for path in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        path.mkdir(exist_ok=True)
        path.chmod(mode)
    folder.mkdir(exist_ok=True)  # says so if it is a file


def open_owned(path: Path, flags: int) -> int:
    """A file of ours in the data folder; given to the folder's owner, or root would lock them out."""
    descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


def give(folder: Path, identity: Identity) -> None:
    """The folder and all in it to this user."""
    if identity.uid is None:
        return
    for root, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            identity.own(Path(root, name))


def open_to_all(folder: Path) -> None:
    """For copies of programs, which are ours to open: the originals may come from under a strict umask."""
    for root, _, files in os.walk(folder):
        Path(root).chmod(0o755)
        for path in (Path(root, name) for name in files):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)


def sync_folder(folder: Path) -> None:
    """Make what was renamed into it survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
