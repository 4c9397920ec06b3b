"""Metrics, lines and spans of requests in the words of HTTP; `test_both_protocols` compares them with those of gRPC."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server.app import instrumentation
from server.app.instrumentation import Instrumentation
from server.interceptors.tracing import Tracing
from server.observability import access_log, logs
from tests.support.http import CONVERSATIONS, HttpClient, edge_service
from tests.support.metrics import scrape
from tests.support.service import Service

HELLO = {"role": "user", "content": "hello"}
TRACE = "a" * 32


async def test_metrics(service: Service) -> None:
    """Requests are counted by method, route and status, and what a caller made up is no label."""
    async with edge_service(service.url, metrics_listen="127.0.0.1:0") as served:
        path = await served.http.create(HELLO)
        await served.http.get(f"{path}/items?limit=0")
        await served.http.get("/made/up")
        await served.http.call("PURGE", CONVERSATIONS)
        await served.http.get(CONVERSATIONS, Origin="https://evil.example")
        found = await scrape(str(served.served.metrics))
        for verb, route, status in (
            ("POST", "/v1/conversations", "200"),
            ("GET", "/v1/conversations/{conversation_id}/items", "400"),
            ("GET", "", "404"),
            ("_OTHER", "", "405"),
            ("GET", "/v1/conversations", "403"),
        ):
            labels = {"http_request_method": verb, "http_route": route, "http_response_status_code": status}
            assert 1 == found.value("http_server_request_duration_seconds_count", **labels), labels
        assert 1 <= found.value("conversations_http_connections")
        assert 1000 == found.value("conversations_http_connections_limit")
        assert 0 == found.value("conversations_http_connection_refusals_total")
        assert not {"PURGE", "/made/up", path} & found.labels()
        created = {"grpc_method": "CreateConversation"}
        assert 0 == found.value("grpc_server_started_total", **created)


async def test_the_access_log_as_json(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line is one JSON object with the protocol, the status and the trace of the answer; nothing of a query."""
    monkeypatch.setattr(logs, "is_json", lambda: True)
    monkeypatch.setattr(access_log, "_FLUSH_SECONDS", 0.001)
    async with edge_service(service.url, access_log=True) as served:
        answer = await served.http.get(f"{CONVERSATIONS}/conv_1/items?after=secret", **{"x-stainless-retry-count": "2"})
        await asyncio.sleep(0.05)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if '"log": "access"' in line]
    (line,) = lines
    expected = {"protocol": "http", "status": 404, "code": "NOT_FOUND", "principal": "local", "log": "access"}
    assert expected == {name: line[name] for name in expected}
    assert answer.headers["x-request-id"] == f"req_{line['trace']}"
    assert "secret" not in json.dumps(lines)
    assert line.get("retry", 2) == 2


async def test_the_id_of_a_request(http: HttpClient) -> None:
    """It is the caller's trace, or a new one."""
    traced = await http.get(CONVERSATIONS, traceparent=f"00-{TRACE}-{'b' * 16}-01")
    assert f"req_{TRACE}" == traced.headers["x-request-id"]
    ids = {(await http.get(path)).headers["x-request-id"] for path in (CONVERSATIONS, CONVERSATIONS, "/nothing")}
    assert 3 == len(ids)
    assert all(len(each) == 36 for each in ids)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """The spans of services that are started meanwhile."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("tests")

    @asynccontextmanager
    async def instrument(*, tracing: bool) -> AsyncIterator[Instrumentation]:
        yield Instrumentation((Tracing(tracer),), (), tracer)

    monkeypatch.setattr(instrumentation, "instrument", instrument)
    yield exporter
    provider.shutdown()


async def test_spans(service: Service, spans: InMemorySpanExporter) -> None:
    """A call has one span by the conventions of HTTP servers, in the caller's trace; its id is that of the answer."""
    async with edge_service(service.url) as served:
        for path, status in ((CONVERSATIONS, 200), (f"{CONVERSATIONS}/conv_1", 404)):
            spans.clear()
            answer = await served.http.get(path, traceparent=f"00-{TRACE}-{'b' * 16}-01")
            (span,) = spans.get_finished_spans()
            route = path.replace("conv_1", "{conversation_id}")
            assert f"GET {route}" == span.name
            assert {"http.request.method": "GET", "http.route": route, "http.response.status_code": status} == dict(
                span.attributes or {}
            )
            assert (status, f"req_{TRACE}") == (answer.status, answer.headers["x-request-id"])
            assert TRACE == f"{span.context.trace_id:032x}" if span.context else False
        spans.clear()
        await served.http.get("/healthz")
        assert () == spans.get_finished_spans()


async def test_limits_are_shared(service: Service) -> None:
    """Calls of both protocols count together, and one beyond the limit is told to come again."""
    async with edge_service(service.url, max_calls=1) as served:
        answers = await asyncio.gather(*(served.http.post(CONVERSATIONS, {}) for _ in range(30)))
        statuses = {answer.status for answer in answers}
        assert {200} <= statuses <= {200, 429}
        for refused in (answer for answer in answers if answer.status == 429):
            assert "rate_limit_exceeded" == refused.error[1]
            assert ("true", "100") == (refused.headers["x-should-retry"], refused.headers["retry-after-ms"])
