"""The caller of a stream: a stream may outlast the credentials that it began with."""

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Self

import structlog

from server.errors import Unauthenticated
from server.identity.source import Call, Source
from server.observability.call_context import current_call
from server.observability.escaping import escape_unprintable
from server.observability.trace_context import current_trace
from server.policy.principal import Principal

log = structlog.get_logger(__name__)


async def authenticate(source: Source, method: str, call: Call) -> Principal:
    """Returns the principal that makes ``call``; refused credentials are logged with the reason, which nobody is told.

    Raises:
        Unauthenticated: Credentials are missing or not valid.
        IdentityUnavailable: They cannot be checked now.
    """
    try:
        return await source.principal(call)
    except Unauthenticated as refusal:
        call_context, trace = current_call.get(), current_trace.get()
        peer = escape_unprintable(call_context.peer) if call_context else ""
        log.info("credentials refused", source=source.name, method=method, peer=peer, why=refusal.why, trace=trace)
        raise


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """What a source reads of a call, for as long as it is needed.

    gRPC frees a call that is cancelled while its stream still runs, and reading from it then crashes the process.
    """

    metadata: tuple[tuple[str, str | bytes], ...]
    address: str
    properties: Mapping[str, Iterable[bytes]]

    @classmethod
    def of(cls, call: Call) -> Self:
        """Records ``call``."""
        return cls(tuple(call.invocation_metadata() or ()), call.peer(), call.auth_context())

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]]:
        """As `Call.invocation_metadata`."""
        return self.metadata

    def peer(self) -> str:
        """As `Call.peer`."""
        return self.address

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """As `Call.auth_context`."""
        return self.properties


class Caller:
    """Who makes a call, authenticated again whenever it is asked."""

    __slots__ = ("_call", "_method", "_source")

    def __init__(self, source: Source, method: str, call: Call) -> None:
        self._source = source
        self._method = method
        self._call = RecordedCall.of(call)

    async def principal(self) -> Principal:
        """Returns the principal as it is now: with the keys, the file and the time of now.

        Every source remembers what it verified, so this costs a few microseconds. Raises as `authenticate` does.
        """
        return await authenticate(self._source, self._method, self._call)


# Set by the interceptor `Authentication`, for streams only.
current_caller: ContextVar[Caller] = ContextVar("current_caller")
