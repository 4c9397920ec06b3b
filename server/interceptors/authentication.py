"""Authentication: who is calling, by the one configured identity source."""

from types import TracebackType

from server.identity.caller import Caller, authenticate, current_caller
from server.identity.source import Source
from server.interceptors.chain import Context, Handler, Interceptor, is_public_method, is_streaming, wrap_handler
from server.observability.trace_context import current_trace, trace_of
from server.policy.principal import current_principal


class Authentication(Interceptor):
    """Sets `current_principal` for each call, and `current_caller` for streams; health and reflection are public."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns ``handler`` behind the guard that authenticates; ``handler`` itself for public methods."""
        if is_public_method(method):
            return handler
        streaming = is_streaming(handler)
        return wrap_handler(handler, lambda context: _AuthenticationGuard(self._source, method, context, streaming))


class _AuthenticationGuard:
    __slots__ = ("_context", "_method", "_source", "_streaming")

    def __init__(self, source: Source, method: str, context: Context, streaming: bool) -> None:  # noqa: FBT001
        self._streaming = streaming
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
        current_trace.set(current_trace.get() or trace_of(self._context.invocation_metadata() or ()))
        # Never reset: a generator may be closed in another context, where the token of
        # this one is not valid (grpc/grpc#42295). Each call has a context of its own.
        current_principal.set(await authenticate(self._source, self._method, self._context))
        if self._streaming:
            current_caller.set(Caller(self._source, self._method, self._context))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
