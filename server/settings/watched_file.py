"""A small file that is read again when it changes."""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic

_LOOK_SECONDS = 1.0
MAX_BYTES = 256 * 1024


class Watched:
    """A file's content, each time it is another.

    Args:
        path: May be a symbolic link that is swapped, as Kubernetes does with a ConfigMap.
        clock: Seconds; the file system is asked at most once in one.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = monotonic) -> None:
        self._path = path
        self._clock = clock
        self._next_look = clock()
        self._seen: object = None  # of the file that was read last

    def news(self) -> bytes | None:
        """The content if there is a new one.

        Raises:
            OSError: The file cannot be read, or is beyond `MAX_BYTES`; it is tried again at the next look.
        """
        if (now := self._clock()) < self._next_look:
            return None
        self._next_look = now + _LOOK_SECONDS
        stat = os.stat(self._path)  # noqa: PTH116 - os.stat costs half of Path.stat
        seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if seen == self._seen:
            return None
        self._seen = None
        with self._path.open("rb") as file:
            body = file.read(MAX_BYTES + 1)
        if len(body) > MAX_BYTES:
            raise OSError("too large")
        self._seen = seen
        return body


class WakeableSleep:
    """A pause between two looks, which ends when somebody asks."""

    def __init__(self) -> None:
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Ends the pause; safe in a signal handler."""
        self._woken.set()

    async def sleep(self, seconds: float) -> bool:
        """Whether somebody asked, during the pause or before it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        asked = self._woken.is_set()
        self._woken.clear()
        return asked
