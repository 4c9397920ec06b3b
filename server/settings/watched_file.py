"""Small files that are read again when they change."""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import TypeAlias

_LOOK_SECONDS = 1.0
MAX_BYTES = 256 * 1024

FileVersion: TypeAlias = tuple[str, int, int, int, int]


def file_version(path: Path) -> FileVersion | None:
    """A value that differs after the file was written or replaced; None while it cannot be found.

    It holds the real path as well: Kubernetes changes a ConfigMap and a Secret by swapping a
    symbolic link above the files.
    """
    try:
        real = os.path.realpath(path, strict=True)
        found = os.stat(real)  # noqa: PTH116 - os.stat costs half of Path.stat
    except OSError:
        return None
    return real, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class WatchedFile:
    """A file whose content is given out once for each change.

    Args:
        path: May be a symbolic link.
        clock: Seconds; the file system is asked at most once a second.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = monotonic) -> None:
        self._path = path
        self._clock = clock
        self._next_look = clock()
        self._version: FileVersion | None = None  # of the content that was read last

    def read_if_changed(self) -> bytes | None:
        """The content, if it is another than that of the last call, else None.

        Raises:
            OSError: The file cannot be read, or is larger than `MAX_BYTES`; the next look tries again.
        """
        if (now := self._clock()) < self._next_look:
            return None
        self._next_look = now + _LOOK_SECONDS
        version = file_version(self._path)
        if version is not None and version == self._version:
            return None
        self._version = None
        body = self._read()
        self._version = version
        return body

    def _read(self) -> bytes:
        with self._path.open("rb") as file:
            body = file.read(MAX_BYTES + 1)
        if len(body) > MAX_BYTES:
            raise OSError("too large")
        return body


class WakeableSleep:
    """A sleep that SIGHUP or Reload can cut short."""

    def __init__(self) -> None:
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Ends the sleep; safe in a signal handler."""
        self._woken.set()

    async def sleep(self, seconds: float) -> bool:
        """Sleeps, and says whether `wake` was called, during the sleep or before it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        woken = self._woken.is_set()
        self._woken.clear()
        return woken
