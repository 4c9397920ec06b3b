"""Runs what would share a statement in statements of their own, some at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


class SideBySide:
    """Leaves connections to others, however much there is to run.

    Args:
        connections: How many there are; half of them are used.
    """

    def __init__(self, connections: int) -> None:
        self._turns = asyncio.Semaphore(max(1, connections // 2))

    async def run(self, parts: Iterable[T], run: Callable[[T], Awaitable[None]]) -> None:
        """Runs each of ``parts``, which answers its callers itself."""

        async def run_in_turn(part: T) -> None:
            async with self._turns:
                await run(part)

        await asyncio.gather(*map(run_in_turn, parts))
