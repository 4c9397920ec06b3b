"""Gives memory back to the system after large requests (docs/adr/0026).

glibc keeps what is freed, in an arena for each thread. After a burst of large requests several hundred mebibytes stayed
resident for good.
"""

import asyncio
import ctypes
import gc
from typing import Any

from server.observability.resident_memory import STATM, resident_bytes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # <malloc.h>
_LARGE_BLOCK = 32 * 1024 * 1024  # bytes; the most that glibc takes. A larger block comes from the system, page by page
_KEPT = 32 * 1024 * 1024  # bytes, free at the end of an arena, that the next large request takes
_ARENAS = 2
_GROWTH_BYTES = 16 * 1024 * 1024  # that is worth a look
_SHORTEST, _LONGEST = 2.0, 8.0  # seconds between two looks


def find_glibc() -> Any:
    """Returns the C library if it is glibc and there is a /proc; else None."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") and STATM.exists() else None


def limit_arenas(glibc: Any) -> None:
    """Has blocks kept in two arenas, so that the copies of a large request take 2 ms each instead of 50."""
    glibc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
    glibc.mallopt(_M_TRIM_THRESHOLD, _KEPT)
    glibc.mallopt(_M_ARENA_MAX, _ARENAS)


async def give_memory_back(glibc: Any) -> None:
    """Trims the arenas while the process is larger than it was, until it is cancelled.

    Looks seldom when the last time did not help: then memory is in use.
    """
    least, pause = resident_bytes(), _SHORTEST
    while True:
        await asyncio.sleep(pause)
        before = resident_bytes()
        if before < least + _GROWTH_BYTES:
            pause = _SHORTEST
            continue
        gc.collect()  # what was made at start is frozen, so this takes a few milliseconds
        await asyncio.to_thread(glibc.malloc_trim, 0)  # without the interpreter lock
        after = resident_bytes()
        pause = _SHORTEST if after < before - _GROWTH_BYTES // 4 else min(2 * pause, _LONGEST)
        least = min(least, after)
