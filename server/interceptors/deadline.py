"""Deadline: no unary call runs for ever.

A call without a deadline gets the default, one with a longer deadline the maximum.
When it passes, the method is cancelled, and its SQL statement with it. Runs inside
`ErrorStatus`, which reports it.
"""

import asyncio
from types import TracebackType

from server.errors import DeadlineExceeded
from server.interceptors.chain import Context, Handler, Interceptor, is_contract_method, is_streaming, wrap_handler


class Deadline(Interceptor):
    """Limits how long a call runs.

    Args:
        default: Seconds for a call that came without a deadline.
        maximum: Seconds for any call.
    """

    def __init__(self, default: float, maximum: float) -> None:
        self._default = default
        self._maximum = maximum

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns ``handler`` with a deadline, if it is unary: a stream lasts as long as its caller wants."""
        if not is_contract_method(method) or is_streaming(handler):
            return handler
        return wrap_handler(handler, lambda context: _DeadlineGuard(self._seconds(context)))

    def _seconds(self, context: Context) -> float:
        remaining: float | None = context.time_remaining()
        return min(self._default if remaining is None else remaining, self._maximum)


class _DeadlineGuard:
    __slots__ = ("_timeout",)

    def __init__(self, seconds: float) -> None:
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the timeout.

        Raises:
            DeadlineExceeded: It had passed. A `TimeoutError` of the method itself goes through as it is.
        """
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            if self._timeout.expired():
                raise DeadlineExceeded from None
            raise
