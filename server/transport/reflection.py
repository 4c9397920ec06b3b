"""gRPC reflection: what clients such as grpcurl learn the contract from, its comments included.

The servicer of grpcio-reflection reads the descriptors inside the Python modules, which
have no comments, and finds neither single methods nor fields nor values. This one has
what protoc wrote beside the modules (`proto/generate.py`).
"""

from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Protocol

import grpc
import grpc.aio
from conversations.v1 import conversations_service_pb2
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2 import (
    ErrorResponse,
    ExtensionNumberResponse,
    FileDescriptorResponse,
    ListServiceResponse,
    ServiceResponse,
)
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest as Request
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionResponse as Response

from server.interceptors.chain import Context

_V1ALPHA = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name
_V1 = _V1ALPHA.replace("v1alpha", "v1")  # grpcurl asks it first; others know the older one only


def reflect(server: grpc.aio.Server, names: Iterable[str]) -> None:
    """Serves reflection of the services ``names``, whose modules are loaded, and of itself.

    One servicer is both versions: their messages are the same on the wire.
    """
    served = sorted((*names, _V1, _V1ALPHA))
    reflection = Reflection(served, Catalogue(_described(served)))
    for name in (_V1, _V1ALPHA):
        handler = grpc.stream_stream_rpc_method_handler(
            reflection.answers, Request.FromString, Response.SerializeToString
        )
        methods = grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler})
        server.add_generic_rpc_handlers((methods,))


def _described(services: Iterable[str]) -> Iterator[FileDescriptorProto]:
    """The contract, then what else the services consist of; some files come twice."""
    contract = Path(conversations_service_pb2.__file__).with_name("descriptors.binpb").read_bytes()
    yield from FileDescriptorSet.FromString(contract).file
    yield _reflection_v1()
    for service in services:
        if service != _V1:
            yield from _with_imports(descriptor_pool.Default().FindServiceByName(service).file)


def _with_imports(file: FileDescriptor) -> Iterator[FileDescriptorProto]:
    proto = FileDescriptorProto()
    file.CopyToProto(proto)
    yield proto
    for each in file.dependencies:
        yield from _with_imports(each)


def _reflection_v1() -> FileDescriptorProto:
    """Reflection v1, which no package describes: v1alpha under another name, message by message."""
    (older,) = _with_imports(reflection_pb2.DESCRIPTOR)
    return text_format.Parse(text_format.MessageToString(older).replace("v1alpha", "v1"), FileDescriptorProto())


class Catalogue:
    """Files, found by what they declare. Of two with one name the first counts.

    What is asked for and not there raises KeyError.
    """

    def __init__(self, protos: Iterable[FileDescriptorProto]) -> None:
        self._serialized: dict[str, bytes] = {}
        self._imports: dict[str, list[str]] = {}
        self._symbols: dict[str, str] = {}  # full name to file
        self._extensions: dict[str, dict[int, str]] = {}  # message to number to file
        for proto in protos:
            if proto.name not in self._serialized:
                self._add(proto)

    def named(self, file: str) -> list[bytes]:
        """A file, then all that it imports."""
        names = [file]
        for name in names:  # it grows meanwhile
            names.extend(each for each in self._imports[name] if each not in names)
        return [self._serialized[name] for name in names]

    def containing(self, symbol: str) -> list[bytes]:
        """The file that declares a symbol of whatever kind, then all that it imports."""
        return self.named(self._symbols[symbol])

    def extending(self, message: str, number: int) -> list[bytes]:
        """The file that declares an extension, then all that it imports."""
        return self.named(self._extensions[message][number])

    def extensions(self, message: str) -> list[int]:
        """The numbers of all known extensions of a message."""
        return sorted(self._extensions[message])

    def _add(self, proto: FileDescriptorProto) -> None:
        messages = dict(_messages(proto.package, proto.message_type))
        self._serialized[proto.name] = proto.SerializeToString()
        self._imports[proto.name] = list(proto.dependency)
        self._symbols |= dict.fromkeys(_symbols(proto, messages), proto.name)
        for name in messages:
            self._extensions.setdefault(name, {})
        for extension in chain(proto.extension, *(message.extension for message in messages.values())):
            known = self._extensions.setdefault(extension.extendee.removeprefix("."), {})
            known[extension.number] = proto.name


def _messages(scope: str, messages: Iterable[DescriptorProto]) -> Iterator[tuple[str, DescriptorProto]]:
    """Messages by full name, with those nested in them."""
    for message in messages:
        name = f"{scope}.{message.name}"
        yield name, message
        yield from _messages(name, message.nested_type)


def _symbols(file: FileDescriptorProto, messages: dict[str, DescriptorProto]) -> Iterator[str]:
    """The full names of all that a file declares, ``messages`` and their parts included."""
    for service in file.service:
        yield from _full_names(file.package, [service])
        yield from _full_names(f"{file.package}.{service.name}", service.method)
    for name, message in messages.items():
        yield name
        yield from _full_names(name, message.field, message.oneof_decl)
    scopes: list[tuple[str, FileDescriptorProto | DescriptorProto]] = [(file.package, file), *messages.items()]
    for scope, holder in scopes:
        values = chain.from_iterable(enum.value for enum in holder.enum_type)  # siblings of their enum, not parts
        yield from _full_names(scope, holder.enum_type, values, holder.extension)


class _Named(Protocol):
    @property
    def name(self) -> str: ...


def _full_names(scope: str, *parts: Iterable[_Named]) -> Iterator[str]:
    return (f"{scope}.{part.name}" for part in chain.from_iterable(parts))


class Reflection:
    """Answers from a catalogue, each request by itself."""

    def __init__(self, services: Iterable[str], catalogue: Catalogue) -> None:
        self._services = ListServiceResponse(service=[ServiceResponse(name=name) for name in services])
        self._catalogue = catalogue

    async def answers(self, requests: AsyncIterator[Request], _context: Context) -> AsyncIterator[Response]:
        """One answer for each request, in their order."""
        async for request in requests:
            try:
                answer = self._answer(request)
            except KeyError as missing:
                answer = _error(grpc.StatusCode.NOT_FOUND, f"Not found: {missing.args[0]}")
            answer.valid_host = request.host
            answer.original_request.CopyFrom(request)
            yield answer

    def _answer(self, request: Request) -> Response:
        match request.WhichOneof("message_request"):
            case "list_services":
                return Response(list_services_response=self._services)
            case "file_by_filename":
                return _files(self._catalogue.named(request.file_by_filename))
            case "file_containing_symbol":
                return _files(self._catalogue.containing(request.file_containing_symbol))
            case "file_containing_extension":
                wanted = request.file_containing_extension
                return _files(self._catalogue.extending(wanted.containing_type, wanted.extension_number))
            case "all_extension_numbers_of_type":
                name = request.all_extension_numbers_of_type
                numbers = ExtensionNumberResponse(
                    base_type_name=name, extension_number=self._catalogue.extensions(name)
                )
                return Response(all_extension_numbers_response=numbers)
            case _:
                return _error(grpc.StatusCode.INVALID_ARGUMENT, "The request asks for nothing that is known.")


def _files(protos: list[bytes]) -> Response:
    return Response(file_descriptor_response=FileDescriptorResponse(file_descriptor_proto=protos))


def _error(code: grpc.StatusCode, message: str) -> Response:
    number: int = code.value[0]
    return Response(error_response=ErrorResponse(error_code=number, error_message=message))
