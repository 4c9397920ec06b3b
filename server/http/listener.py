"""The listener: addresses, TLS and connections of the edge, and how they end in a drain."""

import asyncio
import errno
import socket
import ssl
from asyncio import AbstractServer
from collections.abc import Awaitable, Callable
from operator import itemgetter
from typing import Any

from aiohttp import web

from server.errors import cannot_listen
from server.http.connection import Connection, Refusal
from server.http.tls import server_context
from server.interceptors.running import Running
from server.settings.addresses import Address
from server.settings.service import Settings
from server.transport.server import clear_socket
from server.transport.tls import Credentials

_BACKLOG = 1024  # connections that wait to be accepted
_MAX_LINE_BYTES = 8190  # of a request: method, path and query
_MAX_HEADERS = 100
_READ_BYTES = 64 * 1024  # of a body that nobody reads yet
_LINGER_SECONDS = 3.0  # in which the rest of a refused body is read and dropped
_HANDSHAKE_SECONDS = 10.0
IDLE_SECONDS = 1.0  # after which a connection gives way to a new one, if there are as many as may be
_FLUSH_SECONDS = 0.1  # for callers to take what has been written to them
_LAST_SECONDS = 0.1  # from the end of the grace to the end of calls that are cancelled then

Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Connections(web.Server):
    """The connections of one process.

    Attributes:
        count: Open now.
        refused: Since the start, because there were too many.
    """

    def __init__(self, handle: Handle, settings: Settings) -> None:
        super().__init__(self._count_in, handler_cancellation=True)  # a caller that goes ends its query
        self._handle = handle
        self._limit = settings.http_max_connections
        self._running = Running()
        self.count = 0
        self.refused = 0
        self._options: dict[str, Any] = {
            "keepalive_timeout": settings.http_idle_seconds,
            "max_head_bytes": settings.max_metadata_bytes + _MAX_LINE_BYTES,
            "max_line_size": _MAX_LINE_BYTES,
            "max_field_size": settings.max_metadata_bytes,
            "max_headers": _MAX_HEADERS,
            "read_bufsize": _READ_BYTES,
            "lingering_time": _LINGER_SECONDS,
            "access_log": None,
        }

    def accept(self) -> asyncio.Protocol:
        """Returns what serves a new connection; at the limit, the one that has been idle for longest gives way."""
        if self.count >= self._limit and not self._close_idle():
            self.refused += 1
            return Refusal()
        return Connection(self, loop=self._loop, **self._options)

    def _close_idle(self) -> bool:
        """Closes the connection that has been idle for longest, if that is long enough; returns whether it did."""
        known = [each for each in self._connections if isinstance(each, Connection)]
        idle = [(since, each) for each in known if (since := each.idle_since) is not None]
        since, longest = min(idle, key=itemgetter(0), default=(0.0, None))
        if longest is None or self._loop.time() - since < IDLE_SECONDS:
            return False
        longest.force_close()
        return True

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Counts a connection in."""
        self.count += 1
        super().connection_made(handler, transport)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Counts a connection out."""
        self.count -= 1
        super().connection_lost(handler, exc)

    async def _count_in(self, request: web.BaseRequest) -> web.StreamResponse:
        self._running.begin()
        try:
            return await self._handle(request)
        finally:
            self._running.end()

    async def end(self, grace: float) -> None:
        """Closes idle connections, and the others when their answers are sent, or after ``grace`` seconds."""
        self.pre_shutdown()
        await self._running.wait_idle(grace)
        transports = [each.transport for each in self.connections if each.transport]
        await self.shutdown(_LAST_SECONDS)
        await asyncio.sleep(_FLUSH_SECONDS)
        for transport in transports:
            transport.abort()  # of a caller who has not taken its answers; nothing happens to one that is closed


class Listener:
    """Serves the addresses of `http_listen`.

    Args:
        settings: Of the service.
        handle: Answers a request.
        certificate: For addresses that are no Unix sockets; None without TLS.

    Attributes:
        addresses: With the port in use where port 0 was configured.
        connections: That are served.

    Raises:
        StartFailed: An address is taken or not allowed.
    """

    def __init__(self, settings: Settings, handle: Handle, certificate: Credentials | None) -> None:
        self.connections = Connections(handle, settings)
        self._certificate = certificate
        self._changed = asyncio.Event()
        self._sockets: list[socket.socket] = []
        self._servers: dict[socket.socket, AbstractServer] = {}
        self.addresses: tuple[Address, ...] = ()
        try:
            shared = settings.workers > 1
            self.addresses = tuple(self._bind(address, shared=shared) for address in settings.http_listen)
        except BaseException:
            self._close_sockets()
            raise
        if certificate:
            certificate.on_change(self._changed.set)

    async def start(self) -> None:
        """Accepts connections from now on."""
        tls = server_context(self._certificate.material) if self._certificate else None
        for each in tuple(self._sockets):
            server = await self._serve(each.dup(), tls)
            if previous := self._servers.pop(each, None):
                previous.close()
            self._servers[each] = server

    async def follow_certificate(self) -> None:
        """Serves new connections with the certificate and the CAs of now, for ever.

        With a new context and not a changed one: sessions of the old one, which may be those of a CA that was removed,
        cannot be resumed.
        """
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self.start()

    async def stop(self, grace: float) -> None:
        """Takes no connections any more, and ends those that there are within ``grace`` seconds."""
        for server in self._servers.values():
            server.close()
        self._close_sockets()
        for address in self.addresses:
            if address.path:
                address.path.unlink(missing_ok=True)
        await self.connections.end(grace)

    async def _serve(self, listening: socket.socket, tls: ssl.SSLContext | None) -> AbstractServer:
        loop, accept = asyncio.get_running_loop(), self.connections.accept
        if listening.family == socket.AF_UNIX:
            return await loop.create_unix_server(accept, sock=listening, backlog=_BACKLOG)
        handshake = _HANDSHAKE_SECONDS if tls else None
        return await loop.create_server(
            accept, sock=listening, ssl=tls, backlog=_BACKLOG, ssl_handshake_timeout=handshake
        )

    def _bind(self, address: Address, *, shared: bool) -> Address:
        try:
            if address.path:
                clear_socket(address.path)
                self._sockets.append(_bound(socket.AF_UNIX, str(address.path), shared=False))
                address.path.chmod(0o660)  # for a sidecar of the same group
                return address
            return self._bind_tcp(address, shared=shared)
        except OSError as error:
            raise cannot_listen(str(address)) from error

    def _bind_tcp(self, address: Address, *, shared: bool) -> Address:
        """Binds every address that the host stands for, all with the same port."""
        port, missing, before = address.port, OSError(errno.EADDRNOTAVAIL, "no address"), len(self._sockets)
        for family, *_, found in socket.getaddrinfo(address.host, port, type=socket.SOCK_STREAM):
            try:
                bound = _bound(family, (found[0], port, *found[2:]), shared=shared)
            except OSError as error:
                if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                    raise
                missing = error  # such as ::1 for localhost without IPv6
                continue
            self._sockets.append(bound)
            port = bound.getsockname()[1]
        if len(self._sockets) == before:
            raise missing
        return address.with_port(port)

    def _close_sockets(self) -> None:
        for each in self._sockets:
            each.close()
        self._sockets.clear()


def _bound(family: int, address: Any, *, shared: bool) -> socket.socket:
    """Returns a bound socket; ``shared``: with other workers."""
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family != socket.AF_UNIX:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made
