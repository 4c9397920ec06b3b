"""Identify: who is asking, from the one configured source."""

from types import TracebackType

from server.interceptors.around import Guard, Interceptor
from server.policy.principal import Principal, current_principal

ANYONE = Principal(tenant="", id="local")  # the only principal of the source `none`


class Identify(Interceptor):
    """Sets the principal of each call: here the fixed one of the source `none`."""

    def guard(self, method: str) -> Guard:
        """A guard that sets `current_principal`."""
        return lambda _context: _Known(ANYONE)


class _Known:
    __slots__ = ("_principal",)

    def __init__(self, principal: Principal) -> None:
        self._principal = principal

    async def __aenter__(self) -> None:
        # Set and never reset: a generator may be closed in another context
        # (traps §2.12), and every call has a context of its own.
        current_principal.set(self._principal)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
