"""Concurrency limits: how many calls and streams run at once in this process, and how principals share them.

The counts are our own and not grpc's `maximum_concurrent_rpcs`, which counts health checks
as well: those must answer under any load (docs/adr/0016, 0025).
"""

from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import TypeAlias

from server.errors import Overloaded
from server.interceptors.chain import Context, Guard, Handler, Interceptor, is_contract_method, is_streaming
from server.policy.principal import PrincipalKey, current_principal_key

Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]

_IDENTITY_KEYS = frozenset(("authorization", "x-principal", "x-tenant"))
_MAX_REMEMBERED = 4096


class CallLimit(Interceptor):
    """Limits the unary calls that run at once, those that are still being authenticated included.

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
        return super().wrap(method, handler) if is_limited(method, handler) else handler

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


class FairShare(Interceptor):
    """Divides the unary calls that run at once among principals; runs inside `Authentication`.

    While fewer than ``limit`` calls run, every call is let in. At the limit, a principal is let in as long as it has
    less than its share: the limit divided by the principals that have calls running. So one principal may use all of
    it alone, and another that arrives gets its share at once.

    Attributes:
        count: Calls that run now.
        refused: Calls refused since the start.
        error: What a refused call ends with.
    """

    def __init__(self, limit: int, *, known_by_metadata: bool) -> None:
        """``limit``: calls at once. ``known_by_metadata``: whether metadata names the principal, not the connection."""
        self._limit = limit
        self._known_by_metadata = known_by_metadata
        self._running: Counter[PrincipalKey] = Counter()
        self.count = 0
        self._refused_credentials: dict[int, PrincipalKey] = {}
        self.error = Overloaded("calls", limit)
        self.refused = 0

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns ``handler`` limited, if it is a unary method of the contract."""
        return super().wrap(method, handler) if is_limited(method, handler) else handler

    def guard(self, method: str) -> Guard:
        """Returns a guard that counts a call until it ends."""
        return lambda context: _CallGuard(self, context)

    def refuses(self, metadata: Metadata) -> bool:
        """Whether a call with this metadata would be refused, without authenticating it.

        True only if a call with the same credentials has been refused, and its principal still has its share or
        more. That is the cheap way to say no, and under overload most calls take it.
        """
        if self.count < self._limit or not self._known_by_metadata:
            return False
        principal = self._refused_credentials.get(_credentials(metadata))
        return principal is not None and not self._has_room(principal)

    def begin(self, principal: PrincipalKey, context: Context) -> None:
        """Counts a call of ``principal`` in.

        Raises:
            Overloaded: The limit is reached, and the principal has its share.
        """
        if self.count >= self._limit and not self._has_room(principal):
            self.refused += 1
            self._remember(principal, context.invocation_metadata() or ())
            raise Overloaded("calls", self._limit)
        self.count += 1
        self._running[principal] += 1

    def end(self, principal: PrincipalKey) -> None:
        """Counts a call of ``principal`` out."""
        self.count -= 1
        self._running[principal] -= 1
        if not self._running[principal]:
            del self._running[principal]

    def _has_room(self, principal: PrincipalKey) -> bool:
        own = self._running.get(principal, 0)
        principals = len(self._running) + (0 if own else 1)
        return own < max(1, self._limit // principals)

    def _remember(self, principal: PrincipalKey, metadata: Metadata) -> None:
        if len(self._refused_credentials) >= _MAX_REMEMBERED:
            self._refused_credentials.clear()
        self._refused_credentials[_credentials(metadata)] = principal


def _credentials(metadata: Metadata) -> int:
    """Returns a number that stands for the credentials in the metadata of a call."""
    return hash(tuple(pair for pair in metadata if pair[0] in _IDENTITY_KEYS))


class _CallGuard:
    __slots__ = ("_context", "_principal", "_shares")

    def __init__(self, shares: FairShare, context: Context) -> None:
        self._shares = shares
        self._context = context
        self._principal = current_principal_key()

    async def __aenter__(self) -> None:
        self._shares.begin(self._principal, self._context)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shares.end(self._principal)


class StreamLimit(Interceptor):
    """Limits the streams of one kind that run at once, in all and of one principal; runs inside `Authentication`.

    Streams of appends and watches are counted apart, so that neither takes the place of the other.

    Attributes:
        count: Streams that run now.
        refused: Streams refused since the start.
    """

    def __init__(self, limit: int, limit_per_principal: int, what: str = "streams") -> None:
        """``what``: is counted: `streams`, of which callers send messages, or `watches`, of which they do not."""
        self._what = what
        self._limit = limit
        self._limit_per_principal = limit_per_principal
        self._per_principal: Counter[PrincipalKey] = Counter()
        self.count = 0
        self.refused = 0

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns ``handler`` limited, if it is a streaming method of the contract."""
        kind = "streams" if handler.request_streaming else "watches"
        limited = is_contract_method(method) and is_streaming(handler) and kind == self._what
        return super().wrap(method, handler) if limited else handler

    def guard(self, method: str) -> Guard:
        """Returns a guard that counts a stream until it ends."""
        return lambda _context: _StreamGuard(self)

    def begin(self, principal: PrincipalKey) -> None:
        """Counts a stream of ``principal`` in.

        Raises:
            Overloaded: One of the two limits is reached.
        """
        for count, limit, what in (
            (self.count, self._limit, self._what),
            (self._per_principal[principal], self._limit_per_principal, f"{self._what} of one principal"),
        ):
            if count >= limit:
                self.refused += 1
                raise Overloaded(what, limit)
        self.count += 1
        self._per_principal[principal] += 1

    def end(self, principal: PrincipalKey) -> None:
        """Counts a stream of ``principal`` out."""
        self.count -= 1
        self._per_principal[principal] -= 1
        if not self._per_principal[principal]:
            del self._per_principal[principal]


class _StreamGuard:
    __slots__ = ("_principal", "_streams")

    def __init__(self, streams: StreamLimit) -> None:
        self._streams = streams
        self._principal = current_principal_key()

    async def __aenter__(self) -> None:
        self._streams.begin(self._principal)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._streams.end(self._principal)


def is_limited(method: str, handler: Handler) -> bool:
    """Whether calls of ``method`` count: those of the contract that are no streams."""
    return is_contract_method(method) and not is_streaming(handler)
