"""Calls of which most make no sense, to every method that callers reach: ours, health and reflection."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import grpc
import grpc.aio
from conversations.v1 import (
    access_service_pb2,
    conversations_service_pb2,
    erasure_service_pb2,
    transfer_service_pb2,
)
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.faults.examples import ITEM, Examples
from tests.faults.history import ABANDONED, code_of, reason_of
from tests.faults.scene import TENANTS, Scene
from tests.faults.workload import CHANNEL_OPTIONS

Fault = Callable[[Scene], AbstractAsyncContextManager[None]]

_CONNECTIONS = 4
_AT_ONCE = 16  # calls of each connection
_SECONDS = 5.0  # for each call
_STREAM_SECONDS = (0.05, 0.05, 0.05, 0.5)  # for each that only the server ends
_BUDGET = 300.0  # seconds for all
_MIB = 1024 * 1024
_MOST_GROWTH = 64  # MiB that the server may have grown by in the end
_FILES = (
    conversations_service_pb2,
    access_service_pb2,
    transfer_service_pb2,
    erasure_service_pb2,
    health_pb2,
    reflection_pb2,
)
# One of these that makes sense takes what every other call needs, or writes what others would read: they have a
# caller of their own, in a tenant of its own.
_APART = ("/DeleteConversations", "/EraseSubject", "/GetErasure", "/ImportConversations")
_APART_TENANT = "green"
# What docs/clients.md and docs/watch.md promise that a call may end with.
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
        "OUT_OF_RANGE",
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
    'type = "message"',
    'metadata.a = "b"',
    'create_time > "2026-01-01T00:00:00Z"',
    'owner != ""',
    "a AND",
    '"',
)
_NUMBERS = (0, 1, -1, 20, 101, 2**31 - 1, -(2**31))
_LARGE = (2**63 - 1, -(2**63))


@dataclass(frozen=True)
class Method:
    """A method, and what it takes."""

    path: str
    request: type[Message]
    streams: tuple[bool, bool]  # of requests, of answers


def methods() -> list[Method]:
    """All that are served to callers, and one that is not."""
    services = itertools.chain.from_iterable(each.DESCRIPTOR.services_by_name.values() for each in _FILES)
    found = [_method(each) for service in services for each in service.methods]
    reflection = found[-1]
    newer = reflection.path.replace("v1alpha", "v1")  # the same messages, by another name
    nothing = Method("/conversations.v1.Nothing/Nothing", health_pb2.HealthCheckRequest, (False, False))
    return [*found, Method(newer, reflection.request, reflection.streams), nothing]


def _method(found: MethodDescriptor) -> Method:
    path = f"/{found.containing_service.full_name}/{found.name}"
    return Method(path, GetMessageClass(found.input_type), (found.client_streaming, found.server_streaming))


class Fuzzer:
    """Makes requests: valid in part, and never twice the same.

    Args:
        random: Of which they are made; public.
        examples: Requests that make sense.
    """

    def __init__(self, random: Random, examples: Examples) -> None:
        self.random = random
        self._examples = examples

    def body(self, method: Method) -> bytes:
        """Bytes to send.

        Four of ten are a request that makes sense, with one field of any value in most of them. Others are a message
        with any fields, or damaged, or no message at all.
        """
        how = self.random.random()
        if how < 0.1:
            return self.random.randbytes(self.random.randint(0, 200))
        example = self._examples.of(method.path) if how < 0.5 else None
        if example is not None:
            if how < 0.4 and (fields := example.DESCRIPTOR.fields):
                self._set(example, self.random.choice(fields), depth=0)
            return example.SerializeToString()
        message = method.request()
        self._fill(message, depth=0)
        body = message.SerializeToString()
        return self._damaged(body) if how < 0.65 else body

    def _damaged(self, body: bytes) -> bytes:
        damaged = bytearray(body or b"\x00")
        for _ in range(self.random.randint(1, 4)):
            damaged[self.random.randrange(len(damaged))] = self.random.randrange(256)
        return bytes(damaged[: self.random.randint(0, len(damaged))] if self.random.random() < 0.3 else damaged)

    def _fill(self, message: Message, depth: int) -> None:
        for field in message.DESCRIPTOR.fields:
            if self.random.random() < 0.3 + 0.4 * (depth == 0):
                self._set(message, field, depth)

    def _set(self, message: Message, field: Any, depth: int) -> None:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is None:
                getattr(message, field.name)[self._string()] = self._string()
        elif field.message_type is not None:
            if depth < 6:
                for each in self._messages(getattr(message, field.name), repeated=field.is_repeated):
                    each.SetInParent()
                    self._fill(each, depth + 1)
        elif field.is_repeated:
            getattr(message, field.name).extend(self._scalar(field) for _ in range(self.random.choice((0, 1, 3, 120))))
        else:
            setattr(message, field.name, self._scalar(field))

    def _messages(self, of: Any, *, repeated: bool) -> list[Message]:
        return [of.add() for _ in range(self.random.choice((0, 1, 2, 25)))] if repeated else [of]

    def _scalar(self, field: Any) -> Any:
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
                return self.random.choice((b"", b"{}", b'{"type":"x"}', b"[" * 200, self.random.randbytes(20)))
            case FieldDescriptor.CPPTYPE_STRING:
                return self._string()
            case FieldDescriptor.CPPTYPE_BOOL:
                return self.random.random() < 0.5
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return self.random.choice((0.0, -1.5, float("inf"), float("nan")))
            case FieldDescriptor.CPPTYPE_INT64:
                return self.random.choice((*_NUMBERS, *_LARGE))
            case FieldDescriptor.CPPTYPE_INT32 | FieldDescriptor.CPPTYPE_ENUM:
                return self.random.choice(_NUMBERS)
        return self.random.choice((0, 1, 2**31))  # unsigned

    def _string(self) -> str:
        ids = self._examples.ids
        return self.random.choice(ids) if self.random.random() < 0.5 else self.random.choice(_STRINGS)

    def metadata(self, good: list[tuple[str, str]]) -> list[tuple[str, str | bytes]]:
        """Metadata of a call: credentials, as a rule, and sometimes something strange."""
        kind = self.random.random()
        if kind < 0.9:
            return [*good]
        strange: list[list[tuple[str, str | bytes]]] = [
            [],
            [("authorization", "Bearer x")],
            [*good, ("traceparent", "00-zz")],
            [*good, ("x-bin", self.random.randbytes(30))],
            [*good, ("grpc-timeout-x", "1")],
        ]
        return self.random.choice(strange)


@dataclass(frozen=True)
class Stranger:
    """A caller, and the requests that it makes."""

    credentials: list[tuple[str, str]]
    examples: Examples
    fuzzer: Fuzzer

    @classmethod
    async def of(cls, scene: Scene, tenant: str) -> "Stranger":
        """A new one, with conversations of its own."""
        secret, ids = await scene.stranger(conversations=40, item_id=ITEM, tenant=tenant)
        examples = Examples(scene.random, ids)
        return cls([("authorization", f"Bearer {secret}")], examples, Fuzzer(scene.random, examples))


def fuzzed(calls: int) -> Fault:
    """So many calls, over several connections."""

    @asynccontextmanager
    async def fault(scene: Scene) -> AsyncIterator[None]:
        usual, apart = await Stranger.of(scene, TENANTS[0]), await Stranger.of(scene, _APART_TENANT)
        codes: Counter[tuple[str, str]] = Counter()
        before, end = scene.memory(), time.monotonic() + _BUDGET
        numbers = iter(range(calls))
        all_methods = methods()

        async def some(channel: grpc.aio.Channel) -> None:
            for _ in numbers:
                if time.monotonic() > end:
                    return
                method = scene.random.choice(all_methods)
                code = await _call(channel, method, apart if method.path.endswith(_APART) else usual)
                codes[method.path, code] += 1

        options = [*CHANNEL_OPTIONS, ("grpc.max_metadata_size", 64 * 1024)]
        async with AsyncExitStack() as stack:
            channels = [
                await stack.enter_async_context(grpc.aio.insecure_channel(scene.server.address, options=options))
                for _ in range(_CONNECTIONS)
            ]
            await asyncio.gather(*(some(channel) for channel in channels * _AT_ONCE))
        _judge(scene, codes, calls)
        growth = (scene.memory() - before) // _MIB
        scene.facts["memory"] = f"{before // _MIB} → {before // _MIB + growth} MiB"
        scene.expect(growth <= _MOST_GROWTH, f"{calls:,} calls left {growth} MiB behind")
        yield

    return fault


def _judge(scene: Scene, codes: Counter[tuple[str, str]], calls: int) -> None:
    by_code: Counter[str] = Counter()
    for (path, code), count in codes.items():
        by_code[code] += count
        scene.expect(code.partition(" ")[0] in DOCUMENTED, f"{path} ended with {code}, {count} times")
    scene.facts["fuzzed"] = str(dict(by_code.most_common()))
    done = codes.total()
    scene.expect(done == calls, f"{done:,} of {calls:,} calls were made in {_BUDGET:.0f} s")
    missing = {each.path for each in methods()} - {path for path, code in codes if code in {"OK", "UNIMPLEMENTED"}}
    scene.expect(not missing, f"no call of {', '.join(sorted(missing))} was answered with OK")


async def _call(channel: grpc.aio.Channel, method: Method, caller: Stranger) -> str:
    """How a call ended. A stream that brought something before its deadline was answered, for many end only so."""
    fuzzer = caller.fuzzer
    metadata: Any = fuzzer.metadata(caller.credentials)
    many = fuzzer.random.randint(0, 3) if method.streams[0] else 1
    bodies = [fuzzer.body(method) for _ in range(many)]
    came: list[bytes] = []
    try:
        await _send(channel, method, bodies, metadata, fuzzer.random, came)
    except grpc.aio.AioRpcError as error:
        code = code_of(error)
        if came and code == "DEADLINE_EXCEEDED":
            return "OK"
        return f"{code} {reason_of(error) or error.details()}" if code == "UNAVAILABLE" else code
    except asyncio.CancelledError:  # grpc.aio leaves a stream that ends while it is written to
        if not method.streams[0] or ((task := asyncio.current_task()) and task.cancelling()):
            raise
        return ABANDONED
    finally:
        if came:
            caller.examples.note(method.path, bodies, came[-1])
    return "OK"


async def _send(
    channel: grpc.aio.Channel, method: Method, bodies: list[bytes], metadata: Any, random: Random, came: list[bytes]
) -> None:
    """Makes a call, and adds to ``came`` what it is answered."""

    def same(body: bytes) -> bytes:
        return body

    deadline = random.choice((_SECONDS, _SECONDS, 0.01))
    call: Any
    match method.streams:
        case (False, False):
            unary = channel.unary_unary(method.path, same, same)
            came.append(await unary(bodies[0], metadata=metadata, timeout=deadline))
            return
        case (False, True):  # a watch does not end by itself
            stream = channel.unary_stream(method.path, same, same)
            call = stream(bodies[0], metadata=metadata, timeout=random.choice(_STREAM_SECONDS))
        case _:
            both = channel.stream_stream(method.path, same, same)
            call = both(_each(bodies), metadata=metadata, timeout=deadline)
    async for message in call:
        came.append(message)  # noqa: PERF401 - what has come before an error is kept


async def _each(bodies: Iterable[bytes]) -> AsyncIterator[bytes]:
    for body in bodies:
        yield body
