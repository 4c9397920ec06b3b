"""Calls of which most make no sense, to every method that the server has."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import grpc
import grpc.aio
from conversations.v1 import access_service_pb2, conversations_service_pb2
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.faults.history import ABANDONED, code_of
from tests.faults.scene import Scene
from tests.faults.workload import CHANNEL_OPTIONS

Fault = Callable[[Scene], AbstractAsyncContextManager[None]]

_AT_ONCE = 32
_SECONDS = 5.0  # for each call
_FILES = (conversations_service_pb2, access_service_pb2, health_pb2, reflection_pb2)
# What docs/clients.md promises that a call may end with.
DOCUMENTED = frozenset(
    (
        ABANDONED,
        "OK",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "RESOURCE_EXHAUSTED",
        "UNAVAILABLE",
        "DEADLINE_EXCEEDED",
        "UNIMPLEMENTED",
    )
)
_STRINGS = (
    "",
    "a",
    "conv_x",
    "conv_" + "f" * 48,
    "msg_1",
    "ß\u0000\uffff",
    "x" * 70,
    "x" * 5000,
    "*",
    "metadata",
    "-1",
)
_NUMBERS = (0, 1, -1, 20, 101, 2**31 - 1, -(2**31))
_LARGE = (2**63 - 1, -(2**63))
_FILTERS = ('type = "message"', 'metadata.a = "b"', 'create_time > "2026-01-01T00:00:00Z"', 'owner != ""', "a AND", '"')


@dataclass(frozen=True)
class Method:
    """A method, and what it takes."""

    path: str
    request: type[Message]
    streams: tuple[bool, bool]  # of requests, of answers


def methods() -> list[Method]:
    """All that are served to callers."""
    services = itertools.chain.from_iterable(each.DESCRIPTOR.services_by_name.values() for each in _FILES)
    return [_method(each) for service in services for each in service.methods]


def _method(found: MethodDescriptor) -> Method:
    path = f"/{found.containing_service.full_name}/{found.name}"
    return Method(path, GetMessageClass(found.input_type), (found.client_streaming, found.server_streaming))


class Fuzzer:
    """Makes requests: valid in part, and never twice the same.

    Args:
        random: Of which they are made.
        ids: Conversations that exist.
    """

    def __init__(self, random: Random, ids: list[str]) -> None:
        self._random = random
        self._strings = (*_STRINGS, *_FILTERS, *ids * 4)

    def body(self, method: Method) -> bytes:
        """Bytes to send: a message with any fields, most of the time, and sometimes one that was damaged."""
        message = method.request()
        self._fill(message, depth=0)
        body = message.SerializeToString()
        how = self._random.random()
        if how < 0.1:
            return self._random.randbytes(self._random.randint(0, 200))
        return self._damaged(body) if how < 0.25 else body

    def _damaged(self, body: bytes) -> bytes:
        damaged = bytearray(body or b"\x00")
        for _ in range(self._random.randint(1, 4)):
            damaged[self._random.randrange(len(damaged))] = self._random.randrange(256)
        return bytes(damaged[: self._random.randint(0, len(damaged))] if self._random.random() < 0.3 else damaged)

    def _fill(self, message: Message, depth: int) -> None:
        for field in message.DESCRIPTOR.fields:
            if self._random.random() < 0.3 + 0.4 * (depth == 0):
                self._set(message, field, depth)

    def _set(self, message: Message, field: Any, depth: int) -> None:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is None:
                getattr(message, field.name)[self._random.choice(self._strings)] = self._random.choice(self._strings)
        elif field.message_type is not None:
            if depth < 6:
                for each in self._messages(getattr(message, field.name), repeated=field.is_repeated):
                    each.SetInParent()
                    self._fill(each, depth + 1)
        elif field.is_repeated:
            getattr(message, field.name).extend(self._scalar(field) for _ in range(self._random.choice((0, 1, 3, 120))))
        else:
            setattr(message, field.name, self._scalar(field))

    def _messages(self, of: Any, *, repeated: bool) -> list[Message]:
        return [of.add() for _ in range(self._random.choice((0, 1, 2, 25)))] if repeated else [of]

    def _scalar(self, field: Any) -> Any:
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
                return self._random.choice((b"", b"{}", b'{"type":"x"}', b"[" * 200, self._random.randbytes(20)))
            case FieldDescriptor.CPPTYPE_STRING:
                return self._random.choice(self._strings)
            case FieldDescriptor.CPPTYPE_BOOL:
                return self._random.random() < 0.5
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return self._random.choice((0.0, -1.5, float("inf"), float("nan")))
            case FieldDescriptor.CPPTYPE_INT64:
                return self._random.choice((*_NUMBERS, *_LARGE))
            case FieldDescriptor.CPPTYPE_INT32 | FieldDescriptor.CPPTYPE_ENUM:
                return self._random.choice(_NUMBERS)
        return self._random.choice((0, 1, 2**31))  # unsigned

    def metadata(self, good: list[tuple[str, str]]) -> list[tuple[str, str | bytes]]:
        """Metadata of a call: credentials, as a rule, and sometimes something strange."""
        kind = self._random.random()
        if kind < 0.9:
            return [*good]
        strange: list[list[tuple[str, str | bytes]]] = [
            [],
            [("authorization", "Bearer x")],
            [*good, ("traceparent", "00-zz")],
            [*good, ("x-bin", self._random.randbytes(30))],
            [*good, ("grpc-timeout-x", "1")],
        ]
        return self._random.choice(strange)


def fuzzed(calls: int, short: int) -> Fault:
    """So many calls; ``short``: in the short form."""

    @asynccontextmanager
    async def fault(scene: Scene) -> AsyncIterator[None]:
        tenant = scene.workload.tenants[0]
        secret, ids = await scene.stranger(conversations=4, items=1)
        good = [("authorization", f"Bearer {secret}")]
        fuzzer = Fuzzer(scene.random, [*ids, tenant.shared])
        codes: Counter[tuple[str, str]] = Counter()
        numbers = iter(range(short if scene.short else calls))
        all_methods = [
            *methods(),
            Method("/conversations.v1.Nothing/Nothing", health_pb2.HealthCheckRequest, (False, False)),
        ]
        options = [*CHANNEL_OPTIONS, ("grpc.max_metadata_size", 64 * 1024)]
        async with grpc.aio.insecure_channel(scene.server.address, options=options) as channel:

            async def one() -> None:
                for _ in numbers:
                    method = scene.random.choice(all_methods)
                    code = await _call(channel, method, fuzzer, fuzzer.metadata(good), scene.random)
                    codes[method.path, code] += 1

            await asyncio.gather(*(one() for _ in range(_AT_ONCE)))
        _judge(scene, codes)
        yield

    return fault


def _judge(scene: Scene, codes: Counter[tuple[str, str]]) -> None:
    by_code: Counter[str] = Counter()
    for (path, code), count in codes.items():
        by_code[code] += count
        scene.expect(code in DOCUMENTED, f"{path} ended with {code}, {count} times")
    scene.facts["fuzzed"] = str(dict(by_code.most_common()))
    answered = {path for (path, code) in codes if code == "OK"}
    scene.facts["methods that answered OK"] = f"{len(answered)} of {len({path for path, _ in codes}) - 1}"


async def _call(channel: grpc.aio.Channel, method: Method, fuzzer: Fuzzer, metadata: Any, random: Random) -> str:
    def same(body: bytes) -> bytes:
        return body

    many = random.randint(0, 3) if method.streams[0] else 1
    bodies = [fuzzer.body(method) for _ in range(many)]
    deadline = random.choice((_SECONDS, _SECONDS, 0.01))
    try:
        match method.streams:
            case (False, False):
                await channel.unary_unary(method.path, same, same)(bodies[0], metadata=metadata, timeout=deadline)
            case (False, True):  # a watch does not end by itself
                call = channel.unary_stream(method.path, same, same)(bodies[0], metadata=metadata, timeout=0.05)
                await _until_end(call)
            case _:
                stream = channel.stream_stream(method.path, same, same)
                await _until_end(stream(_each(bodies), metadata=metadata, timeout=deadline))
    except grpc.aio.AioRpcError as error:
        return code_of(error)
    except asyncio.CancelledError:  # grpc.aio leaves a stream that ends while it is written to
        if not method.streams[0] or ((task := asyncio.current_task()) and task.cancelling()):
            raise
        return ABANDONED
    return "OK"


async def _each(bodies: Iterable[bytes]) -> AsyncIterator[bytes]:
    for body in bodies:
        yield body


async def _until_end(call: Any) -> None:
    async for _ in call:
        pass
