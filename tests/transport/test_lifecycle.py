"""From the first moment to the last: not ready, ready, not ready again, drained."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import grpc.aio
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from server.app.service import SERVICES, run_service
from server.settings.service import load
from server.store.connection.database import Database
from server.store.migrate import HEAD, migrate
from server.transport import readiness
from tests.support.build import create, get
from tests.support.postgres import EMPTY_TEMPLATE, fetch, fresh_database
from tests.support.problems import problem
from tests.support.service import Service, running_service

READY = ("", "readiness", *SERVICES)
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


class Way:
    """A way to a database that can be closed: its own link to PostgreSQL's socket."""

    def __init__(self, url: str, folder: Path) -> None:
        parts = urlsplit(url)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self._behind = url
        self._name = parts.path.removeprefix("/")
        self._socket = Path(query["host"]) / f".s.PGSQL.{query.get('port', '5432')}"
        self._link = folder / self._socket.name
        self.url = url.replace(query["host"], str(folder))

    def open(self) -> None:
        """New connections are made."""
        self._link.symlink_to(self._socket)

    async def close(self) -> None:
        """No new connections, and the end of those that are."""
        self._link.unlink()
        connection = await asyncpg.connect(self._behind)
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()"
        for _ in range(5):  # one that was being made is not in the list at once
            await connection.execute(end, self._name)
            await asyncio.sleep(0.05)
        await connection.close()


@pytest.fixture
async def way(postgres: str, template: str, tmp_path: Path) -> AsyncIterator[Way]:
    """A way, closed, to a database of its own."""
    if "host=" not in postgres:
        pytest.skip("PostgreSQL has no socket here")
    async with fresh_database(postgres, template) as url:
        yield Way(url, tmp_path)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_PROBE_SECONDS", 0.1)
    monkeypatch.setattr(readiness, "_SUSPICION_SECONDS", 0.02)
    monkeypatch.setattr(readiness, "_UNUSABLE_SECONDS", 0.05)
    monkeypatch.setattr(readiness, "_MIN_BACKOFF_SECONDS", 0.05)


async def health(service: Service, *names: str) -> set[int]:
    """What is answered to each of these names."""
    stub = HealthStub(service.channel)
    return {(await stub.Check(HealthCheckRequest(service=name))).status for name in names}


async def until(service: Service, name: str, status: int) -> None:
    """Waits for a status."""
    async with asyncio.timeout(10):
        while await health(service, name) != {status}:  # noqa: ASYNC110 - it is asked as an orchestrator asks
            await asyncio.sleep(0.02)


async def test_everything_serves(service: Service) -> None:
    """A service that is up says so under every name."""
    assert {SERVING} == await health(service, *READY, "startup", "liveness")


async def test_start_without_a_database(way: Way) -> None:
    """Without a database it is alive, not ready, and refuses calls to be tried again; with it, it serves."""
    async with running_service(way.url) as served:
        assert {NOT_SERVING} == await health(served, *READY, "startup")
        assert {SERVING} == await health(served, "liveness")
        failure = await problem(served.stub.CreateConversation(create()))
        assert ("UNAVAILABLE", "STORE_UNAVAILABLE") == (failure.code, failure.reason)
        assert "RetryInfo" in failure.details
        way.open()
        await until(served, "startup", SERVING)
        assert {SERVING} == await health(served, *READY)
        assert (await served.stub.CreateConversation(create())).id


async def test_a_database_that_goes_and_comes(way: Way) -> None:
    """While it is away the service is alive and started but not ready; afterwards all is as before."""
    way.open()
    async with running_service(way.url) as served:
        made = await served.stub.CreateConversation(create())
        await way.close()
        await until(served, "readiness", NOT_SERVING)
        assert {NOT_SERVING} == await health(served, *READY)
        assert {SERVING} == await health(served, "startup", "liveness")
        assert "UNAVAILABLE" == (await problem(served.stub.GetConversation(get(made.id)))).code
        way.open()
        await until(served, "readiness", SERVING)
        assert made.id == (await served.stub.GetConversation(get(made.id))).id


