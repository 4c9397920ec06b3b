"""Access: what a method needs is written in the contract; who may never do it goes no further.

Behind Identify, whose principal it plans for, and before Decode: nobody makes
the server read a request that they may not send. What a plan leaves to the row
is decided inside the statement; nothing is looked up here.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc
from conversations.v1 import options_pb2
from google.protobuf.descriptor import FileDescriptor

from server.authorization import audit_log
from server.authorization.access import Access, AccessCache, current_access
from server.complaint import OperatorError
from server.errors import ActionDenied, ServiceError
from server.interceptors.chain import Context, Guard, Handler, Interceptor, wrap_handler
from server.policy.plan import Never
from server.policy.principal import current_principal

# Services of gRPC itself: they show no data of the service.
OPEN = (
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1.ServerReflection/",
    "/grpc.reflection.v1alpha.ServerReflection/",
)


class AccessUndeclared(OperatorError):
    """A method of the contract has no access option: the server must not start."""


@dataclass(frozen=True)
class Need:
    """What a caller must be allowed to do for a method to run; ``actions`` are alternatives."""

    resource: str
    actions: tuple[str, ...]  # none: the method is open to every principal


def needs(*files: FileDescriptor) -> dict[str, Need]:
    """The need of every method in ``files``, by ``/package.Service/Method``.

    Raises:
        AccessUndeclared: A method has no `conversations.v1.access` option.
    """
    found: dict[str, Need] = {}
    for file in files:
        for service in file.services_by_name.values():
            for method in service.methods:
                option = method.GetOptions().Extensions[options_pb2.access]
                if not (option.open or (option.resource and option.action)):
                    raise AccessUndeclared(f"{method.full_name} has no conversations.v1.access option")
                actions = tuple(filter(None, (option.action, option.other_action)))
                found[f"/{service.full_name}/{method.name}"] = Need(option.resource, actions)
    return found


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
