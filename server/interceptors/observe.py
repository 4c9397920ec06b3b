"""Observe: what every call was and how it ended, refusals with the code the caller gets.

Outermost, or it would not see what Failures makes of an exception.
"""

import time
from types import TracebackType
from typing import Any

import grpc
import structlog

from server.interceptors.around import Context, Guard, Link

log = structlog.get_logger(__name__)

# grpc.aio gives what was set, a StatusCode or its number.
_NAMES = {key: code.name for code in grpc.StatusCode for key in (code, code.value[0])}


class Observe(Link):
    """Writes a line for each call, at level debug: method, code and milliseconds."""

    def guard(self, method: str) -> Guard:
        """A guard that times the call."""
        return lambda context: _Seen(method, context)


class _Seen:
    __slots__ = ("_began", "_context", "_method")

    def __init__(self, method: str, context: Context) -> None:
        self._method = method
        self._context = context
        self._began = 0.0

    async def __aenter__(self) -> None:
        self._began = time.perf_counter()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        milliseconds = (time.perf_counter() - self._began) * 1e3
        log.debug("call", method=self._method, code=self._code(error), ms=round(milliseconds, 2))

    def _code(self, error: BaseException | None) -> str:
        """The name of the code that was set; a call that is cancelled sets none."""
        code: Any = self._context.code()
        if not code and error is not None:
            return "CANCELLED"
        return _NAMES[code or 0]
