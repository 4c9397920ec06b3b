"""Metrics: what a scrape of a running service says, and that it says nothing of who calls."""

import asyncio
import math
import platform
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import asyncpg
import grpc
import grpc.aio
import pytest
from conversations.v1 import conversations_service_pb2 as pb
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from conversations.v1.erasure_service_pb2 import EraseSubjectRequest
from conversations.v1.erasure_service_pb2_grpc import ErasureServiceStub
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from server.errors import StartFailed
from server.identity import jwks_url
from server.observability import stats
from server.observability.histogram import Histogram
from tests.support.build import append, create, delete, get, update, user_message
from tests.support.metrics import MeasuredService, Scrape, fully_measured_service, http_get, measured_service
from tests.support.postgres import fetch, fresh_database, row_locked
from tests.support.problems import problem
from tests.support.service import Service

SERVICE = "conversations.v1.ConversationsService"
Labels = Mapping[str, str]


@pytest.fixture
async def service_(service: Service) -> AsyncIterator[MeasuredService]:
    """A service that has counted nothing yet."""
    async with measured_service(service.url) as found:
        yield found


async def until(service: MeasuredService, holds: Callable[[Scrape], bool]) -> None:
    """Scrapes until something holds."""
    async with asyncio.timeout(10):
        while not holds(await service.scrape()):  # noqa: ASYNC110 - it may change at any time
            await asyncio.sleep(0.05)


async def test_calls_by_method_and_code(service_: MeasuredService) -> None:
    """Calls count with the code the caller got, under the names that boards know; before the first there are zeros."""
    before = await service_.scrape()
    own = {"grpc_type": "unary", "grpc_service": SERVICE, "grpc_method": "GetConversation"}
    assert 0 == before.value("grpc_server_handled_total", **own, grpc_code="OK")
    made = await service_.stub.CreateConversation(create())
    for name in (made.id, made.id, "conv_none", "x"):
        try:
            await service_.stub.GetConversation(get(name))
        except grpc.aio.AioRpcError:
            continue
    after = await service_.scrape()
    codes = {code: after.value("grpc_server_handled_total", **own, grpc_code=code) for code in ("OK", "NOT_FOUND")}
    assert {"OK": 2, "NOT_FOUND": 1} == codes
    assert 1 == after.value("grpc_server_handled_total", **own, grpc_code="INVALID_ARGUMENT")
    assert 4 == after.value("grpc_server_started_total", **own)
    assert 4 == after.value("grpc_server_msg_received_total", **own)
    assert 2 == after.value("grpc_server_msg_sent_total", **own)
    assert 4 == after.value("grpc_server_handling_seconds_count", **own)
    assert 4 == after.value("grpc_server_handling_seconds_bucket", **own, le="+Inf")
    assert 0 < after.value("grpc_server_handling_seconds_sum", **own) < 60


