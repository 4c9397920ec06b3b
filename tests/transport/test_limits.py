"""Each limit of transport and load holds at n and is told at n + 1, and health answers all the while."""

import asyncio
import itertools
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Self

import asyncpg
import grpc.aio
import pytest
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from server.transport import health
from tests.support.build import ahead, append, create, get, user_message
from tests.support.problems import Problem, problem, problem_of
from tests.support.service import Service, running_service

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7  # frames of HTTP/2 (RFC 9113 §6)
ACK = 1
INITIAL_WINDOW_SIZE = 4  # of SETTINGS
NO_ERROR, ENHANCE_YOUR_CALM = 0, 11


# -- load


@asynccontextmanager
async def locked(service: Service) -> AsyncIterator[str]:
    """The id of a conversation that cannot be written meanwhile."""
    made = await service.stub.CreateConversation(create())
    connection = await asyncpg.connect(service.url)
    async with connection.transaction():
        await connection.execute("SELECT FROM conversations WHERE id = $1 FOR UPDATE", made.id)
        yield made.id
    await connection.close()


async def answers(service: Service) -> bool:
    """Whether the service is healthy."""
    status = (await HealthStub(service.channel).Check(HealthCheckRequest(), timeout=2)).status
    return bool(status == HealthCheckResponse.SERVING)


async def test_calls_at_once(service: Service) -> None:
    """As many calls run as may; one more is refused with a time to come again, and health is not."""
    async with running_service(service.url, max_calls=3) as served:
        async with locked(served) as name:
            held = [asyncio.ensure_future(served.stub.CreateItems(append(name, user_message()))) for _ in range(3)]
            await asyncio.sleep(0.3)
            failure = await problem(served.stub.GetConversation(get(name)))
            assert ("RESOURCE_EXHAUSTED", "RATE_LIMITED", {"limit": "3"}) == (
                failure.code,
                failure.reason,
                failure.metadata,
            )
            assert "RetryInfo" in failure.details
            assert await answers(served)
        assert [1, 1, 1] == [len(each.items) for each in await asyncio.gather(*held)]
        assert name == (await served.stub.GetConversation(get(name))).id


@pytest.mark.parametrize(
    ("limits", "limit"),
    [({"max_streams": 2}, "2"), ({"max_streams_per_principal": 2, "max_streams": 9}, "2")],
)
async def test_streams_at_once(service: Service, limits: dict[str, Any], limit: str) -> None:
    """As many streams run as may, of all or of one principal; one more ends, and a place that is free is given."""
    async with running_service(service.url, **limits) as served:
        name = (await served.stub.CreateConversation(create())).id
        streams = [served.stub.AppendItems() for _ in range(2)]
        for each in streams:
            await each.write(ahead(name, user_message()))
            await each.read()
        failure = await problem(_answered(served.stub, name))
        assert ("RESOURCE_EXHAUSTED", "RATE_LIMITED", limit) == (
            failure.code,
            failure.reason,
            failure.metadata["limit"],
        )
        assert await answers(served)
        assert name == (await served.stub.GetConversation(get(name))).id
        await streams[0].done_writing()
        assert grpc.StatusCode.OK is await streams[0].code()
        assert await _answered(served.stub, name)
        streams[1].cancel()


async def _answered(stub: Any, name: str) -> bool:
    return bool([each async for each in stub.AppendItems(iter([ahead(name, user_message())]))])


async def test_watches_of_a_connection(service: Service) -> None:
    """A connection has ten watches of health; an eleventh is refused, and a place that is free is given."""
    async with grpc.aio.insecure_channel(service.address) as channel:
        watches = [HealthStub(channel).Watch(HealthCheckRequest()) for _ in range(10)]
        for each in watches:
            assert HealthCheckResponse.SERVING == (await each.read()).status
        assert "RATE_LIMITED" == (await _refused(HealthStub(channel).Watch(HealthCheckRequest()))).reason
        assert await answers(service)
        watches[0].cancel()
        await asyncio.sleep(0.1)
        assert HealthCheckResponse.SERVING == (await HealthStub(channel).Watch(HealthCheckRequest()).read()).status


