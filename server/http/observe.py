"""Counts requests by method, route and status, and writes their lines of the access log."""

import time
from types import TracebackType
from typing import Any

from server.http.context import HttpContext
from server.http.routes import BY_METHOD, Route
from server.interceptors.chain import Guard, Interceptor
from server.interceptors.observe import code_of
from server.observability import logs
from server.observability.access_log import AccessLog
from server.observability.call_context import begin_call
from server.observability.histogram import Histogram
from server.observability.stats import SECONDS

_VERBS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"))
_OTHER_VERB = "_OTHER"  # by OpenTelemetry's conventions: what a caller made up is no label
_CANCELLED = 499  # of a caller that has gone before its answer

Words = tuple[str, str, str]  # method of HTTP, route, status


class HttpObserve(Interceptor):
    """Counts requests.

    Attributes:
        seconds: Of each request, by method, route and status.
    """

    def __init__(self, *, access_log: bool) -> None:
        self._log = AccessLog(always=access_log)
        self.seconds: dict[Words, Histogram] = {}

    def guard(self, method: str) -> Guard:
        """Returns a guard that counts a call when it ends."""
        route = BY_METHOD[method]

        def observe(context: Any) -> _ObserveGuard:
            return _ObserveGuard(self, route, context)

        return observe

    def count(self, verb: str, path: str, status: int, seconds: float) -> None:
        """Counts a request; ``path``: of its route, '' if it has none."""
        words = (verb if verb in _VERBS else _OTHER_VERB, path, str(status))
        found = self.seconds.get(words)
        if found is None:
            found = self.seconds[words] = Histogram(SECONDS)
        found.add(seconds)

    def write(self, context: HttpContext, code: str, status: int, seconds: float) -> None:
        """Writes the line of a call."""
        severity = self._log.severity(code)
        if severity is None:
            return
        more: dict[str, object] = {"protocol": "http", "status": status}
        if logs.is_logged("debug") and (retry := context.retry_count):
            more["retry"] = retry
        self._log.write(severity, code, seconds, more)


class _ObserveGuard:
    __slots__ = ("_began", "_context", "_observe", "_route")

    def __init__(self, observe: HttpObserve, route: Route, context: HttpContext) -> None:
        self._observe = observe
        self._route = route
        self._context = context
        self._began = 0.0

    async def __aenter__(self) -> None:
        begin_call(self._route.method, self._context.peer())
        self._began = time.perf_counter()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.perf_counter() - self._began
        context: Any = self._context
        code = code_of(context, error)
        status = status_of(self._context, error)
        self._observe.count(self._route.verb, self._route.path, status, seconds)
        self._observe.write(self._context, code, status, seconds)


def status_of(context: HttpContext, error: BaseException | None) -> int:
    """Returns the status of a call that has ended."""
    return context.status if error is None or context.problem else _CANCELLED
