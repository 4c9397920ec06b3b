"""gRPC reflection: clients such as grpcurl read the contract from it, comments included.

The servicer of grpcio-reflection reads the descriptors in the Python modules, which have
no comments, and finds neither methods nor fields nor enum values. This one reads the
descriptor set that protoc wrote beside the modules (`proto/generate.py`).
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
_V1 = _V1ALPHA.replace("v1alpha", "v1")  # grpcurl tries it first; other clients know only v1alpha


def reflect(server: grpc.aio.Server, names: Iterable[str]) -> None:
    """Adds reflection of the services ``names`` and of itself.

    One servicer answers for both versions: their messages are the same on the wire.

    Args:
        server: Not started yet.
        names: Full names of services whose modules are imported.
    """
    served = sorted((*names, _V1, _V1ALPHA))
    reflection = Reflection(served, Catalogue(_files_of(served)))
    for name in (_V1, _V1ALPHA):
        handler = grpc.stream_stream_rpc_method_handler(
            reflection.answer_all, Request.FromString, Response.SerializeToString
        )
        methods = grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler})
        server.add_generic_rpc_handlers((methods,))


def _files_of(services: Iterable[str]) -> Iterator[FileDescriptorProto]:
    """Yields the files of the contract, then those of all ``services``; some files come twice."""
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
    """Returns the file of reflection v1, which no package has: that of v1alpha with another name."""
    (v1alpha,) = _with_imports(reflection_pb2.DESCRIPTOR)
    return text_format.Parse(text_format.MessageToString(v1alpha).replace("v1alpha", "v1"), FileDescriptorProto())


class Catalogue:
    """Serialized files, found by name or by what they declare.

    Each method raises KeyError for what it does not find. Of two files with one name, the first is used.
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
        """Returns a file, then everything it imports."""
        names = [file]
        for name in names:  # the list grows meanwhile
            names.extend(each for each in self._imports[name] if each not in names)
        return [self._serialized[name] for name in names]

    def containing(self, symbol: str) -> list[bytes]:
        """Returns the file that declares a symbol of any kind, then everything it imports."""
        return self.named(self._symbols[symbol])

    def extending(self, message: str, number: int) -> list[bytes]:
        """Returns the file that declares an extension of ``message``, then everything it imports."""
        return self.named(self._extensions[message][number])

    def extensions(self, message: str) -> list[int]:
        """Returns the numbers of all extensions of ``message``, ascending."""
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
    """Yields messages with their full names, nested ones included."""
    for message in messages:
        name = f"{scope}.{message.name}"
        yield name, message
        yield from _messages(name, message.nested_type)


def _symbols(file: FileDescriptorProto, messages: dict[str, DescriptorProto]) -> Iterator[str]:
    """Yields the full names of everything a file declares; ``messages`` are its messages by full name."""
    for service in file.service:
        yield from _full_names(file.package, [service])
        yield from _full_names(f"{file.package}.{service.name}", service.method)
    for name, message in messages.items():
        yield name
        yield from _full_names(name, message.field, message.oneof_decl)
    scopes: list[tuple[str, FileDescriptorProto | DescriptorProto]] = [(file.package, file), *messages.items()]
    for scope, holder in scopes:
        values = chain.from_iterable(enum.value for enum in holder.enum_type)  # scoped like their enum, not inside it
        yield from _full_names(scope, holder.enum_type, values, holder.extension)


class _Named(Protocol):
    @property
    def name(self) -> str: ...


def _full_names(scope: str, *parts: Iterable[_Named]) -> Iterator[str]:
    return (f"{scope}.{part.name}" for part in chain.from_iterable(parts))


class Reflection:
    """The servicer of both versions of reflection."""

    def __init__(self, services: Iterable[str], catalogue: Catalogue) -> None:
        self._services = ListServiceResponse(service=[ServiceResponse(name=name) for name in services])
        self._catalogue = catalogue

    async def answer_all(self, requests: AsyncIterator[Request], _context: Context) -> AsyncIterator[Response]:
        """Answers each request, in their order."""
        async for request in requests:
            try:
                response = self._answer(request)
            except KeyError as missing:
                response = _error(grpc.StatusCode.NOT_FOUND, f"Not found: {missing.args[0]}")
            response.valid_host = request.host
            response.original_request.CopyFrom(request)
            yield response

    def _answer(self, request: Request) -> Response:
        match request.WhichOneof("message_request"):
            case "list_services":
                return Response(list_services_response=self._services)
            case "file_by_filename":
                return _files(self._catalogue.named(request.file_by_filename))
            case "file_containing_symbol":
                return _files(self._catalogue.containing(request.file_containing_symbol))
            case "file_containing_extension":
                extension = request.file_containing_extension
                return _files(self._catalogue.extending(extension.containing_type, extension.extension_number))
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
