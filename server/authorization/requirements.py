"""The permission that each method of the contract needs, from its option `access`."""

from dataclasses import dataclass

from conversations.v1 import options_pb2
from google.protobuf.descriptor import FileDescriptor

from server.errors import OperatorError


class AccessUndeclared(OperatorError):
    """A method of the contract declares no permission, so the server must not start."""


@dataclass(frozen=True)
class Need:
    """The permission that a method needs.

    Attributes:
        actions: Alternatives; empty for a method that is open to every principal.
    """

    resource: str
    actions: tuple[str, ...]


def needs(*files: FileDescriptor) -> dict[str, Need]:
    """Returns the need of every method in ``files``, by ``/package.Service/Method``.

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
