"""Serves GET /metrics, as Prometheus or OpenMetrics text, whichever the request asks for, and probes.

On the event loop, not in a thread: what is read there changes nowhere else, so nothing takes
a lock. A scrape holds the loop for as long as it takes to write the text
(docs/operations.md#cost). A probe reads one value, also while gRPC refuses calls.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPMethod, HTTPStatus

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from server.errors import StartFailed
from server.observability.metrics.sources import Probes
from server.settings.addresses import Address

MAX_CONNECTIONS = 64  # nobody is authenticated here; beyond it the oldest connection closes, so that probes get through
MAX_CONNECTION_SECONDS = 10.0  # as long as Prometheus waits for a scrape by default

_ANSWERS = {True: (HTTPStatus.OK, "SERVING\n"), False: (HTTPStatus.SERVICE_UNAVAILABLE, "NOT_SERVING\n")}


@asynccontextmanager
async def serve_metrics(listen: Address, registry: CollectorRegistry, probes: Probes) -> AsyncIterator[Address]:
    """Serves the metrics of ``registry``, and ``probes``, while the context is open; yields the address in use.

    A probe is answered with 200 or 503, and with nothing that says why.

    Raises:
        StartFailed: The address is taken, or not ours to use.
    """

    async def respond(request: web.BaseRequest) -> web.Response:
        response = await _answer(request, registry, probes)
        response.force_close()
        return response

    runner = web.ServerRunner(_BoundedServer(respond), shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, listen.host, listen.port).start()
        yield listen.with_port(runner.addresses[0][1])
    except OSError:
        raise StartFailed(f"metrics_listen: cannot listen on {listen}: the address is taken or not allowed.") from None
    finally:
        await runner.cleanup()


async def _answer(request: web.BaseRequest, registry: CollectorRegistry, probes: Probes) -> web.Response:
    if request.path != "/metrics" and request.path not in probes:
        return web.Response(status=HTTPStatus.NOT_FOUND, text="")
    if request.method not in {HTTPMethod.GET, HTTPMethod.HEAD}:
        return web.Response(status=HTTPStatus.METHOD_NOT_ALLOWED, text="", headers={"Allow": "GET, HEAD"})
    if request.path in probes:
        status, text = _ANSWERS[await probes[request.path]()]
        return web.Response(status=status, text=text)
    encode, kind = choose_encoder(request.headers.get("Accept", ""))
    response = web.Response(body=encode(registry), headers={"Content-Type": kind})
    response.enable_compression()
    return response


class _BoundedServer(web.Server):
    """Limits how many connections are open and how long each is; the newest is always let in."""

    def __init__(self, respond: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        super().__init__(respond, access_log=None)
        self._open: dict[web.RequestHandler, tuple[asyncio.Transport, asyncio.TimerHandle]] = {}  # oldest first

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Closes the oldest connection if this is one too many."""
        super().connection_made(handler, transport)
        if len(self._open) >= MAX_CONNECTIONS:
            self._abort(next(iter(self._open)))
        deadline = asyncio.get_running_loop().call_later(MAX_CONNECTION_SECONDS, self._abort, handler)
        self._open[handler] = transport, deadline

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Forgets a connection that has closed."""
        super().connection_lost(handler, exc)
        self._forget(handler)

    def _forget(self, handler: web.RequestHandler) -> asyncio.Transport | None:
        transport, deadline = self._open.pop(handler, (None, None))
        if deadline:
            deadline.cancel()
        return transport

    def _abort(self, handler: web.RequestHandler) -> None:
        if transport := self._forget(handler):
            transport.abort()
