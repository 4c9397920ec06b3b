"""Capacity: how much runs at once in this process.

Calls over the limit are refused before anything is done for them. Our own
count, not grpc's `maximum_concurrent_rpcs`: health must answer however much
there is to do (traps §6).
"""

from collections import Counter
from types import TracebackType

from server.errors import Overloaded
from server.interceptors.chain import Guard, Handler, Interceptor, is_ours, streams
from server.policy.principal import Principal, current_principal


class CallLimit(Interceptor):
    """Limits the unary calls under way."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.count = 0
        self.refused = 0

    def wrap(self, method: str, handler: Handler) -> Handler:
        """``handler`` limited, when it is one of ours and unary."""
        return super().wrap(method, handler) if is_ours(method) and not streams(handler) else handler

    def guard(self, method: str) -> Guard:
        """A guard that counts; it holds no state of its own, so one serves all calls."""
        return lambda _context: self

    async def __aenter__(self) -> None:
        if self.count >= self._limit:
            self.refused += 1
            raise Overloaded("calls", self._limit)
        self.count += 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.count -= 1


class StreamLimit(Interceptor):
    """Limits the streams under way, of all and of one principal; behind Identify."""

    def __init__(self, limit: int, limit_of_principal: int) -> None:
        self._limit = limit
        self._limit_of_principal = limit_of_principal
        self._of: Counter[tuple[str, str]] = Counter()
        self.count = 0
        self.refused = 0

    def wrap(self, method: str, handler: Handler) -> Handler:
        """``handler`` limited, when it is one of ours and streams."""
        return super().wrap(method, handler) if is_ours(method) and streams(handler) else handler

    def guard(self, method: str) -> Guard:
        """A guard that counts the stream until it ends."""
        return lambda _context: _StreamGuard(self, current_principal.get())

    def begin(self, who: tuple[str, str]) -> None:
        """Counts a stream of a principal.

        Raises:
            Overloaded: There are too many.
        """
        for count, limit, what in (
            (self.count, self._limit, "streams"),
            (self._of[who], self._limit_of_principal, "streams of one principal"),
        ):
            if count >= limit:
                self.refused += 1
                raise Overloaded(what, limit)
        self.count += 1
        self._of[who] += 1

    def end(self, who: tuple[str, str]) -> None:
        """It ended."""
        self.count -= 1
        self._of[who] -= 1
        if not self._of[who]:
            del self._of[who]


class _StreamGuard:
    __slots__ = ("_streams", "_who")

    def __init__(self, streams: StreamLimit, principal: Principal) -> None:
        self._streams = streams
        self._who = (principal.tenant, principal.id)

    async def __aenter__(self) -> None:
        self._streams.begin(self._who)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._streams.end(self._who)
