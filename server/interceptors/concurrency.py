"""Concurrency limits: how many calls and streams run at once in this process.

A call over the limit is refused before any work. The counts are our own and not
grpc's `maximum_concurrent_rpcs`, which counts health checks as well: those must
answer under any load (docs/adr/0016).
"""

from collections import Counter
from types import TracebackType

from server.errors import Overloaded
from server.interceptors.chain import Guard, Handler, Interceptor, is_contract_method, is_streaming
from server.policy.principal import Principal, current_principal


class CallLimit(Interceptor):
    """Limits the unary calls that run at once.

    Attributes:
        count: Calls that run now.
        refused: Calls refused since the start.
    """

    def __init__(self, limit: int) -> None:
        """``limit``: calls at once."""
        self._limit = limit
        self.count = 0
        self.refused = 0

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns ``handler`` limited, if it is a unary method of the contract."""
        limited = is_contract_method(method) and not is_streaming(handler)
        return super().wrap(method, handler) if limited else handler

    def guard(self, method: str) -> Guard:
        """Returns this object: it keeps nothing of a single call, so one guard serves all of them."""
        return lambda _context: self

    async def __aenter__(self) -> None:
        """Counts the call in.

        Raises:
            Overloaded: The limit is reached.
        """
        if self.count >= self._limit:
            self.refused += 1
            raise Overloaded("calls", self._limit)
        self.count += 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.count -= 1


class StreamLimit(Interceptor):
    """Limits the streams that run at once, in all and of one principal; runs inside `Authentication`.

    Attributes:
        count: Streams that run now.
        refused: Streams refused since the start.
    """

    def __init__(self, limit: int, limit_per_principal: int) -> None:
        self._limit = limit
        self._limit_per_principal = limit_per_principal
        self._per_principal: Counter[tuple[str, str]] = Counter()
        self.count = 0
        self.refused = 0

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns ``handler`` limited, if it is a streaming method of the contract."""
        limited = is_contract_method(method) and is_streaming(handler)
        return super().wrap(method, handler) if limited else handler

    def guard(self, method: str) -> Guard:
        """Returns a guard that counts a stream until it ends."""
        return lambda _context: _StreamGuard(self, current_principal.get())

    def begin(self, principal: tuple[str, str]) -> None:
        """Counts a stream of ``principal`` (tenant and id) in.

        Raises:
            Overloaded: One of the two limits is reached.
        """
        for count, limit, what in (
            (self.count, self._limit, "streams"),
            (self._per_principal[principal], self._limit_per_principal, "streams of one principal"),
        ):
            if count >= limit:
                self.refused += 1
                raise Overloaded(what, limit)
        self.count += 1
        self._per_principal[principal] += 1

    def end(self, principal: tuple[str, str]) -> None:
        """Counts a stream of ``principal`` out."""
        self.count -= 1
        self._per_principal[principal] -= 1
        if not self._per_principal[principal]:
            del self._per_principal[principal]


class _StreamGuard:
    __slots__ = ("_principal", "_streams")

    def __init__(self, streams: StreamLimit, principal: Principal) -> None:
        self._streams = streams
        self._principal = (principal.tenant, principal.id)

    async def __aenter__(self) -> None:
        self._streams.begin(self._principal)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._streams.end(self._principal)
