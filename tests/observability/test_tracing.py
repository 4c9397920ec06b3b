"""Traces: what a collector is sent of calls and of what they wait for, and that nothing is when tracing is off."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from conversations.v1.conversations_service_pb2 import AppendItemsRequest
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from structlog.testing import capture_logs

from server import __version__
from server.app import instrumentation
from server.app.instrumentation import Instrumentation, TracingMissing
from server.identity import source_of
from server.identity.jwks_url import UrlKeys
from server.identity.jwt import Jwt
from server.interceptors.tracing import VALUES
from server.observability import otlp, trace_context
from server.observability.otlp import TracingConfigError
from server.settings.service import load
from server.store.connection import read_batching
from server.store.sql.statement import Statement
from tests.support.audit import BOB, audit_lines, audited_service
from tests.support.batching import held_statement, outcomes_behind
from tests.support.build import append, create, get, user_message
from tests.support.postgres import execute, fresh_database
from tests.support.problems import problem
from tests.support.service import Service, running_service

TRACE, PARENT = "a" * 32, "b" * 16
TRACEPARENT = ("traceparent", f"00-{TRACE}-{PARENT}-01")
NAME = "conversations.v1.ConversationsService/"
SECRETS = (b"secret-content", b"secret-value", b"secret-user")


def values(attributes: list[KeyValue]) -> dict[str, Any]:
    """Attributes as they are written."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in attributes}


