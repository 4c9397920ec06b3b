"""Identify: who is asking, from the one configured source."""

from types import TracebackType

import structlog

from server.errors import Unauthenticated
from server.identity.source import Source
from server.interceptors.chain import OPEN, Context, Guard, Interceptor
from server.observability.trace_context import current_trace, trace_of
from server.policy.principal import current_principal

log = structlog.get_logger(__name__)


class Authentication(Interceptor):
    """Sets the principal of each call, except of those that are open to anybody."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def guard(self, method: str) -> Guard | None:
        """A guard that sets `current_principal`; none for health and reflection."""
        if method.startswith(OPEN):
            return None
        return lambda context: _AuthenticationGuard(self._source, method, context)


class _AuthenticationGuard:
    __slots__ = ("_context", "_method", "_source")

    def __init__(self, source: Source, method: str, context: Context) -> None:
        self._source = source
        self._method = method
        self._context = context

    async def __aenter__(self) -> None:
        # With tracing on it is set, and may have begun here.
        trace = current_trace.get() or trace_of(self._context.invocation_metadata() or ())
        current_trace.set(trace)
        try:
            principal = await self._source.principal(self._context)
        except Unauthenticated as refusal:
            # The operator learns what was wrong, in our words; the caller does not.
            log.info("credentials refused", source=self._source.name, method=self._method, why=refusal.why, trace=trace)
            raise
        # Set and never reset: a generator may be closed in another context
        # (traps §2.12), and every call has a context of its own.
        current_principal.set(principal)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
