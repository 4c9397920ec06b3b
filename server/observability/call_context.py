"""The call that a log line is about: access and audit lines of one call have the same id."""

from contextvars import ContextVar
from itertools import count
from secrets import token_hex
from typing import NamedTuple
from urllib.parse import unquote

_PROCESS = token_hex(6)
_numbers = count(1)


class CallContext(NamedTuple):
    """A call while it is served.

    Attributes:
        id: Another one for each call, also in other processes.
        method: ``/package.Service/Method``.
        peer: The other end of the connection: `ipv4:127.0.0.1:50000`, `ipv6:[::1]:50000` or `unix:` and a path, if
            the client has bound one.
    """

    id: str
    method: str
    peer: str


# Set by the interceptor `Observe`; None outside of calls.
current_call: ContextVar[CallContext | None] = ContextVar("current_call", default=None)


def begin_call(method: str, peer: str) -> CallContext:
    """Sets `current_call`; ``peer`` is written as gRPC does, which encodes the brackets of IPv6."""
    call = CallContext(f"{_PROCESS}-{next(_numbers):x}", method, unquote(peer))
    current_call.set(call)
    return call
