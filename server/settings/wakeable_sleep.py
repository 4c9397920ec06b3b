"""How what is looked at now and then is looked at sooner."""

import asyncio
from contextlib import suppress


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
