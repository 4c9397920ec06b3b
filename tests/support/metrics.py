"""A service whose metrics are scraped."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
from aiohttp import web
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from cryptography import x509
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics

from server.app.service import run_service
from server.settings.service import load
from tests.support.certificates import CA, TlsFiles
from tests.support.service import Service


@dataclass(frozen=True)
class Scrape:
    """The families of one scrape."""

    families: Mapping[str, Metric]

    def value(self, name: str, **labels: str) -> float:
        """The value of the only sample that has these labels, and perhaps others."""
        found = [
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert 1 == len(found), (name, labels, found)
        return found[0]

    def labels(self) -> set[str]:
        """The values of all labels."""
        samples = (sample for family in self.families.values() for sample in family.samples)
        return {value for sample in samples for value in sample.labels.values()}


async def http_get(address: str, path: str = "/metrics", **headers: str) -> tuple[int, str, str]:
    """Status, content type and body of a GET."""
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}{path}", headers=headers) as answer:
        return answer.status, answer.headers["Content-Type"], await answer.text()


async def scrape(address: str) -> Scrape:
    """Scrapes as Prometheus does, in the OpenMetrics format."""
    _, _, text = await http_get(address, Accept="application/openmetrics-text; version=1.0.0")
    return Scrape({family.name: family for family in openmetrics(text)})


@dataclass(frozen=True)
class MeasuredService(Service):
    """A service that exposes metrics at the address `metrics`."""

    metrics: str

    async def scrape(self) -> Scrape:
        """The current metrics."""
        return await scrape(self.metrics)


@asynccontextmanager
async def measured_service(url: str, **settings: Any) -> AsyncIterator[MeasuredService]:
    """Runs a service that exposes metrics, on the database at ``url``."""
    values = {"listen": "127.0.0.1:0", "database_url": url, "purge_every_minutes": 0, "grace_seconds": 1}
    async with (
        run_service(load(**values | {"metrics_listen": "127.0.0.1:0"} | settings)) as served,
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        stub = ConversationsServiceStub(channel)
        yield MeasuredService(served.address, url, served.store.database, channel, stub, str(served.metrics or ""))


@asynccontextmanager
async def fully_measured_service(
    url: str, folder: Path
) -> AsyncIterator[tuple[MeasuredService, web.AppRunner, datetime]]:
    """A service with every source of metrics, its JWKS server, and the expiry of its certificate."""

    async def keys(_request: web.Request) -> web.Response:
        return web.json_response({"keys": []})

    application = web.Application()
    application.router.add_get("/jwks", keys)
    issuer = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await issuer.setup()
    await web.TCPSite(issuer, "127.0.0.1", 0).start()
    certificate, key = CA.issue("server", left=timedelta(days=3))
    files = TlsFiles(folder).put(certificate, key)
    settings = {
        "identity": "jwt",
        "jwt_issuer": "https://issuer.example",
        "jwt_audience": "conversations",
        "jwt_jwks": f"http://127.0.0.1:{issuer.addresses[0][1]}/jwks",
        "purge_every_minutes": 60,
        **files.settings,
    }
    expiry = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    try:
        async with measured_service(url, **settings) as found:
            yield found, issuer, expiry
    finally:
        await issuer.cleanup()