async def test_watches(service_: MeasuredService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes count by kind, items behind the first message with their age, and callers that do not take a message."""
    monkeypatch.setattr(stats, "STALLED_SECONDS", 0.05)
    made = await service_.stub.CreateConversation(create(user_message()))
    call = service_.stub.WatchItems(pb.WatchItemsRequest(conversation_id=made.id, after_sequence=0))
    await call.read()
    await service_.stub.CreateItems(append(made.id, user_message(), user_message()))
    await call.read()
    after = await service_.scrape()
    kinds = {kind: after.value("conversations_watch_changes_total", kind=kind) for kind in ("conversation", "item")}
    assert {"conversation": 1, "item": 3} == kinds
    assert 2 == after.value("conversations_watch_delay_seconds_count")
    assert 0 < after.value("conversations_watch_delay_seconds_sum") < 10
    assert 1 == after.value("conversations_watched_conversations")
    for _ in range(80):  # more than gRPC takes while the caller reads nothing
        large = user_message("x" * 200_000)
        await service_.stub.CreateItems(append(made.id, large))
    await until(service_, lambda scrape: scrape.value("conversations_watch_stalled") == 1)
    call.cancel()
    await until(service_, lambda scrape: scrape.value("conversations_watch_stalled") == 0)


async def test_a_method_that_is_not_served(service_: MeasuredService) -> None:
    """Names that callers make up are counted as one, and become no label."""
    for name in ("/made.Up/One", "/conversations.v1.ConversationsService/Two"):
        call: Any = service_.channel.unary_unary(name)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"")
        assert grpc.StatusCode.UNIMPLEMENTED is caught.value.code()
    scrape = await service_.scrape()
    own = {"grpc_type": "unary", "grpc_service": "unknown", "grpc_method": "unknown"}
    assert 2 == scrape.value("grpc_server_handled_total", **own, grpc_code="UNIMPLEMENTED")
    assert 2 == scrape.value("grpc_server_started_total", **own)
    assert set() == scrape.labels() & {"made.Up", "One", "Two"}


async def test_streams(service_: MeasuredService) -> None:
    """Messages of a stream count one by one, and the stream as running until it ends."""
    made = await service_.stub.CreateConversation(create())
    call = service_.stub.AppendItems()
    for number in range(3):
        name = "" if number else made.id
        await call.write(pb.AppendItemsRequest(conversation_id=name, items=append(made.id, user_message("a")).items))
        await call.read()
    assert 1 == (await service_.scrape()).value("conversations_streams_running")
    await call.done_writing()
    assert grpc.StatusCode.OK is await call.code()
    scrape = await service_.scrape()
    own = {"grpc_type": "bidi_stream", "grpc_service": SERVICE, "grpc_method": "AppendItems"}
    assert 3 == scrape.value("grpc_server_msg_received_total", **own)
    assert 3 == scrape.value("grpc_server_msg_sent_total", **own)
    assert 1 == scrape.value("grpc_server_handled_total", **own, grpc_code="OK")
    assert 0 == scrape.value("conversations_streams_running")
    assert 3 == scrape.value("conversations_items_appended_total") == scrape.value("conversations_appends_total")


async def test_what_a_caller_cancels(service_: MeasuredService) -> None:
    """A stream that its caller leaves ends as CANCELLED."""
    call = service_.stub.AppendItems()
    await call.write(append("conv_none", user_message("a")))
    call.cancel()
    own = {"grpc_method": "AppendItems", "grpc_code": "CANCELLED"}
    await until(service_, lambda scrape: "CANCELLED" in scrape.labels())
    assert 1 == (await service_.scrape()).value("grpc_server_handled_total", **own)


async def test_health_counts(service_: MeasuredService) -> None:
    """Health is counted like any other method that is served."""
    await HealthStub(service_.channel).Check(HealthCheckRequest())
    own = {"grpc_service": "grpc.health.v1.Health", "grpc_method": "Check", "grpc_code": "OK"}
    assert 1 == (await service_.scrape()).value("grpc_server_handled_total", **own)


async def test_nobody_is_named(service: Service, tmp_path: Any) -> None:
    """No principal, tenant, attribute or id is in a scrape."""
    listen = f"unix:{tmp_path}/s"
    async with measured_service(service.url, listen=listen, identity="proxy") as found:
        who = (("x-principal", "secret-alice"), ("x-tenant", "secret-acme"), ("x-attributes", "teams=secret-red"))
        options = [("grpc.default_authority", "localhost")]
        async with grpc.aio.insecure_channel(listen, options=options) as channel:
            made = await ConversationsServiceStub(channel).CreateConversation(
                create(metadata={"secret-key": "v"}), metadata=who
            )
        _, _, text = await http_get(found.metrics)
    assert "secret" not in text
    assert made.id not in text


async def test_statements_by_kind(service_: MeasuredService) -> None:
    """Statements are timed as reads, appends and writes; the pool says how large it is."""
    before = await service_.scrape()
    made = await service_.stub.CreateConversation(create())
    await service_.stub.CreateItems(append(made.id, user_message("a"), user_message("b")))
    await service_.stub.GetConversation(get(made.id))
    await service_.stub.DeleteConversation(delete(made.id))
    after = await service_.scrape()
    name = "conversations_statement_seconds_count"
    grown = {kind: after.value(name, kind=kind) - before.value(name, kind=kind) for kind in ("read", "append", "write")}
    assert {"read": 1, "append": 1, "write": 2} == grown
    assert 2 == after.value("conversations_items_appended_total")
    assert (10, 0, 0) == tuple(after.value(f"conversations_pool_{name}") for name in ("size", "in_use", "waiting"))
    assert 1 <= after.value("conversations_pool_open") <= 10


async def repeat_until_shared(
    service: MeasuredService, what: str, calls: Callable[[], list[Awaitable[Any]]]
) -> tuple[int, Scrape]:
    """Makes calls at once until some have shared: on a busy machine they may come one by one. How many there were."""
    count = 0
    async with asyncio.timeout(20):
        while True:
            made = calls()
            count += len(made)
            await asyncio.gather(*made)
            scrape = await service.scrape()
            if scrape.value(f"conversations_shared_{what}_count"):
                return count, scrape


def assert_shared(scrape: Scrape, what: str, count: int) -> None:
    """Two calls or more shared each time, and none is counted twice."""
    shared, times = (scrape.value(f"conversations_shared_{what}_{part}") for part in ("sum", "count"))
    assert 2 * times <= shared <= count


async def test_reads_that_share_a_round_trip(service_: MeasuredService) -> None:
    """Reads at the same moment are fewer round trips, and the scrape says how many."""
    made = await service_.stub.CreateConversation(create())
    count, scrape = await repeat_until_shared(
        service_, "reads", lambda: [service_.stub.GetConversation(get(made.id)) for _ in range(40)]
    )
    assert count == scrape.value("conversations_reads_total")
    assert_shared(scrape, "reads", count)


async def test_appends_that_share_a_statement(service_: MeasuredService) -> None:
    """Appends to several conversations at once are fewer statements."""
    made = await asyncio.gather(*(service_.stub.CreateConversation(create()) for _ in range(20)))
    count, scrape = await repeat_until_shared(
        service_, "appends", lambda: [service_.stub.CreateItems(append(each.id, user_message("a"))) for each in made]
    )
    assert count == scrape.value("conversations_appends_total") == scrape.value("conversations_items_appended_total")
    assert_shared(scrape, "appends", count)


async def test_creates_that_share_a_statement(service_: MeasuredService) -> None:
    """Creates at once are fewer statements; each is counted, with its items."""
    request = create(user_message("a"), user_message("b"))
    count, scrape = await repeat_until_shared(
        service_, "creates", lambda: [service_.stub.CreateConversation(request) for _ in range(20)]
    )
    assert count == scrape.value("conversations_creates_total")
    assert 2 * count == scrape.value("conversations_items_appended_total")
    assert_shared(scrape, "creates", count)


async def test_waits_and_failures_of_statements(service: Service) -> None:
    """A full pool shows as statements that wait, as their wait and as refusals; a locked row as a timeout."""
    async with measured_service(service.url, pool_size=1) as found:
        made = await found.stub.CreateConversation(create())
        connection = await asyncpg.connect(service.url)
        async with connection.transaction():
            await connection.execute("SELECT FROM conversations WHERE id = $1 FOR UPDATE", made.id)
            locked = asyncio.create_task(problem(found.stub.CreateItems(append(made.id, user_message("a")))))
            await asyncio.sleep(0.2)
            waiting = asyncio.create_task(problem(found.stub.GetConversation(get(made.id))))
            await asyncio.sleep(0.2)
            during = await found.scrape()
            assert "UNAVAILABLE" == (await waiting).code
            assert "DEADLINE_EXCEEDED" == (await locked).code
        await connection.close()
        scrape = await found.scrape()
    assert (1, 1) == tuple(during.value(f"conversations_pool_{name}") for name in ("in_use", "waiting"))
    failures = {
        reason: scrape.value("conversations_statement_failures_total", reason=reason)
        for reason in ("pool", "timeout", "race", "connection")
    }
    assert {"pool": 1, "timeout": 1, "race": 0, "connection": 0} == failures
    assert 0.9 < scrape.value("conversations_pool_wait_seconds_sum") < 3


async def test_lost_connections_are_counted_with_their_retries(service: Service) -> None:
    """A statement that loses its connection is a failure and, repeated, a retry."""
    end = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with measured_service(service.url) as found:
        made = await found.stub.CreateConversation(create())
        async with row_locked(service.url, made.id):
            update_call = found.stub.UpdateConversation(update(made.id, "metadata", request_id=str(uuid4())))
            while not await fetch(service.url, end):  # noqa: ASYNC110 - the database tells nobody
                await asyncio.sleep(0.02)
        await update_call
        scrape = await found.scrape()
    lost = scrape.value("conversations_statement_failures_total", reason="connection")
    assert 1 == lost == scrape.value("conversations_statement_retries_total")


async def test_refusals_for_capacity(service: Service) -> None:
    """Calls beyond the limit are counted, and the limit is there to be compared with."""
    async with measured_service(service.url, max_calls=1) as found:
        made = await found.stub.CreateConversation(create())
        connection = await asyncpg.connect(service.url)
        async with connection.transaction():
            await connection.execute("LOCK TABLE conversations")  # so that the first call still runs when others come
            calls = [asyncio.create_task(found.stub.GetConversation(get(made.id)).code()) for _ in range(30)]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        codes = [code.name for code in await asyncio.gather(*calls)]
        await connection.close()
        scrape = await found.scrape()
    assert 1 == scrape.value("conversations_calls_limit")
    assert codes.count("RESOURCE_EXHAUSTED") == scrape.value("conversations_capacity_refusals_total", of="calls") > 0


async def test_readiness_and_policy(service: Service, tmp_path: Any) -> None:
    """A broken policy shows as refused and stale until it is mended."""
    policy = tmp_path / "policy.yaml"
    policy.write_text("- permit: {actions: [create, read, update, delete, share]}\n")
    async with measured_service(service.url, policy_file=policy) as found:
        assert (1, 0) == tuple(
            [(await found.scrape()).value(f"conversations_{name}") for name in ("ready", "draining")]
        )
        began = (await found.scrape()).value("conversations_policy_loaded_timestamp_seconds")
        policy.write_text("- permit: {actions: [fly]}\n")
        await until(found, lambda scrape: scrape.value("conversations_policy_stale") == 1)
        assert 1 == (await found.scrape()).value("conversations_policy_reloads_total", outcome="refused")
        policy.write_text("- permit: {actions: [read]}\n- permit: {actions: [create]}\n")
        await until(found, lambda scrape: scrape.value("conversations_policy_stale") == 0)
        scrape = await found.scrape()
    assert (1, 2) == (
        scrape.value("conversations_policy_reloads_total", outcome="loaded"),
        scrape.value("conversations_policy_rules"),
    )
    assert began < scrape.value("conversations_policy_loaded_timestamp_seconds")


async def test_erasures(own_service: Service) -> None:
    """An erasure shows with what it removed."""
    async with measured_service(own_service.url) as found:
        await found.stub.CreateConversation(create(user_message()))
        stub: Any = ErasureServiceStub(found.channel)
        async for _ in stub.EraseSubject(EraseSubjectRequest(principal="local", request_id=str(uuid4()))):
            pass
        scrape = await found.scrape()
    rows = {kind: scrape.value("conversations_erasure_rows_total", kind=kind) for kind in ("conversations", "items")}
    assert {"conversations": 1, "items": 1} == rows
    assert 1 == scrape.value("conversations_erasures_total", outcome="done")
    assert 0 == scrape.value("conversations_erasures_running")


async def test_the_queue_of_activity(postgres: str, template: str) -> None:
    """The queue shows with the age of its oldest row; nothing is shown where the order is turned off."""
    async with fresh_database(postgres, template) as url:
        async with measured_service(url) as found:  # the only one, which works on the queue each second
            made = await found.stub.CreateConversation(create())
            async with row_locked(url, made.id):
                since = "now() - interval '1 h'"
                await fetch(url, f"INSERT INTO pending VALUES ('{made.id}', {since}), ('conv_gone', now())")
                await until(found, lambda scrape: scrape.value("conversations_pending") == 1)
                assert 3600 <= (await found.scrape()).value("conversations_pending_oldest_seconds") < 3700
            await until(found, lambda scrape: scrape.value("conversations_pending") == 0)
            assert 0 == (await found.scrape()).value("conversations_pending_oldest_seconds")
        async with measured_service(url, activity=False) as found:
            assert "conversations_pending" not in (await found.scrape()).families


async def test_purges(service: Service) -> None:
    """A purge shows with what it removed and when."""
    async with measured_service(service.url, purge_every_minutes=0.003, purge_after_hours=0) as found:
        made = await found.stub.CreateConversation(create(user_message("a"), user_message("b")))
        await found.stub.DeleteConversation(delete(made.id))
        await until(found, lambda scrape: scrape.value("conversations_purge_rows_total", kind="items") >= 2)
        scrape = await found.scrape()
    assert 1 <= scrape.value("conversations_purge_runs_total", outcome="done")
    assert 1 <= scrape.value("conversations_purge_rows_total", kind="conversations")
    assert 1.7e9 < scrape.value("conversations_purge_last_success_timestamp_seconds")


async def test_keys_and_certificate(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How old the issuer's keys are, that it does not answer, and when the certificate expires."""
    monkeypatch.setattr(jwks_url, "FRESH_SECONDS", 0.2)
    monkeypatch.setattr(jwks_url, "RETRY_SECONDS", 0.2)
    async with fully_measured_service(service.url, tmp_path) as (found, issuer, expiry):
        scrape = await found.scrape()
        assert expiry.timestamp() == scrape.value("conversations_certificate_expiry_timestamp_seconds")
        assert 0 == scrape.value("conversations_certificate_reloads_total", outcome="taken")
        assert 1 <= scrape.value("conversations_jwks_fetches_total", outcome="good")
        assert 0 == scrape.value("conversations_jwks_fetches_total", outcome="failed")
        await issuer.cleanup()
        await until(found, lambda after: after.value("conversations_jwks_fetches_total", outcome="failed") > 1)
        assert 0.2 < (await found.scrape()).value("conversations_jwks_age_seconds") < 20


async def test_what_is_not_there_says_nothing(service_: MeasuredService) -> None:
    """No certificate, no issuer and no purge: nothing about them, or an alert would fire for ever."""
    _, _, text = await http_get(service_.metrics)
    assert [] == [word for word in ("certificate", "jwks", "purge") if word in text]


async def test_the_loop_and_the_process(service_: MeasuredService) -> None:
    """The loop's lag is measured, and what runs is said."""
    await asyncio.sleep(0.6)
    scrape = await service_.scrape()
    assert 1 <= scrape.value("conversations_event_loop_lag_seconds_count")
    assert 1 == scrape.value("conversations_build_info", python=platform.python_version())
    assert 1e7 < scrape.value("process_resident_memory_bytes")
    assert 0 <= scrape.value("python_gc_collections_total", generation="0")


async def test_a_blocked_loop_shows(service_: MeasuredService) -> None:
    """What holds the loop for half a second is in the tail of the lag."""
    await asyncio.sleep(0.05)
    time.sleep(0.5)  # noqa: ASYNC251 - the fault that is looked for
    await asyncio.sleep(0.3)
    scrape = await service_.scrape()
    name = "conversations_event_loop_lag_seconds_bucket"
    assert scrape.value(name, le="0.1") < scrape.value(name, le="+Inf")


@pytest.mark.parametrize(
    "accept, kind, parse",
    [
        ("", "text/plain; version=0.0.4; charset=utf-8", prometheus),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=1.0.0", openmetrics),
    ],
)
async def test_both_formats(service_: MeasuredService, accept: str, kind: str, parse: Any) -> None:
    """Text of the kind that was asked for, which its own parser takes, without a family twice."""
    status, found, text = await http_get(service_.metrics, Accept=accept)
    assert 200 == status
    assert found.startswith(kind)
    names = [family.name for family in parse(text)]
    assert len(names) == len(set(names))
    assert {"grpc_server_started", "conversations_ready"} <= {name.removesuffix("_total") for name in names}


async def test_only_metrics_are_served(service_: MeasuredService) -> None:
    """Nothing else is on the address."""
    assert 404 == (await http_get(service_.metrics, "/"))[0]


async def test_several_servers_in_a_process(service: Service) -> None:
    """Each counts its own calls."""
    async with measured_service(service.url) as one, measured_service(service.url) as two:
        await one.stub.CreateConversation(create())
        own = {"grpc_method": "CreateConversation", "grpc_code": "OK"}
        found = [(await each.scrape()).value("grpc_server_handled_total", **own) for each in (one, two)]
    assert [1, 0] == found


async def test_a_taken_address_stops_the_start(service_: MeasuredService) -> None:
    """The operator learns which setting it is."""
    with pytest.raises(StartFailed, match=r"metrics_listen: cannot listen on 127\.0\.0\.1:\d+"):
        async with measured_service(service_.url, metrics_listen=service_.metrics):
            pass


async def test_closed_with_the_service(service: Service) -> None:
    """The address is free again."""
    async with measured_service(service.url) as found:
        address = found.metrics
    with pytest.raises(aiohttp.ClientConnectorError):
        await http_get(address)


async def test_without_an_address_there_are_none(service: Service) -> None:
    """Off by default."""
    async with measured_service(service.url, metrics_listen="") as found:
        assert "" == found.metrics


def test_histogram() -> None:
    """A value counts at the first bound that is not below it."""
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.add(value)
    assert [(1.0, 2), (2.0, 4), (math.inf, 5)] == list(histogram.up_to())
    assert (5, 14.0) == (histogram.count, histogram.total)