@dataclass
class Collector:
    """What receives OTLP over HTTP on loopback."""

    bodies: list[bytes] = field(default_factory=list)
    delay: float = 0

    async def take(self, request: web.Request) -> web.Response:
        """Takes in what is sent."""
        await asyncio.sleep(self.delay)
        self.bodies.append(await request.read())
        return web.Response(content_type="application/x-protobuf")

    @property
    def requests(self) -> list[ExportTraceServiceRequest]:
        """What came."""
        return [ExportTraceServiceRequest.FromString(body) for body in self.bodies]

    @property
    def spans(self) -> list[Span]:
        """All spans, in the order of their beginning."""
        found = [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        return sorted(found, key=lambda span: span.start_time_unix_nano)

    def servers(self, method: str) -> list[Span]:
        """The spans of the calls of a method."""
        return [span for span in self.spans if span.kind == Span.SPAN_KIND_SERVER and span.name == NAME + method]

    def statements(self, *parents: Span) -> list[Span]:
        """The spans of statements, of these calls if there are any named."""
        of = {span.span_id for span in parents}
        found = [span for span in self.spans if span.kind == Span.SPAN_KIND_CLIENT]
        return [span for span in found if not parents or span.parent_span_id in of]


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    """A collector, to which the service is directed by OpenTelemetry's variables."""
    made = Collector()
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    async with http_server(web.post("/v1/traces", made.take)) as port:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        yield made


@asynccontextmanager
async def http_server(*routes: web.RouteDef) -> AsyncIterator[int]:
    """The port of a server on loopback."""
    application = web.Application()
    application.add_routes(routes)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


@pytest.fixture
async def url(postgres: str, template: str) -> AsyncIterator[str]:
    """A database."""
    async with fresh_database(postgres, template) as address:
        yield address


@asynccontextmanager
async def tracing_service(url: str, **settings: Any) -> AsyncIterator[Service]:
    """A service with tracing; when it has ended, all spans have been sent."""
    async with running_service(url, tracing=True, **settings) as service:
        yield service


def ids(span: Span) -> tuple[str, str, str]:
    """Of its trace, of its parent, of itself."""
    return span.trace_id.hex(), span.parent_span_id.hex(), span.span_id.hex()


def linked(span: Span) -> set[bytes]:
    """The spans that it has links to."""
    return {link.span_id for link in span.links}


# --- one call


async def test_a_call_and_its_statement(url: str, collector: Collector) -> None:
    """A call is a span in the caller's trace, its statement a span in the call's; nothing is told of the content."""
    sent = create(user_message("secret-content"), metadata={"key": "secret-value"})
    metadata = (TRACEPARENT, ("tracestate", "vendor=1"), ("baggage", "user=secret-user"))
    async with tracing_service(url) as service:
        await service.stub.CreateConversation(sent, metadata=metadata)
    (call,) = collector.servers("CreateConversation")
    (statement,) = collector.statements()
    assert (TRACE, PARENT) == ids(call)[:2]
    assert "vendor=1" == call.trace_state
    assert (TRACE, call.span_id.hex()) == ids(statement)[:2]
    assert call.start_time_unix_nano < statement.start_time_unix_nano
    assert statement.end_time_unix_nano < call.end_time_unix_nano
    assert {
        "rpc.system.name": "grpc",
        "rpc.method": NAME + "CreateConversation",
        "rpc.response.status_code": "OK",
    } == values(list(call.attributes))
    summary = "INSERT conversations items"
    assert summary == statement.name
    assert {"db.system.name": "postgresql", "db.query.summary": summary} == values(list(statement.attributes))
    assert [Status.STATUS_CODE_UNSET] * 2 == [call.status.code, statement.status.code]
    assert [] == [secret for secret in SECRETS for body in collector.bodies if secret in body]


async def test_who_sends(url: str, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans say which service they are of; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have the last word."""
    async with tracing_service(url) as service:
        await service.stub.CreateConversation(create())
    monkeypatch.setenv("OTEL_SERVICE_NAME", "other")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    async with tracing_service(url) as service:
        await service.stub.CreateConversation(create())
    first, second = (values(list(request.resource_spans[0].resource.attributes)) for request in collector.requests)
    assert ("conversation-service", __version__) == (first["service.name"], first["service.version"])
    assert ("other", "test") == (second["service.name"], second["deployment.environment.name"])


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param((), id="none"),
        pytest.param((("traceparent", "00-secret"),), id="malformed"),
    ],
)
async def test_a_trace_of_its_own(url: str, collector: Collector, sent: Any) -> None:
    """A call without a parent begins a trace."""
    async with tracing_service(url) as service:
        await service.stub.CreateConversation(create(), metadata=sent)
    call, statement = collector.spans
    assert b"" == call.parent_span_id
    assert call.trace_id == statement.trace_id
    assert TRACE != call.trace_id.hex()


def test_several_parents() -> None:
    """Of several parents none is taken, whatever gRPC makes of repeated metadata: its core passes on one now."""
    metadata = (TRACEPARENT, ("tracestate", "a=1"), ("tracestate", "b=2"), ("binary-bin", b""))
    assert [TRACEPARENT[1]] == VALUES.get(metadata, "traceparent")
    assert ["a=1", "b=2"] == VALUES.get(metadata, "tracestate")
    assert None is VALUES.get((*metadata, TRACEPARENT), "traceparent")
    assert None is VALUES.get(metadata, "baggage")


async def test_the_caller_decides(url: str, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace that the caller does not keep is not sent, unless the sampler of OTEL_TRACES_SAMPLER wants it."""
    unkept = (("traceparent", f"00-{TRACE}-{PARENT}-00"),)
    async with tracing_service(url) as service:
        await service.stub.CreateConversation(create(), metadata=unkept)
    assert [] == collector.spans
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    async with tracing_service(url) as service:
        await service.stub.CreateConversation(create(), metadata=unkept)
    assert 2 == len(collector.spans)


async def test_codes(url: str, collector: Collector) -> None:
    """What the caller did wrong is no error of the server; what the server did is, with the code the caller gets."""
    async with tracing_service(url) as service:
        stub = service.stub
        assert "NOT_FOUND" == (await problem(stub.GetConversation(get("conv_none")))).code
        assert "INVALID_ARGUMENT" == (await problem(stub.GetConversation(get("none")))).code
        assert 0 < service.database.answered
        await execute(url, "ALTER TABLE conversations RENAME TO gone")
        assert "INTERNAL" == (await problem(stub.GetConversation(get("conv_none")))).code
    calls = collector.servers("GetConversation")
    told = [values(list(call.attributes)) for call in calls]
    assert ["NOT_FOUND", "INVALID_ARGUMENT", "INTERNAL"] == [each["rpc.response.status_code"] for each in told]
    assert [None, None, "INTERNAL"] == [each.get("error.type") for each in told]
    unset, error = Status.STATUS_CODE_UNSET, Status.STATUS_CODE_ERROR
    assert [unset, unset, error] == [call.status.code for call in calls]
    (statement,) = collector.statements(calls[2])
    assert ("42P01", "42P01") == tuple(
        values(list(statement.attributes))[name] for name in ("db.response.status_code", "error.type")
    )
    assert (error, "") == (statement.status.code, statement.status.message)


@pytest.mark.parametrize("of", ["the caller", "the server"])
async def test_a_deadline(url: str, collector: Collector, of: str) -> None:
    """A call that runs out of time is an error, be it the caller's time or the server's; so is its statement."""
    limit = {} if of == "the caller" else {"default_deadline_seconds": 0.3}
    async with tracing_service(url, **limit) as service:
        made = await service.stub.CreateConversation(create())
        lock = await service.database.pool.acquire()
        async with lock.transaction():
            await lock.execute("LOCK TABLE conversations")
            call = service.stub.GetConversation(get(made.id), timeout=None if limit else 0.3)
            assert "DEADLINE_EXCEEDED" == (await problem(call)).code
        await service.database.pool.release(lock)
    (late,) = collector.servers("GetConversation")
    assert "DEADLINE_EXCEEDED" == values(list(late.attributes))["rpc.response.status_code"]
    assert Status.STATUS_CODE_ERROR == late.status.code
    (statement,) = collector.statements(late)
    assert "CancelledError" == values(list(statement.attributes))["error.type"]


async def test_a_caller_that_goes(url: str, collector: Collector) -> None:
    """A cancelled call is no error of the server."""
    async with tracing_service(url) as service:
        made = await service.stub.CreateConversation(create())
        lock = await service.database.pool.acquire()
        async with lock.transaction():
            await lock.execute("LOCK TABLE conversations")
            asked = service.stub.GetConversation(get(made.id))
            await asyncio.sleep(0.3)
            asked.cancel()
            await asyncio.sleep(0.2)
        await service.database.pool.release(lock)
    (call,) = collector.servers("GetConversation")
    assert "CANCELLED" == values(list(call.attributes))["rpc.response.status_code"]
    assert Status.STATUS_CODE_UNSET == call.status.code


async def test_health_leaves_no_span(url: str, collector: Collector) -> None:
    """Neither do probes, nor statements that no call asked for."""
    async with tracing_service(url) as service:
        await health_pb2_grpc.HealthStub(service.channel).Check(health_pb2.HealthCheckRequest())
        assert "" == await service.database.probe()
        await service.database.fetch(Statement("SELECT 1", (), "read"), {})
    assert [] == collector.spans


# --- shared statements


async def test_shared_reads(url: str, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round trip for several calls is in the trace of one, with links to the others and from them."""
    # On a busy machine calls arrive one by one: they gather for longer, and behind one that is held.
    monkeypatch.setattr(read_batching, "GATHER_TICKS", 1000)
    async with tracing_service(url) as service:
        made = [await service.stub.CreateConversation(create()) for _ in range(12)]
        async with held_statement(service.database) as line:
            first = asyncio.ensure_future(service.stub.GetConversation(get(made[0].id)))
            await line.started.wait()
            got = await asyncio.gather(*(service.stub.GetConversation(get(each.id)) for each in made[1:]))
            line.release.set()
            got = [await first, *got]
        assert [each.id for each in made] == [each.id for each in got]
    calls = collector.servers("GetConversation")
    reads = [span for span in collector.statements() if span.parent_span_id in {call.span_id for call in calls}]
    shared = [span for span in reads if "db.operation.batch.size" in values(list(span.attributes))]
    assert shared
    assert_shared(calls, reads)
    sizes = [values(list(span.attributes))["db.operation.batch.size"] for span in shared]
    assert [1 + len(span.links) for span in shared] == sizes


def assert_shared(calls: list[Span], statements: list[Span]) -> None:
    """Each call is the parent of one of the statements, or linked with one, both ways."""
    children = [span.parent_span_id for span in statements]
    of_links = [each for span in statements for each in linked(span)]
    assert sorted(call.span_id for call in calls) == sorted([*children, *of_links])
    by_id = {call.span_id: call for call in calls}
    for span in statements:
        assert by_id[span.parent_span_id].trace_id == span.trace_id
        for link in span.links:
            assert by_id[link.span_id].trace_id == link.trace_id
            assert {span.span_id} == linked(by_id[link.span_id])
            assert {span.trace_id} == {back.trace_id for back in by_id[link.span_id].links}


async def test_shared_appends(url: str, collector: Collector) -> None:
    """Likewise for appends; what is placed alone afterwards is in the trace of its own call."""
    async with tracing_service(url) as service:
        made = [await service.stub.CreateConversation(create()) for _ in range(6)]
        requests = [append(each.id, user_message()) for each in made]
        answers, texts = await outcomes_behind(
            service, *(lambda each=each: service.stub.CreateItems(each) for each in requests)
        )
        assert (6, 1) == (len(answers), len(texts))
        await service.stub.CreateItems(requests[0])  # it queues: the last statement was for several
        await service.stub.CreateItems(requests[0])
    first, *together, last, latest = collector.servers("CreateItems")
    assert 6 == len(together)
    appends = [span for span in collector.statements() if "UPDATE conversations" in span.name]
    shared = [span for span in appends if span.links]
    assert 1 == len(shared)
    assert_shared(together, shared)
    for call in (first, last, latest):
        (alone,) = collector.statements(call)
        assert (call.trace_id, set()) == (alone.trace_id, linked(alone))


async def test_a_bad_append(url: str, collector: Collector) -> None:
    """Appends that have to be tried one by one are tried in their own traces."""
    async with tracing_service(url) as service:
        made = await service.stub.CreateConversation(create(user_message(id="msg_taken")))
        other = await service.stub.CreateConversation(create())
        requests = [append(made.id, user_message(id="msg_taken")), append(other.id, user_message())]
        answers, _ = await outcomes_behind(
            service, *(lambda each=each: service.stub.CreateItems(each) for each in requests)
        )
        assert "ALREADY_EXISTS" == answers[0].code
    _, bad, good = collector.servers("CreateItems")
    (undone,) = [span for span in collector.statements() if span.links]
    assert "23505" == values(list(undone.attributes))["error.type"]
    for call in (bad, good):
        alone = [span for span in collector.statements(call) if not span.links]
        assert alone
        assert {call.trace_id} == {span.trace_id for span in alone}


async def test_a_stream(url: str, collector: Collector) -> None:
    """A stream is one span, and its statements are in its trace."""
    async with tracing_service(url) as service:
        made = await service.stub.CreateConversation(create())
        sent = [AppendItemsRequest(conversation_id=made.id, items=[user_message()]) for _ in range(20)]
        assert 20 == len([answer async for answer in service.stub.AppendItems(iter(sent))])
    (call,) = collector.servers("AppendItems")
    statements = collector.statements(call)
    assert statements
    assert [set()] * len(statements) == [linked(span) for span in statements]


# --- logs


async def test_the_log_has_the_trace(url: str, collector: Collector) -> None:
    """Audit lines name the trace that the collector gets, begun here or by the caller."""
    async with audited_service(url, tracing=True) as channel:
        for who in (BOB, (*BOB, TRACEPARENT)):
            _, (line,) = await audit_lines(channel, "GetConversation", get("conv_none"), who)
            assert 32 == len(line["trace"])
            last = line["trace"]
        assert TRACE == last
        with capture_logs() as logs:
            await problem(ConversationsServiceStub(channel).GetConversation(get("conv_none"), metadata=BOB))
    named = {line["trace"] for line in logs if line.get("log") == "audit"}
    assert named < {span.trace_id.hex() for span in collector.servers("GetConversation")}


def test_fields_of_a_line() -> None:
    """A line of a call has its trace and its span; others have neither."""

    async def within(trace: str, span: str) -> dict[str, str]:
        trace_context.current_trace.set(trace)
        trace_context.current_span.set(span)
        return trace_context.trace_fields()

    assert {} == asyncio.run(within("", ""))
    assert {"trace": TRACE} == asyncio.run(within(TRACE, ""))
    assert {"trace": TRACE, "span": PARENT} == asyncio.run(within(TRACE, PARENT))


# --- what the service asks of others


async def test_keys_are_fetched_in_a_trace(collector: Collector) -> None:
    """The issuer is told the trace of a fetch, and nothing of the caller's baggage."""
    asked: list[dict[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(dict(request.headers))
        return web.Response(body=b'{"keys": []}', status=200 if len(asked) == 1 else 503)

    async with http_server(web.get("/jwks", answer)) as port, instrumentation.instrument(tracing=True) as parts:
        place = f"http://127.0.0.1:{port}/jwks?key=secret-value"
        settings = load(identity="jwt", jwt_issuer="i", jwt_audience="a", jwt_jwks=place)
        async with source_of(settings, parts.tracer) as source:
            assert isinstance(source, Jwt)
            assert isinstance(source._keys, UrlKeys)
            await source._keys.refresh()
    first, second = collector.spans
    for span, headers in ((first, asked[0]), (second, asked[1])):
        assert f"00-{span.trace_id.hex()}-{span.span_id.hex()}-" == headers["traceparent"][:-2]
        assert "baggage" not in headers
        assert ("GET", Span.SPAN_KIND_CLIENT) == (span.name, span.kind)
    expected = {
        "http.request.method": "GET",
        "url.full": f"http://127.0.0.1:{port}/jwks",
        "server.address": "127.0.0.1",
        "server.port": port,
        "http.response.status_code": 200,
    }
    assert expected == values(list(first.attributes))
    assert expected | {"http.response.status_code": 503, "error.type": "503"} == values(list(second.attributes))
    assert [Status.STATUS_CODE_UNSET, Status.STATUS_CODE_ERROR] == [first.status.code, second.status.code]


# --- collectors that fail


async def test_without_a_collector(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are served, and the service ends, when nobody listens where spans are sent."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    async with tracing_service(url) as service:
        for _ in range(20):
            await service.stub.CreateConversation(create())
            await asyncio.sleep(0.01)
        began = time.monotonic()
    assert time.monotonic() - began < 5


async def test_a_collector_that_does_not_answer(
    url: str, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the service waits for it only so long, and says so."""
    collector.delay = 8
    monkeypatch.setattr(otlp, "_FLUSH_SECONDS", 0.5)
    with capture_logs() as logs:
        async with tracing_service(url) as service:
            await service.stub.CreateConversation(create())
            began = time.monotonic()
    assert time.monotonic() - began < 3
    assert ["spans were not sent"] == [line["event"] for line in logs if line["log_level"] == "warning"]


async def test_traces_without_a_collector(url: str, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """With OTEL_TRACES_EXPORTER=none nothing is sent, and the log still has traces."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    async with audited_service(url, tracing=True) as channel:
        _, (line,) = await audit_lines(channel, "GetConversation", get("conv_none"), BOB)
    assert 32 == len(line["trace"])
    assert [] == collector.bodies


# --- settings


@pytest.mark.parametrize(
    "name, value",
    [
        ("OTEL_TRACES_EXPORTER", "console"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
    ],
)
async def test_what_there_is_not(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A variable that asks for another way of sending is refused, not ignored."""
    monkeypatch.setenv(name, value)
    with pytest.raises(TracingConfigError, match=name):
        await instrumentation.instrument(tracing=True).__aenter__()


@pytest.mark.parametrize("package", ["opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"])
async def test_the_extra_is_missing(url: str, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """The start ends with the name of the setting and of the extra."""
    for name in [name for name in sys.modules if name.startswith((package, "server.observability.otlp"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(TracingMissing, match=r"CONVERSATIONS_TRACING.*otlp") as caught:
        async with tracing_service(url):
            pass
    assert package in str(caught.value)


PROGRAM = """
import asyncio, sys
import grpc.aio
from conversations.v1 import conversations_service_pb2 as pb
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from server.app.service import run_service
from server.settings.service import load

async def main():
    async with run_service(load(listen="127.0.0.1:0", purge_every_minutes=0, grace_seconds=1)) as served:
        async with grpc.aio.insecure_channel(served.address) as channel:
            traced = (("traceparent", f"00-{'a' * 32}-{'b' * 16}-01"),)
            await ConversationsServiceStub(channel).CreateConversation(pb.CreateConversationRequest(), metadata=traced)
        print(sorted(name for name in sys.modules if name.startswith("opentelemetry.")))

asyncio.run(main())
"""


@pytest.mark.parametrize("on", [False, True])
async def test_off(url: str, collector: Collector, on: bool) -> None:  # noqa: FBT001
    """Off, nothing is sent and nothing of OpenTelemetry is imported; the same program with it on shows both."""
    environment = os.environ | {"CONVERSATIONS_DATABASE_URL": url, "CONVERSATIONS_TRACING": str(on)}
    command = (sys.executable, "-c", PROGRAM)
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert 0 == process.returncode
    imported = output.decode().splitlines()[-1]
    if on:
        assert "opentelemetry.sdk.trace" in imported
        assert 2 == len(collector.spans)
    else:
        assert ("[]", []) == (imported, collector.bodies)


async def test_the_parts_without_tracing() -> None:
    """Off, the chain has no more links, and the store is the plain one."""
    async with instrumentation.instrument(tracing=False) as parts:
        assert Instrumentation((), (), None) == parts
