"""Serves GET /metrics, as Prometheus or OpenMetrics text, whichever the request asks for.

On the event loop, not in a thread: what is read there changes nowhere else, so nothing takes
a lock. A scrape holds the loop for as long as it takes to write the text
(docs/operations.md#cost).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from server.errors import StartFailed
from server.settings.addresses import Address


@asynccontextmanager
async def serve_metrics(listen: Address, registry: CollectorRegistry) -> AsyncIterator[Address]:
    """Serves the metrics of ``registry`` while the context is open; yields the address in use.

    Raises:
        StartFailed: The address is taken, or not ours to use.
    """

    async def metrics(request: web.Request) -> web.Response:
        encode, kind = choose_encoder(request.headers.get("Accept", ""))
        response = web.Response(body=encode(registry), headers={"Content-Type": kind})
        response.enable_compression()
        return response

    application = web.Application()
    application.router.add_get("/metrics", metrics)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, listen.host, listen.port).start()
        yield listen.with_port(runner.addresses[0][1])
    except OSError:
        raise StartFailed(f"metrics_listen: cannot listen on {listen}: the address is taken or not allowed.") from None
    finally:
        await runner.cleanup()