async def test_watches_of_all_connections(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process has so many watches of health; one more is refused on any connection, until one of them ends."""
    monkeypatch.setattr(health, "MAX_WATCHES", 12)
    async with running_service(service.url) as served, AsyncExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(served.address, options=options) for _ in range(3)]
        first, second, third = [HealthStub(await stack.enter_async_context(channel)) for channel in channels]
        watches = [stub.Watch(HealthCheckRequest()) for stub in [first] * 10 + [second] * 2]
        for each in watches:
            await each.read()
        for stub in (second, third):
            refused = await _refused(stub.Watch(HealthCheckRequest()))
            assert ("RESOURCE_EXHAUSTED", "RATE_LIMITED", "12") == (
                refused.code,
                refused.reason,
                refused.metadata["limit"],
            )
        watches[0].cancel()
        await asyncio.sleep(0.1)
        assert HealthCheckResponse.SERVING == (await third.Watch(HealthCheckRequest()).read()).status


async def _refused(watch: Any) -> Problem:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watch.read()
    return problem_of(caught.value)


class _Peer:
    """What a watch needs of the context of its call."""

    def __init__(self, name: str) -> None:
        self.peer = lambda: name
        self.write = asyncio.Event().wait


async def test_connections_that_watched_are_forgotten() -> None:
    """Nothing is kept of a connection whose watches have ended, so that new connections take no memory for good."""
    made = await health.Health.create([])
    for number in range(20):
        context: Any = _Peer(f"ipv4:127.0.0.1:{number}")
        watch = asyncio.create_task(made.Watch(HealthCheckRequest(), context))
        await asyncio.sleep(0)
        assert [context.peer()] == list(made._watches)
        watch.cancel()
        await asyncio.wait([watch])
    assert not made._watches


# -- sizes


async def test_what_a_call_may_send_unread(service: Service) -> None:
    """A call may send 64 KiB before its request is read, not the 4 MiB of gRPC's default."""

    def settings_of(address: str) -> dict[int, int]:
        with Peer(address) as peer:
            payload = next(payload for kind, payload in peer.frames() if kind == SETTINGS and payload)
            return dict(struct.iter_unpack(">HI", payload))

    assert 64 * 1024 == (await asyncio.to_thread(settings_of, service.address))[INITIAL_WINDOW_SIZE]


async def test_metadata(service: Service) -> None:
    """Metadata up to the limit passes; from a quarter beyond it on no call does."""
    limit = 4096
    room = 1000  # of the metadata that gRPC itself sends
    async with running_service(service.url, max_metadata_bytes=limit) as served:
        made = await served.stub.CreateConversation(create())
        passes = (("x-note", "n" * (limit - room)),)
        assert made.id == (await served.stub.GetConversation(get(made.id), metadata=passes)).id
        beyond = (("x-note", "n" * (limit // 4 * 5 + 1)),)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await served.stub.GetConversation(get(made.id), metadata=beyond)
        assert grpc.StatusCode.RESOURCE_EXHAUSTED is refused.value.code()


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_requests(service: Service, compression: grpc.Compression) -> None:
    """They are refused, whoever takes them, unless a setting has them taken (docs/adr/0030)."""
    stub, watch = service.stub, HealthStub(service.channel)
    for call in (
        stub.CreateConversation(create(), compression=compression),
        watch.Check(HealthCheckRequest(), compression=compression),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "disabled" in (refused.value.details() or "")
    async with running_service(service.url, compressed_requests=True) as served:
        assert (await served.stub.CreateConversation(create(), compression=compression)).id


async def test_calls_of_a_connection(service: Service) -> None:
    """A connection carries so many calls at once; the next waits, and another connection's does not."""
    async with running_service(service.url, max_calls_per_connection=2) as served:
        async with locked(served) as name:
            held = [asyncio.ensure_future(served.stub.CreateItems(append(name, user_message()))) for _ in range(2)]
            await asyncio.sleep(0.3)
            third = asyncio.ensure_future(served.stub.GetConversation(get(name)))
            assert not (await asyncio.wait((third,), timeout=0.3))[0]
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(served.address, options=options) as another:
                assert name == (await ConversationsServiceStub(another).GetConversation(get(name))).id
        assert name == (await third).id
        await asyncio.gather(*held)


# -- connections: what a peer sees that speaks HTTP/2 by hand


class Peer:
    """A connection that says what it is told and nothing else."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=10)
        self._socket.sendall(PREFACE + frame(SETTINGS) + frame(SETTINGS, flags=ACK))
        self.began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Sends bytes, if the other end still takes them."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(data)

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Type and payload of each frame that comes, until the end of the connection."""
        while head := self._read(9):
            length, kind = struct.unpack(">I", b"\0" + head[:3])[0], head[3]
            yield kind, self._read(length)

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                more = self._socket.recv(count - len(data))
            except ConnectionResetError:
                more = b""
            if not more:
                return b""
            data += more
        return data


def frame(kind: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """A frame of the whole connection."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + bytes(4) + payload


def goaway(address: str) -> tuple[int, bytes, float]:
    """Code and words with which a peer that says nothing is sent away, and after how many seconds."""
    with Peer(address) as peer:
        payload = next(payload for kind, payload in peer.frames() if kind == GOAWAY)
        return struct.unpack(">I", payload[4:8])[0], payload[8:], time.monotonic() - peer.began


async def seen(service: Service, **limits: Any) -> tuple[int, bytes, float]:
    """How a service ends the connection of a peer that says nothing."""
    async with running_service(service.url, **limits) as served:
        return await asyncio.to_thread(goaway, served.address)


async def test_connections_are_renewed(service: Service) -> None:
    """A connection is told to end when it is old; calls go on over the next without a failure."""
    code, words, seconds = await seen(service, connection_age_seconds=1)
    assert (NO_ERROR, b"max_age") == (code, words)
    assert 0.8 < seconds < 3  # gRPC adds up to a tenth, so that not all connections end at once
    async with running_service(service.url, connection_age_seconds=0.2, connection_age_grace_seconds=5) as served:
        made = await served.stub.CreateConversation(create())
        until = time.monotonic() + 2  # several connections long
        while time.monotonic() < until:
            assert made.id == (await served.stub.GetConversation(get(made.id))).id


async def test_connections_without_calls_end(service: Service) -> None:
    """A connection without calls is told to end."""
    _, words, seconds = await seen(service, connection_idle_seconds=1)
    assert b"connection idle" == words
    assert 0.8 < seconds < 3


async def test_a_peer_that_is_gone(service: Service) -> None:
    """A peer that does not answer a ping in time is sent away."""
    code, words, seconds = await seen(service, keepalive_seconds=1, keepalive_timeout_seconds=0.5)
    assert (ENHANCE_YOUR_CALM, b"ping_timeout") == (code, words)
    assert 1.3 < seconds < 4


@pytest.mark.parametrize(("interval", "calm"), [(10, False), (0.01, True)])
async def test_pings_of_a_peer(service: Service, interval: float, calm: bool) -> None:  # noqa: FBT001
    """Pings that come more often than they may end the connection; others are answered, one by one."""

    def answered(address: str) -> int:
        with Peer(address) as peer:
            for _ in range(6):
                peer.send(frame(PING, bytes(8)))
                time.sleep(0.05)
            kinds = itertools.takewhile(lambda kind: kind != GOAWAY, (kind for kind, _ in peer.frames()))
            return len(list(itertools.islice((kind for kind in kinds if kind == PING), 6)))

    async with running_service(service.url, min_ping_interval_seconds=interval) as served:
        assert calm == (await asyncio.to_thread(answered, served.address) == 6)
