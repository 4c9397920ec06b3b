"""Authentication: who is calling, by the one configured identity source."""

from types import TracebackType

import structlog

from server.errors import Unauthenticated
from server.identity.source import Source
from server.interceptors.chain import Context, Guard, Interceptor, is_public_method
from server.observability.trace_context import current_trace, trace_of
from server.policy.principal import current_principal

log = structlog.get_logger(__name__)


class Authentication(Interceptor):
    """Sets `current_principal` for each call, except for health and reflection, which are public."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def guard(self, method: str) -> Guard | None:
        """Returns the guard that authenticates; None for public methods."""
        if is_public_method(method):
            return None
        return lambda context: _AuthenticationGuard(self._source, method, context)


class _AuthenticationGuard:
    __slots__ = ("_context", "_method", "_source")

    def __init__(self, source: Source, method: str, context: Context) -> None:
        self._source = source
        self._method = method
        self._context = context

    async def __aenter__(self) -> None:
        """Authenticates the caller.

        Raises:
            Unauthenticated: Credentials are missing or not valid.
            IdentityUnavailable: They cannot be checked now.
        """
        # `Tracing` has set it already, perhaps to a trace that began here.
        trace = current_trace.get() or trace_of(self._context.invocation_metadata() or ())
        current_trace.set(trace)
        try:
            principal = await self._source.principal(self._context)
        except Unauthenticated as refusal:
            # The log says what was wrong; the caller is not told.
            log.info("credentials refused", source=self._source.name, method=self._method, why=refusal.why, trace=trace)
            raise
        # Never reset: a generator may be closed in another context, where the token of
        # this one is not valid (grpc/grpc#42295). Each call has a context of its own.
        current_principal.set(principal)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
