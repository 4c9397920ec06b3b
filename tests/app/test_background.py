"""What runs beside the calls of a service: it survives whatever ends it."""

import asyncio
from pathlib import Path

import asyncpg
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from structlog.testing import capture_logs

from server.observability import task_supervisor
from server.transport.health import Health
from tests.support.build import create
from tests.support.metrics import fully_measured_service
from tests.support.postgres import fresh_database
from tests.support.service import Service, running_service
from tests.support.tcp_proxy import tcp_proxy

TASKS = {
    "readiness",
    "release of connections",
    "policy",
    "certificate",
    "purge",
    "erasures",
    "activity",
    "identity keys",
    "event loop lag",
}


def running(name: str) -> set["asyncio.Task[object]"]:
    """The tasks of this name in all services of this process."""
    return {task for task in asyncio.all_tasks() if task.get_name() == name}


async def test_every_background_task_comes_back(service: Service, tmp_path: Path) -> None:
    """Each of them is started again when it is killed, and counted in the metrics."""
    async with fully_measured_service(service.url, tmp_path) as (found, _, _):
        killed = {name: running(name) for name in TASKS}
        assert all(killed.values())
        for task in set().union(*killed.values()):
            task.cancel()
        async with asyncio.timeout(10):
            while any(len(running(name) - killed[name]) < len(killed[name]) for name in TASKS):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        scrape = await found.scrape()
    ends = {name: scrape.value("conversations_background_task_failures_total", task=name) for name in TASKS}
    assert dict.fromkeys(TASKS, 1) == ends


async def test_readiness_survives_what_nobody_expected(
    postgres: str, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that no rule foresees ends neither the probes nor, later, the process with a traceback."""
    monkeypatch.setattr(task_supervisor, "_MIN_PAUSE_SECONDS", 0.05)
    told = Health.ready
    failures = iter([asyncpg.PostgresError("unlisted"), ZeroDivisionError()])

    async def failing(self: Health, *, now: bool) -> None:
        if error := next(failures, None):
            raise error
        await told(self, now=now)

    async with (
        fresh_database(postgres, template) as url,
        tcp_proxy(url) as proxy,
        running_service(proxy.url(url)) as found,
    ):
        monkeypatch.setattr(Health, "ready", failing)
        with capture_logs() as lines:
            await proxy.refuse()
            await until_readiness(found, HealthCheckResponse.NOT_SERVING)
            await proxy.heal()
            await until_readiness(found, HealthCheckResponse.SERVING)
        assert (await found.stub.CreateConversation(create())).id
    ended = [line for line in lines if line["event"] == "background task ended"]
    assert ["PostgresError", "ZeroDivisionError"] == [line["error"] for line in ended]


async def until_readiness(found: Service, status: int) -> None:
    """Waits for what health says."""
    stub = HealthStub(found.channel)
    async with asyncio.timeout(15):
        while (await stub.Check(HealthCheckRequest(service="readiness"))).status != status:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
