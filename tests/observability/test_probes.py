"""Probes by HTTP: what an orchestrator learns on the address of the metrics, and what that address bears."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import grpc
import grpc.aio
import pytest
from conversations.v1.conversation_pb2 import Conversation

from server.observability.metrics import exposition
from server.observability.metrics.exposition import MAX_CONNECTIONS
from tests.support.build import create, get, update
from tests.support.metrics import MeasuredService, http_get, measured_service
from tests.support.postgres import row_locked
from tests.support.service import Service

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]

UP, DOWN = (200, "SERVING\n"), (503, "NOT_SERVING\n")
ALL_UP = {"/live": UP, "/startup": UP, "/ready": UP}
REQUEST = b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"


async def probe(address: str, *paths: str) -> dict[str, tuple[int, str]]:
    """Status and body of each probe."""
    answers = {path: await http_get(address, path) for path in paths or ALL_UP}
    return {path: (status, text) for path, (status, _, text) in answers.items()}


@pytest.fixture(scope="module")
async def measured(service: Service) -> AsyncIterator[MeasuredService]:
    """A service with the address of metrics and probes."""
    async with measured_service(service.url) as found:
        yield found


async def test_a_ready_service(measured: MeasuredService) -> None:
    """Every probe succeeds."""
    assert ALL_UP == await probe(measured.metrics)


async def test_a_service_without_its_database() -> None:
    """It lives, and is neither started nor ready; nothing says why."""
    async with measured_service("postgresql://nobody@127.0.0.1:1/none") as found:
        assert {"/live": UP, "/startup": DOWN, "/ready": DOWN} == await probe(found.metrics)


async def test_a_busy_service_and_its_drain(service: Service) -> None:
    """While no more calls are let in, all succeed: a restart would lose calls. A drain lives, and is not ready."""
    async with held(service.url) as (found, conversation, begin_drain):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await found.stub.GetConversation(get(conversation.id))
        assert grpc.StatusCode.RESOURCE_EXHAUSTED is refused.value.code()
        assert ALL_UP == await probe(found.metrics)
        begin_drain.set()
        async with asyncio.timeout(5):
            while await probe(found.metrics, "/ready") != {"/ready": DOWN}:  # noqa: ASYNC110 - as an orchestrator asks
                await asyncio.sleep(0.01)
        assert {"/live": UP, "/startup": UP} == await probe(found.metrics, "/live", "/startup")


@asynccontextmanager
async def held(url: str) -> AsyncIterator[tuple[MeasuredService, Conversation, asyncio.Event]]:
    """A service whose only call runs until the end, the conversation it waits for, and what starts the drain."""
    drain, up = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def live() -> None:
        async with measured_service(url, max_calls=1) as found:
            up.set_result(found)
            await drain.wait()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(live())
        found: MeasuredService = await up
        conversation = await found.stub.CreateConversation(create())
        async with row_locked(url, conversation.id):
            call = found.stub.UpdateConversation(update(conversation.id, metadata={"a": "b"}))
            async with asyncio.timeout(5):
                while (await found.scrape()).value("conversations_calls_running") < 1:  # noqa: ASYNC110 - the same
                    await asyncio.sleep(0.01)
            yield found, conversation, drain
            call.cancel()
        drain.set()


@pytest.mark.parametrize("path", ["/", "/ready/", "/readyz", "/live/x", "/metrics/"])
async def test_other_paths(measured: MeasuredService, path: str) -> None:
    """Nothing else is there, and nothing is said about it."""
    status, _, text = await http_get(measured.metrics, path)
    assert (404, "") == (status, text)


@pytest.mark.parametrize("path", ["/live", "/metrics"])
async def test_other_methods(measured: MeasuredService, path: str) -> None:
    """The address is for reading; HEAD is GET without the body."""
    answers = {method: await ask(measured.metrics, f"{method} {path} HTTP/1.1") for method in ("POST", "PUT", "HEAD")}
    found = {method: (int(answer.split()[1]), answer.endswith(b"\r\n\r\n")) for method, answer in answers.items()}
    assert {"POST": (405, True), "PUT": (405, True), "HEAD": (200, True)} == found


async def ask(address: str, line: str) -> bytes:
    """All that the server sends until it closes the connection."""
    async with idle(address, 1) as (connection,):
        return await received(connection, f"{line}\r\nHost: x\r\n\r\n".encode())


async def connect(address: str) -> Connection:
    """A connection on which nothing has been said."""
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def test_a_connection_has_one_request(measured: MeasuredService) -> None:
    """The server closes after the answer, whatever else was sent; so a connection cannot be kept by asking."""
    async with idle(measured.metrics, 1) as (connection,):
        assert 1 == (await received(connection, REQUEST + REQUEST)).count(b"HTTP/1.1 200 OK")


@asynccontextmanager
async def idle(address: str, count: int) -> AsyncIterator[list[Connection]]:
    """Connections on which nothing has been said."""
    connections = [await connect(address) for _ in range(count)]
    yield connections
    for _, writer in connections:
        writer.close()
        with suppress(ConnectionResetError):
            await writer.wait_closed()


async def received(connection: Connection, request: bytes = b"") -> bytes:
    """What the server sends after ``request`` until it closes the connection."""
    reader, writer = connection
    async with asyncio.timeout(5):
        try:
            writer.write(request)
            return await reader.read()
        except ConnectionResetError:
            return b""


async def test_as_many_connections_as_may_be(measured: MeasuredService) -> None:
    """None is closed, and the last is answered."""
    async with idle(measured.metrics, MAX_CONNECTIONS) as connections:
        assert b"200 OK" in await received(connections[-1], REQUEST)
        assert b"200 OK" in await received(connections[0], REQUEST)


async def test_one_connection_more(measured: MeasuredService) -> None:
    """It is answered, and the oldest is closed: those who hold connections open keep no probe out."""
    async with idle(measured.metrics, MAX_CONNECTIONS + 1) as connections:
        assert b"200 OK" in await received(connections[-1], REQUEST)
        assert b"" == await received(connections[0], REQUEST)
        assert b"200 OK" in await received(connections[1], REQUEST)


async def test_a_connection_that_says_nothing(measured: MeasuredService, monkeypatch: pytest.MonkeyPatch) -> None:
    """It closes after its time, although it has begun to ask."""
    monkeypatch.setattr(exposition, "MAX_CONNECTION_SECONDS", 0.05)
    async with idle(measured.metrics, 1) as (connection,):
        assert b"" == await received(connection, REQUEST[:9])