async def test_what_answers_calls_is_not_probed(own_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is probed only while no call is answered."""
    probes: list[float] = []
    probe = Database.probe

    async def counted(self: Database) -> str:
        if self is own_service.database:
            probes.append(time.monotonic())
        return await probe(self)

    monkeypatch.setattr(Database, "probe", counted)
    await asyncio.sleep(0.5)
    assert len(probes) >= 2
    await own_service.stub.CreateConversation(create())
    probes.clear()
    for _ in range(50):
        await own_service.stub.ListConversations(_one())
        await asyncio.sleep(0.01)
    assert len(probes) <= 1  # a pause of the machine may be as long as one between two probes


def _one() -> Any:
    from conversations.v1.conversations_service_pb2 import ListConversationsRequest  # noqa: PLC0415 - used here alone

    return ListConversationsRequest(page_size=1)


async def test_a_problem_while_waiting_does_not_end_it(postgres: str, template: str, tmp_path: Path) -> None:
    """What would end a start is waited out once the service is up: an operator may mend it."""
    async with fresh_database(postgres, template) as url:
        way = Way(url, tmp_path)
        await fetch(url, f'ALTER DATABASE "{url.partition("?")[0].rpartition("/")[2]}" SET synchronous_commit = off')
        async with running_service(way.url) as served:
            way.open()
            await asyncio.sleep(1)
            assert {NOT_SERVING} == await health(served, "readiness")
            await fetch(url, f'ALTER DATABASE "{url.partition("?")[0].rpartition("/")[2]}" RESET synchronous_commit')
            await until(served, "readiness", SERVING)


async def test_a_schema_is_waited_for(postgres: str) -> None:
    """Told not to migrate, it becomes ready when another process has."""
    async with fresh_database(postgres, EMPTY_TEMPLATE) as url, running_service(url, migrate=False) as served:
        assert {NOT_SERVING} == await health(served, "readiness", "startup")
        await migrate(url)
        await until(served, "readiness", SERVING)
        assert (await served.stub.CreateConversation(create())).id


@pytest.mark.parametrize("migrating", [True, False])
async def test_a_newer_schema_is_served(postgres: str, template: str, migrating: bool) -> None:  # noqa: FBT001
    """A process of the last version starts beside those of the next: migrations only add."""
    async with fresh_database(postgres, template) as url:
        await fetch(url, "UPDATE alembic_version SET version_num = '9999'")
        async with running_service(url, migrate=migrating) as served:
            assert (await served.stub.CreateConversation(create())).id
    assert HEAD < "9999"


# -- the drain


@asynccontextmanager
async def drained(
    url: str, **settings: Any
) -> AsyncIterator[tuple[grpc.aio.Channel, asyncio.Event, "asyncio.Task[float]"]]:
    """A channel to a service, what starts its drain, and the seconds that took."""
    begin, up = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def life() -> float:
        values = {"listen": "127.0.0.1:0", "database_url": url, "purge_every_minutes": 0, **settings}
        async with run_service(load(**values)) as served:
            up.set_result(served.address)
            await begin.wait()
            began = time.monotonic()
        return time.monotonic() - began

    task = asyncio.create_task(life())
    async with grpc.aio.insecure_channel(await up) as channel:
        yield channel, begin, task
    begin.set()
    await task


async def test_health_lists_its_names(service: Service) -> None:
    """All names are listed with the status that each of them has."""
    listed = (await HealthStub(service.channel).List(HealthListRequest())).statuses
    assert {"", "liveness", "startup", "readiness", *SERVICES} == set(listed)
    assert {SERVING} == {each.status for each in listed.values()} == await health(service, *listed)


async def test_watches_end_with_the_drain(service: Service) -> None:
    """Who watches learns that nothing more is served, then UNAVAILABLE; the drain does not wait the grace for it."""
    async with drained(service.url, grace_seconds=8) as (channel, begin, task):
        watch = HealthStub(channel).Watch(HealthCheckRequest(service="readiness"))
        assert SERVING == (await watch.read()).status
        begin.set()
        assert NOT_SERVING == (await watch.read()).status
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await watch.read()
        assert grpc.StatusCode.UNAVAILABLE is ended.value.code()
        assert await task < 4


async def test_health_answers_in_a_drain(service: Service) -> None:
    """A process in its drain is alive, and says under every other name that it does not serve."""
    async with drained(service.url, grace_seconds=1) as (channel, begin, _):
        stub = HealthStub(channel)
        await stub.Check(HealthCheckRequest())
        begin.set()
        await asyncio.sleep(0.05)
        for name in READY:
            assert NOT_SERVING == (await stub.Check(HealthCheckRequest(service=name))).status
        for name in ("liveness", "startup"):
            assert SERVING == (await stub.Check(HealthCheckRequest(service=name))).status
