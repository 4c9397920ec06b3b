"""Calls over both protocols, with everything that a service tells operators of each: logs, counts and spans."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from structlog.testing import capture_logs

from server.app import instrumentation
from server.app.instrumentation import Instrumentation
from server.interceptors.tracing import Tracing
from server.store.connection.database import Database
from server.store.tracing import StatementTracing
from tests.support.audit import AUDITED_POLICY
from tests.support.http import EdgeService, HttpClient, edge_service
from tests.support.metrics import http_get

PARENT = ("traceparent", f"00-{'a' * 32}-{'b' * 16}-01")
_OWN = ("call", "peer", "ms")  # what no two calls share
_IDS = re.compile(r"\b(conv|msg)_[0-9a-f]{48}\b|\b[0-9a-f]{32}\b(?=\.)")
# The counters in the text of a scrape that do not grow by themselves.
_OURS = r"grpc_server_|http_server_|conversations_(?!event_loop_)"
_COUNTER = re.compile(rf"^((?:{_OURS})\w+_(?:total|count)(?:{{.*}})?) (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class SeenSpan:
    """What a span says that is not of a protocol, and its attributes."""

    name: str
    kind: str
    parent: str
    status: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Seen:
    """What operators see of one call; ids that were made in it are numbered.

    Attributes:
        audit: Lines of the audit log.
        access: The line of the access log.
        others: Level and event of all other lines.
        counts: By how much each counter has grown, by its name and labels as they are exposed.
        server: The span of the call.
        statements: The spans within it.
    """

    audit: list[Any]
    access: Mapping[str, Any]
    others: list[tuple[str, str]]
    counts: Mapping[str, float]
    server: SeenSpan
    statements: list[SeenSpan]


@dataclass(frozen=True)
class ObservedService:
    """A service behind a proxy under `AUDITED_POLICY`, with everything on that tells of its calls."""

    stub: Any
    http: HttpClient
    database: Database
    _metrics: str
    _spans: InMemorySpanExporter

    async def observe(self, call: Callable[[], Awaitable[Any]]) -> tuple[Any, Seen]:
        """What a call returns, or the error that it raises, and what is seen of it."""
        self._spans.clear()
        before = await self._counts()
        with capture_logs() as entries:
            try:
                result = await call()
            except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
                result = error
            await self._until_told(entries)
        assert "secret" not in repr(entries)
        after = await self._counts()
        grown = {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}
        return result, _seen([dict(entry) for entry in entries], grown, self._spans.get_finished_spans())

    async def _until_told(self, entries: list[Any]) -> None:
        """The caller may have its answer before the line and the span of the call are there."""
        async with asyncio.timeout(5):
            while not any(span.kind is SpanKind.SERVER for span in self._spans.get_finished_spans()):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert any(entry.get("log") == "access" for entry in entries)

    async def _counts(self) -> dict[str, float]:
        _, _, text = await http_get(self._metrics)
        return {match[1]: float(match[2]) for match in _COUNTER.finditer(text)}


@asynccontextmanager
async def observed_service(url: str, folder: Path) -> AsyncIterator[ObservedService]:
    """Runs a service on the database at ``url``, with its sockets in ``folder``."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("tests")

    @asynccontextmanager
    async def instrument(*, tracing: bool) -> AsyncIterator[Instrumentation]:
        assert tracing
        yield Instrumentation((Tracing(tracer),), (StatementTracing(tracer),), tracer)

    (folder / "policy.yaml").write_text(AUDITED_POLICY, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(instrumentation, "instrument", instrument)
        async with edge_service(url, **_settings(folder)) as served, _stub(served) as stub:
            database = served.served.store.database
            yield ObservedService(stub, served.http, database, str(served.served.metrics), exporter)
    provider.shutdown()


def _settings(folder: Path) -> dict[str, Any]:
    return {
        "listen": f"unix:{folder}/grpc",
        "http_listen": f"unix:{folder}/http",
        "metrics_listen": "127.0.0.1:0",
        "identity": "proxy",
        "policy_file": folder / "policy.yaml",
        "audit_permits": True,
        "access_log": True,
        "tracing": True,
    }


@asynccontextmanager
async def _stub(served: EdgeService) -> AsyncIterator[Any]:
    options = [("grpc.default_authority", "localhost")]
    async with grpc.aio.insecure_channel(served.served.address, options=options) as channel:
        yield ConversationsServiceStub(channel)


def _seen(entries: list[dict[str, Any]], grown: Mapping[str, float], spans: tuple[ReadableSpan, ...]) -> Seen:
    (access,) = [entry for entry in entries if entry.get("log") == "access"]
    (server,) = [span for span in spans if span.kind is SpanKind.SERVER]
    return Seen(
        audit=_numbered([_common(entry) for entry in entries if entry.get("log") == "audit"]),
        access=_common(access),
        others=[(entry["log_level"], entry["event"]) for entry in entries if "log" not in entry],
        counts=grown,
        server=_seen_span(server),
        statements=[_seen_span(span) for span in spans if span is not server],
    )


def _common(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in _OWN}


def _numbered(value: Any) -> Any:
    """JSON whose ids are replaced by numbers in the order in which they come."""
    numbers: dict[str, str] = {}
    text = json.dumps(value, sort_keys=True)
    return json.loads(_IDS.sub(lambda match: numbers.setdefault(match[0], f"id {len(numbers) + 1}"), text))


def _seen_span(span: ReadableSpan) -> SeenSpan:
    assert span.context
    parent = f"{span.parent.span_id:016x}" if span.parent and span.parent.is_remote else "own"
    return SeenSpan(span.name, span.kind.name, parent, span.status.status_code.name, dict(span.attributes or {}))
