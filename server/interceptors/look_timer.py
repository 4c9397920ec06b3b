"""A timer that looks at what is on its way, for as long as something is."""

import asyncio
from collections.abc import Callable
from contextvars import Context


class LookTimer:
    """Calls a function once, some time after `start`; one timer serves all that start it meanwhile.

    A timer for each read would cost more than a small read. The call that starts it lends it no context variables,
    which would keep what they hold.

    Attributes:
        due: When it calls, or called last, by the clock of the loop.
    """

    def __init__(self, seconds: float, look: Callable[[], None]) -> None:
        self.due = 0.0
        self._seconds = seconds
        self._look = look
        self._runs = False

    def start(self) -> None:
        """Starts it, unless it runs."""
        if not self._runs:
            self._runs = True
            loop = asyncio.get_running_loop()
            self.due = loop.time() + self._seconds
            loop.call_at(self.due, self._call, context=Context())

    def _call(self) -> None:
        self._runs = False
        self._look()
