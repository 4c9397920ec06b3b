"""Tries to lock a table in moments between the writes of others.

A statement that waits for the lock of a table makes all later statements on that table wait behind it. So it waits a
moment only (`lock_timeout`), what it did is rolled back, and calls go on until the next try.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

LOCK_TIMEOUT = "250ms"  # of a session that changes a table
_RETRY_SECONDS = (0.5, 1.0)  # least and most between two tries


async def try_until_locked(attempt: Callable[[], Awaitable[bool]], wait_seconds: float) -> bool:
    """Calls ``attempt`` until it returns True; returns False if it did not for ``wait_seconds``."""
    deadline = time.monotonic() + wait_seconds
    while not await attempt():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(random.uniform(*_RETRY_SECONDS))  # noqa: S311 - jitter
    return True
