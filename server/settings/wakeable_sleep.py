"""How what is looked at now and then is looked at sooner."""

import asyncio
from contextlib import suppress


class Asking:
    """A pause between two looks, which ends when somebody asks."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Ends the pause; safe in a signal handler."""
        self._asked.set()

    async def pause(self, seconds: float) -> bool:
        """Whether somebody asked, during the pause or before it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._asked.wait()
        asked = self._asked.is_set()
        self._asked.clear()
        return asked
