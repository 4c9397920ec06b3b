"""Work on large requests, done in a thread while the event loop goes on with other calls."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

LARGE_BYTES = 16 * 1024  # work on a smaller request takes some milliseconds at most

# One thread: several would take the interpreter lock from the event loop more often, and finish no earlier.
_thread = ThreadPoolExecutor(1, "large-requests")

# Bytes of the request, or of the message of a stream, that the current task works on; set by `Decode`. To ask a message
# for its size is to serialize it.
current_size: ContextVar[int] = ContextVar("current_size", default=0)

P = ParamSpec("P")
R = TypeVar("R")


async def run_sized(size: int, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Returns what ``function`` returns; it runs in a thread if it works on more than `LARGE_BYTES`.

    Args:
        size: Bytes of the request.
        function: Touches nothing that other calls share.
        args: Its arguments.
        kwargs: Its arguments.
    """
    if size <= LARGE_BYTES:
        return function(*args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_thread, lambda: function(*args, **kwargs))
