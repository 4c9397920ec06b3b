"""Something that is done again and again while something else goes on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any


@asynccontextmanager
async def repeated(work: Callable[[], Awaitable[Any]], every: float) -> AsyncIterator[None]:
    """Does ``work`` every so many seconds while this is open; what it raises is raised at the end."""
    async with beside(_repeat(work, every)):
        yield


async def _repeat(work: Callable[[], Awaitable[Any]], every: float) -> None:
    while True:
        await work()
        await asyncio.sleep(every)


@asynccontextmanager
async def beside(work: Any) -> AsyncIterator[None]:
    """Runs a coroutine while this is open; what it raised before is raised at the end."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
