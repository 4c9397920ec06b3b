"""Access: what a method needs is written in the contract; a method that says nothing is refused."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from conversations.v1 import options_pb2
from google.protobuf.descriptor import FileDescriptor

from server.complaint import Complaint
from server.errors import ActionDenied, Failure
from server.interceptors.around import Context, Handler, Interceptor

# Services of gRPC itself: they show no data of the service.
OPEN = (
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1.ServerReflection/",
    "/grpc.reflection.v1alpha.ServerReflection/",
)


class AccessUndeclared(Complaint):
    """A method of the contract has no access option: the server must not start."""


@dataclass(frozen=True)
class Need:
    """What a caller must be allowed to do for a method to run."""

    resource: str
    action: str


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
                if not (option.resource and option.action):
                    raise AccessUndeclared(f"{method.full_name} has no conversations.v1.access option")
                found[f"/{service.full_name}/{method.name}"] = Need(option.resource, option.action)
    return found


class Access(Interceptor):
    """Lets through what the contract says something about."""

    def __init__(self, needs_of: Mapping[str, Need]) -> None:
        super().__init__()
        self._needs = needs_of

    def wrap(self, method: str, handler: Handler) -> Handler:
        """``handler`` itself for a method with a need; one that refuses for any other."""
        if method in self._needs or method.startswith(OPEN):
            return handler
        return refuse(ActionDenied("method", "call"))


def refuse(failure: Failure) -> Handler:
    """A handler that raises ``failure``; a stream to a stream answers all four kinds of call."""

    async def refused(_requests: Any, _context: Context) -> AsyncIterator[bytes]:
        raise failure
        yield b""  # makes it a generator, the kind grpc.aio streams from

    return grpc.stream_stream_rpc_method_handler(refused)
