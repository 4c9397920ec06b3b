"""Deadline: no call runs for ever.

Inside Failures, which tells of it. A call without a deadline gets the default,
one with a longer deadline the ceiling; what is left when it passes is cancelled,
its query with it.
"""

import asyncio
from types import TracebackType

from server.errors import DeadlineExceeded
from server.interceptors.chain import Context, Handler, Interceptor, is_ours, streams, wrap_handler


class Deadline(Interceptor):
    """Limits how long a call runs.

    Args:
        default: Seconds for a call that has no deadline of its own.
        ceiling: Seconds for any call.
    """

    def __init__(self, default: float, ceiling: float) -> None:
        self._default = default
        self._ceiling = ceiling

    def wrap(self, method: str, handler: Handler) -> Handler:
        """``handler`` limited, when it is unary: streams last as long as their callers want."""
        if not is_ours(method) or streams(handler):
            return handler
        return wrap_handler(handler, lambda context: _DeadlineGuard(self._seconds(context)))

    def _seconds(self, context: Context) -> float:
        remaining: float | None = context.time_remaining()
        return min(self._default if remaining is None else remaining, self._ceiling)


class _DeadlineGuard:
    __slots__ = ("_timeout",)

    def __init__(self, seconds: float) -> None:
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            if self._timeout.expired():
                raise DeadlineExceeded from None
            raise
