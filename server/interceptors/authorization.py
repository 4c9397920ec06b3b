"""Authorization: refuses callers who could not call a method on any object.

The contract says which permission each method needs. A permission that depends on
the row is checked inside the SQL statement; no row is read here. Runs inside
`Authentication`, whose principal it plans for, and outside `Decode`, so that the
request of a caller who is refused is never parsed.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any

import grpc

from server.authorization.access import Access, AccessCache, current_access
from server.authorization.audit_log import CallAudit, current_audit
from server.authorization.requirements import Need
from server.errors import ActionDenied, OutcomeUnknown, ServiceError
from server.interceptors.chain import Context, Guard, Handler, Interceptor, is_public_method, is_streaming, wrap_handler
from server.policy.plan import Never
from server.policy.principal import current_principal


class Authorization(Interceptor):
    """Sets `current_access`, and audits what was refused.

    Args:
        needs: The permission of each method, by ``/package.Service/Method``.
        accesses: Plans of the policy in force, by principal.
        audit_permits: Audit what was allowed as well.
    """

    def __init__(self, needs: Mapping[str, Need], accesses: AccessCache, *, audit_permits: bool) -> None:
        self._needs = needs
        self._accesses = accesses
        self._audit_permits = audit_permits

    def wrap(self, method: str, handler: Handler) -> Handler:
        """Returns ``handler`` behind its permission; for a method that declares none, a handler that refuses."""
        if is_public_method(method):
            return handler
        need = self._needs.get(method)
        if need is None:
            return refuse_all(ActionDenied("method", "call"))
        return wrap_handler(handler, self._guard(need, is_streaming(handler)))

    def _guard(self, need: Need, streaming: bool) -> Guard:  # noqa: FBT001
        return lambda _context: _AuthorizationGuard(
            self._accesses.of(current_principal.get()), need, CallAudit(permits=self._audit_permits), streaming
        )


class _AuthorizationGuard:
    __slots__ = ("_access", "_audit", "_need", "_streaming")

    def __init__(self, access: Access, need: Need, audit: CallAudit, streaming: bool) -> None:  # noqa: FBT001
        self._access = access
        self._need = need
        self._audit = audit
        self._streaming = streaming

    async def __aenter__(self) -> None:
        current_access.set(self._access)
        current_audit.set(self._audit)
        if self._need.actions:
            try:
                self._check(self._need)
            except ActionDenied as denied:
                self._record(denied)
                raise

    def _check(self, need: Need) -> None:
        """Checks that some object exists on which the caller may do this.

        Raises:
            ActionDenied: The plan of every action that would do is "never".
        """
        if need.resource == "item":
            self._access.demand("conversation", "read")
        plans = [self._access.may(need.resource, action).plan for action in need.actions]
        if all(isinstance(plan, Never) for plan in plans):
            raise ActionDenied(need.resource, need.actions[0])

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._streaming or not self._need.actions:
            return  # a stream audits each of its messages, which other policies may decide
        if isinstance(error, ServiceError) or (error is None and not self._audit.has_permit):
            self._record(error)
        elif isinstance(error, asyncio.CancelledError) and self._audit.interrupted:
            self._record(OutcomeUnknown())

    def _record(self, error: ServiceError | None) -> None:
        self._audit.record(self._access, self._need.resource, self._need.actions[0], error)


def refuse_all(error: ServiceError) -> Handler:
    """Returns a handler that raises ``error``, whichever of the four kinds of call it answers."""

    async def refuse(_requests: Any, _context: Context) -> AsyncIterator[bytes]:
        raise error
        yield b""  # makes it a generator, the kind grpc.aio streams from

    return grpc.stream_stream_rpc_method_handler(refuse)
