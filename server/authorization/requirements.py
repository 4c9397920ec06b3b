"""What each method of the contract needs to be allowed."""

from dataclasses import dataclass

from conversations.v1 import options_pb2
from google.protobuf.descriptor import FileDescriptor

from server.errors import OperatorError


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
