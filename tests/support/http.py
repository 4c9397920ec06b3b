"""A service with its HTTP edge, and clients of both protocols."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import aiohttp
import grpc.aio
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from multidict import CIMultiDict, CIMultiDictProxy

from server.app.service import RunningService, run_service
from server.settings.addresses import Address
from server.settings.service import load

CONVERSATIONS = "/v1/conversations"
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Answered:
    """An answer over HTTP."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> Any:
        """The JSON of the body."""
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str | None, str | None, str]:
        """Status, code, param and message of a problem; the test fails if it has not exactly OpenAI's four keys."""
        error = self.json["error"]
        assert {"error"} == set(self.json)
        assert {"message", "type", "param", "code"} == set(error)
        assert error["type"] == ("server_error" if self.status >= 500 else "invalid_request_error")
        return self.status, error["code"], error["param"], error["message"]


@dataclass(frozen=True)
class HttpClient:
    """A client of the edge at one address."""

    session: aiohttp.ClientSession
    base: str

    async def call(
        self, verb: str, path: str, body: Any = None, data: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answered:
        """Sends a request; ``body`` is sent as JSON, ``data`` as it is."""
        given = CIMultiDict(headers or {})
        if body is not None:
            data = BytesIO(json.dumps(body).encode())  # aiohttp warns of large bytes
        if data is not None and "Content-Type" not in given:
            given.update(JSON)
        async with self.session.request(verb, self.base + path, data=data, headers=given) as answer:
            return Answered(answer.status, answer.headers, await answer.read())

    async def get(self, path: str, **headers: str) -> Answered:
        """Sends a GET."""
        return await self.call("GET", path, headers=_named(headers))

    async def post(self, path: str, body: Any = None, **headers: str) -> Answered:
        """Sends a POST with JSON."""
        return await self.call("POST", path, body, headers=_named(headers))

    async def delete(self, path: str, **headers: str) -> Answered:
        """Sends a DELETE."""
        return await self.call("DELETE", path, headers=_named(headers))

    async def create(self, *items: Any, **more: Any) -> str:
        """The path of a new conversation with these items."""
        made = await self.post(CONVERSATIONS, {"items": list(items), **more})
        assert 200 == made.status, made.body
        return f"{CONVERSATIONS}/{made.json['id']}"


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers of which each is named by a Python identifier or as it is."""
    return {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass(frozen=True)
class EdgeService:
    """A running service with clients of both protocols."""

    served: RunningService
    stub: Any
    http: HttpClient

    @property
    def address(self) -> Address:
        """Of the edge."""
        return self.served.http[0]


@asynccontextmanager
async def http_client(address: Address, **options: Any) -> AsyncIterator[HttpClient]:
    """A client of the edge at this address; ``options`` are those of aiohttp's sessions."""
    if address.path:
        options["connector"] = aiohttp.UnixConnector(str(address.path))
    scheme = "https" if "connector" in options and not address.path else "http"
    base = "http://localhost" if address.path else f"{scheme}://{address}"
    async with aiohttp.ClientSession(**options) as session:
        yield HttpClient(session, base)


@asynccontextmanager
async def edge_service(url: str, **settings: Any) -> AsyncIterator[EdgeService]:
    """Runs a service with an edge on the database at ``url``."""
    values = {
        "listen": "127.0.0.1:0",
        "http_listen": "127.0.0.1:0",
        "database_url": url,
        "purge_every_minutes": 0,
        "grace_seconds": 1,
        **settings,
    }
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(run_service(load(**values)))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(served.address))
        http = await stack.enter_async_context(http_client(served.http[0]))
        yield EdgeService(served, ConversationsServiceStub(channel), http)


class RawConnection:
    """A connection on which a test sends what it wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    @asynccontextmanager
    async def to(cls, address: Address) -> AsyncIterator["RawConnection"]:
        """Connects by TCP."""
        reader, writer = await asyncio.open_connection(address.host, address.port)
        try:
            yield cls(reader, writer)
        finally:
            writer.transport.abort()  # `close` would wait until a server that does not read has taken everything

    async def send(self, *parts: str | bytes) -> None:
        """Sends each part by itself."""
        for part in parts:
            self.writer.write(part.encode() if isinstance(part, str) else part)
            await self.writer.drain()

    async def head(self) -> str:
        """The head of the next answer."""
        async with asyncio.timeout(10):
            return (await self.reader.readuntil(b"\r\n\r\n")).decode()

    async def rest(self) -> bytes:
        """All that comes until the server closes the connection."""
        async with asyncio.timeout(10):
            return await self.reader.read()


def request_text(verb: str, path: str, *headers: str, host: str = "127.0.0.1") -> str:
    """A request without a body as it is sent."""
    lines = "".join(f"{each}\r\n" for each in (f"Host: {host}", *headers))
    return f"{verb} {path} HTTP/1.1\r\n{lines}\r\n"
