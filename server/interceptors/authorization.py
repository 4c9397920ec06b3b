"""Access: what a method needs is written in the contract; who may never do it goes no further.

Behind Identify, whose principal it plans for, and before Decode: nobody makes
the server read a request that they may not send. What a plan leaves to the row
is decided inside the statement; nothing is looked up here.
"""

from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any

import grpc

from server.authorization import audit_log
from server.authorization.access import Access, AccessCache, current_access
from server.authorization.requirements import Need
from server.errors import ActionDenied, ServiceError
from server.interceptors.chain import OPEN, Context, Guard, Handler, Interceptor, wrap_handler
from server.policy.plan import Never
from server.policy.principal import current_principal


class Authorization(Interceptor):
    """Lets a call go on to the method, with what its caller may do."""

    def __init__(self, needs_of: Mapping[str, Need], accesses: AccessCache, *, audit_permits: bool) -> None:
        self._needs = needs_of
        self._accesses = accesses
        self._audit_permits = audit_permits

    def wrap(self, method: str, handler: Handler) -> Handler:
        """``handler`` behind its need; one that refuses where the contract says nothing."""
        if method.startswith(OPEN):
            return handler
        need = self._needs.get(method)
        if need is None:
            return refuse(ActionDenied("method", "call"))
        return wrap_handler(handler, self._guard(need))

    def _guard(self, need: Need) -> Guard:
        return lambda _context: _AuthorizationGuard(
            self._accesses.of(current_principal.get()), need, self._audit_permits
        )


class _AuthorizationGuard:
    __slots__ = ("_access", "_audit_permits", "_need")

    def __init__(self, access: Access, need: Need, audit_permits: bool) -> None:  # noqa: FBT001
        self._access = access
        self._need = need
        self._audit_permits = audit_permits

    async def __aenter__(self) -> None:
        current_access.set(self._access)
        if self._need.actions:
            try:
                self._demand(self._need)
            except ActionDenied as denied:
                self._log(denied)
                raise

    def _demand(self, need: Need) -> None:
        """Raises ActionDenied when no request of this method could be allowed."""
        if need.resource == "item":
            self._access.demand("conversation", "read")
        plans = [self._access.may(need.resource, action).plan for action in need.actions]
        if all(isinstance(plan, Never) for plan in plans):
            raise ActionDenied(need.resource, need.actions[0])

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._need.actions and (error is None or isinstance(error, ServiceError)):
            self._log(error)

    def _log(self, failure: ServiceError | None) -> None:
        resource, action = self._need.resource, self._need.actions[0]
        audit_log.decided(self._access, resource, action, failure, permits=self._audit_permits)


def refuse(failure: ServiceError) -> Handler:
    """A handler that raises ``failure``; a stream to a stream answers all four kinds of call."""

    async def refused(_requests: Any, _context: Context) -> AsyncIterator[bytes]:
        raise failure
        yield b""  # makes it a generator, the kind grpc.aio streams from

    return grpc.stream_stream_rpc_method_handler(refused)
