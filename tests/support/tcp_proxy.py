"""A TCP proxy in front of PostgreSQL, or of any server, that can do what networks do.

It runs on the event loop of the test. Faults last until `TcpProxy.heal`; they can be put on before a
connection is made or while it is used.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

_CHUNK_BYTES = 64 * 1024
_LOSING_SECONDS = 0.25  # from a request to the reset of its connection, in which its answer comes and is thrown away
_RESET = b"\x01\0\0\0\0\0\0\0"  # struct linger: on, 0 seconds; close() then sends RST


class Direction(Enum):
    """Which way bytes go."""

    UP = "client to server"
    DOWN = "server to client"


@dataclass(frozen=True)
class Upstream:
    """The server behind the proxy: a TCP address, or a Unix socket."""

    host: str = "127.0.0.1"
    port: int = 5432
    socket_path: str | None = None

    @classmethod
    def of(cls, url: str) -> "Upstream":
        """The server that a PostgreSQL URL leads to; ``host=/folder`` in its query is a Unix socket."""
        parts = urlsplit(url)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        port = int(query.get("port", parts.port or 5432))
        host = query.get("host", parts.hostname or "127.0.0.1")
        return cls(socket_path=f"{host}/.s.PGSQL.{port}") if host.startswith("/") else cls(host, port)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to it."""
        if self.socket_path:
            return await asyncio.open_unix_connection(self.socket_path)
        return await asyncio.open_connection(self.host, self.port)


@dataclass(eq=False)
class _Connection:
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    losing: bool = False  # its answers are thrown away, and then it is reset
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)


class TcpProxy:
    """Passes bytes on, unless it is told not to.

    Attributes:
        port: Of 127.0.0.1, where it listens; stays the same through `refuse` and `black_hole`.
        accepted: How many connections were made so far.
        delay_seconds: How long each chunk is held, in each direction.
        swallow: Directions whose bytes are read and thrown away; the connections stay open.
        lost: How many connections `lose_answers` has ended.
    """

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.port = 0
        self.accepted = 0
        self.delay_seconds = 0.0
        self.swallow: set[Direction] = set()
        self.lost = 0
        self._lose: tuple[bytes, int, bool] | None = None
        self._requests = 0  # with the bytes to look for, since `lose_answers`
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._connections: set[_Connection] = set()
        self._handlers: set[asyncio.Task[Any]] = set()
        self._listener: asyncio.Server | None = None
        self._fillers: list[socket.socket] = []

    def url(self, url: str) -> str:
        """The PostgreSQL URL ``url`` by way of this proxy."""
        parts = urlsplit(url)
        user = parts.username or "postgres"
        secret = f":{parts.password}" if parts.password else ""
        kept = [part for part in parts.query.split("&") if part and part.partition("=")[0] not in {"host", "port"}]
        return urlunsplit((parts.scheme, f"{user}{secret}@127.0.0.1:{self.port}", parts.path, "&".join(kept), ""))

    @property
    def address(self) -> str:
        """Where it listens, as `host:port`."""
        return f"127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    def freeze(self) -> None:
        """Nothing passes any more, on old connections or on new ones, which are accepted; nothing is closed."""
        self._flowing.clear()

    async def black_hole(self) -> None:
        """As `freeze`, and new connections are not even accepted: their SYN is dropped."""
        self.freeze()
        await self._close_listener()
        blocked = socket.socket()
        blocked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        blocked.bind(("127.0.0.1", self.port))
        blocked.listen(0)
        self._fillers = [blocked]
        for _ in range(4):  # more than the queue takes; Linux then drops what comes
            filler = socket.socket()
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect(("127.0.0.1", self.port))
            self._fillers.append(filler)

    async def refuse(self) -> None:
        """Refuses new connections (ECONNREFUSED) and resets the open ones."""
        await self._close_listener()
        self.reset()

    def reset(self) -> None:
        """Ends all open connections with RST on both sides; new ones are made."""
        for connection in list(self._connections):
            _end(connection)

    def lose_answers(self, request: bytes, every: int = 1, *, reset: bool = True) -> None:
        """Passes each ``every``-th request with these bytes on, throws away what is answered, and then resets.

        The server has done what it was asked for, and nobody learns of it. Without ``reset`` the connection
        stays open, and silent.
        """
        self._lose, self._requests = (request, every, reset), 0

    def half_close(self, direction: Direction) -> None:
        """Sends FIN in one direction on each open connection; the other direction goes on."""
        for connection in self._connections:
            writer = connection.server if direction is Direction.UP else connection.client
            if writer is not None and writer.can_write_eof():
                writer.write_eof()

    async def heal(self) -> None:
        """Ends every fault. What was held passes now; what was swallowed is lost."""
        self.delay_seconds = 0.0
        self.swallow.clear()
        self._lose = None
        self._flowing.set()
        for filler in self._fillers:
            filler.close()
        self._fillers = []
        if self._listener is None:
            await self.listen()

    async def listen(self) -> None:
        """Accepts connections, on the port of before if there was one."""
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Ends everything."""
        await self._close_listener()
        for filler in self._fillers:
            filler.close()
        self.reset()
        for task in self._handlers:
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    async def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        await asyncio.sleep(0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        connection = _Connection(writer)
        self._connections.add(connection)
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            await self._serve(connection, reader)
        except (OSError, RuntimeError, asyncio.CancelledError):
            pass  # nobody waits for this task; RuntimeError is how uvloop tells of a closed transport
        finally:
            self._connections.discard(connection)
            self._handlers.discard(task)
            _end(connection)

    async def _serve(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        await self._flowing.wait()
        answers, connection.server = await self.upstream.connect()
        connection.tasks = [
            asyncio.create_task(self._pump(reader, connection.server, Direction.UP, connection)),
            asyncio.create_task(self._pump(answers, connection.client, Direction.DOWN, connection)),
        ]
        await asyncio.gather(*connection.tasks)  # one that fails is a reset, and the other side gets one too

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction, of: _Connection
    ) -> None:
        while True:
            await self._flowing.wait()
            chunk = await reader.read(_CHUNK_BYTES)
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            await self._flowing.wait()
            if not chunk:
                break
            if direction is Direction.UP:
                self._lose_if_asked(chunk, of)
            if direction not in self.swallow and not (of.losing and direction is Direction.DOWN):
                writer.write(chunk)
                await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    def _lose_if_asked(self, chunk: bytes, connection: _Connection) -> None:
        if self._lose is None or self._lose[0] not in chunk or connection.losing:
            return
        _, every, reset = self._lose
        self._requests += 1
        if self._requests % every == 0:
            self.lost += 1
            connection.losing = True
            if reset:
                asyncio.get_running_loop().call_later(_LOSING_SECONDS, _end, connection)


def _end(connection: _Connection) -> None:
    """Resets both sides."""
    for task in connection.tasks:
        task.cancel()
    for writer in (connection.client, connection.server):
        if writer is not None and not writer.transport.is_closing():
            raw = writer.get_extra_info("socket")
            with suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


@asynccontextmanager
async def tcp_proxy(url: str) -> AsyncIterator[TcpProxy]:
    """A proxy in front of the server that the PostgreSQL URL ``url`` leads to."""
    proxy = TcpProxy(Upstream.of(url))
    await proxy.listen()
    try:
        yield proxy
    finally:
        await proxy.close()
