"""The memory that this process takes, and whether much of it was taken of late."""

import resource
import time
from collections.abc import Callable
from pathlib import Path

STATM = Path("/proc/self/statm")
_WINDOW = 30.0  # seconds


def resident_bytes() -> int:
    """Returns the resident memory of this process; 0 where there is no /proc."""
    try:
        return int(STATM.read_bytes().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


class MemoryGauge:
    """Tells when the process has grown by more than a limit within the last minute.

    What it took for longer is not counted: that is what the process needs, such as for its connections.

    Attributes:
        used: Bytes at the last look.
        growth: Bytes that it had grown by at the last look.
    """

    def __init__(self, limit: int, measure: Callable[[], int] = resident_bytes) -> None:
        """``limit``: in bytes. ``measure``: returns the memory in use."""
        self._limit = limit
        self._measure = measure
        self._began = time.monotonic()
        self.growth = 0
        self.used = self._least = self._least_before = measure()

    def is_short(self) -> bool:
        """Whether the process has grown by more than the limit."""
        self.used = used = self._measure()
        now = time.monotonic()
        if now > self._began + _WINDOW:
            self._least_before = self._least if now < self._began + 2 * _WINDOW else used
            self._least, self._began = used, now
        self._least = min(self._least, used)
        self.growth = used - min(self._least, self._least_before)
        return self.growth > self._limit
