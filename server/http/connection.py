"""Connections: what aiohttp leaves open for callers who send no request, too much of one, or none that is HTTP."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from server.http.peer_certificate import auth_context_of
from server.http.problems import HEAD_TOO_LARGE, NOT_HTTP, TOO_MANY_CONNECTIONS, UNEXPECTED, Problem
from server.observability.logs import origin_of

log = structlog.get_logger(__name__)

SERVER = "conversation-service"


class Connection(RequestHandler):
    """A connection of a caller.

    Attributes:
        began: The loop's time at which it was made.
        peer: The other end, as gRPC writes it.
    """

    def __init__(self, *args: Any, max_head_bytes: int, **kwargs: Any) -> None:
        """``max_head_bytes``: of a request's line and headers together."""
        super().__init__(*args, **kwargs)
        self._max_head_bytes = max_head_bytes
        self._head_bytes = 0  # of a request whose head has not arrived as a whole
        self._auth_context: Mapping[str, Iterable[bytes]] | None = None
        self.began = 0.0
        self.peer = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins to wait for requests."""
        self.began = self._loop.time()
        self.peer = _peer_of(transport.get_extra_info("peername"))
        super().connection_made(transport)

    @property
    def is_unix(self) -> bool:
        """Whether the caller came by a Unix socket."""
        return self.peer.startswith("unix:")

    @property
    def idle_since(self) -> float | None:
        """The loop's time since when it has sent no whole request head; None while it is served."""
        if self._waiter is None or self._waiter.done():
            return None
        return self._next_keepalive_close_time - self.keepalive_timeout

    @property
    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What TLS has verified of the caller, under gRPC's names; the same for all requests."""
        if self._auth_context is None:
            tls = self.transport.get_extra_info("ssl_object") if self.transport else None
            self._auth_context = auth_context_of(tls.getpeercert(binary_form=True)) if tls else {}
        return self._auth_context

    def data_received(self, data: bytes) -> None:
        """Takes what has arrived; ends the connection when the head of a request is too large."""
        super().data_received(data)
        if self._waiter is None or self._waiter.done():
            self._head_bytes = 0
            return
        self._head_bytes += len(data)  # the parser is in the middle of a head
        if self._head_bytes > self._max_head_bytes and self.transport is not None:
            self.transport.write(_written(HEAD_TOO_LARGE))
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp calls it with these
    ) -> web.StreamResponse:
        """Returns the answer to what is no HTTP, and to an error that the edge did not expect; without its text.

        Raises:
            ConnectionError: The caller has gone, or does not take its answer. aiohttp ends the connection then.
        """
        if isinstance(exc, ConnectionError):
            raise exc
        if status >= 500:
            self.log_exception("unexpected error", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has been sent in part")
        return _response_of(NOT_HTTP if status < 500 else UNEXPECTED)

    def log_exception(self, *_args: Any, exc_info: BaseException | None = None, **_kwargs: Any) -> None:
        """Logs an error without its text, which may hold content."""
        log.error("unexpected error", **(origin_of(exc_info) if exc_info else {}))


class Refusal(asyncio.Protocol):
    """A connection beyond the limit: it is told so, and closed."""

    def connection_made(self, transport: Any) -> None:
        """Answers without a request."""
        transport.write(_written(TOO_MANY_CONNECTIONS))
        transport.close()


def _headers_of(problem: Problem) -> dict[str, str]:
    return {**problem.all_headers(), "Content-Type": "application/json", "Server": SERVER}


def _response_of(problem: Problem) -> web.Response:
    """Returns the response to a request that nothing is known of."""
    response = web.Response(status=problem.status, body=problem.body(), headers=_headers_of(problem))
    response.force_close()
    return response


def _written(problem: Problem) -> bytes:
    """Returns the bytes of an answer that ends its connection."""
    body = problem.body()
    headers = {**_headers_of(problem), "Content-Length": str(len(body)), "Connection": "close"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {problem.status} \r\n{lines}\r\n".encode() + body


def _peer_of(name: Any) -> str:
    match name:
        case (str(host), int(port)):
            return f"ipv4:{host}:{port}"
        case (str(host), int(port), *_):
            return f"ipv6:[{host}]:{port}"
        case str(path):
            return f"unix:{path}"
        case bytes(path):
            return f"unix:{path.decode(errors='replace')}"
        case _:
            return "unix:"
