"""The admin address: what operators see of a process and turn in it, and that nobody else can."""

import asyncio
import json
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import grpc.aio
import pytest
from conversations.admin.v1 import admin_service_pb2 as pb
from conversations.admin.v1.admin_service_pb2_grpc import AdminServiceStub
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from google.protobuf.duration_pb2 import Duration
from grpc_channelz.v1 import channelz_pb2 as channelz
from grpc_channelz.v1.channelz_pb2_grpc import ChannelzStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server import __version__
from server.errors import StartFailed
from server.observability import logs
from server.store.migrate import HEAD
from tests.support.build import create, get, update
from tests.support.commands import address_in, connect, finish, server_process
from tests.support.ports import HOST, free_port
from tests.support.postgres import fresh_database
from tests.support.problems import problem
from tests.support.service import Service, running_service


@dataclass(frozen=True)
class Operated:
    """A service, and its admin address."""

    service: Service
    address: str
    channel: grpc.aio.Channel
    stub: Any


@asynccontextmanager
async def operated(url: str, **settings: Any) -> AsyncIterator[Operated]:
    """A service with an admin address."""
    address, listen = (f"{HOST}:{free_port()}" for _ in range(2))
    async with (
        running_service(url, listen=listen, admin_listen=address, **settings) as service,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield Operated(service, address, channel, AdminServiceStub(channel))


@pytest.fixture
async def url(postgres: str, template: str) -> AsyncIterator[str]:
    """A database."""
    async with fresh_database(postgres, template) as address:
        yield address


@pytest.fixture(scope="module")
async def admin(postgres: str, template: str) -> AsyncIterator[Operated]:
    """A service with an admin address."""
    async with fresh_database(postgres, template) as address, operated(address) as made:
        yield made


@pytest.fixture(autouse=True)
def level() -> Any:
    """The level of the log is that of the process: it is put back."""
    before = logs.level()
    logs.set_level("info")
    yield
    logs.set_level(before)


# --- status


async def test_status(admin: Operated) -> None:
    """It says which version this is, since when, where callers reach it, and what it works with."""
    first = await admin.stub.GetStatus(pb.GetStatusRequest())
    assert (__version__, HEAD, True, False, "") == (
        first.version,
        first.schema_revision,
        first.ready,
        first.draining,
        first.waits_for,
    )
    assert [admin.service.address] == list(first.listeners)
    assert not first.HasField("database_problem")
    assert ("one-user", "built in, for identity=none") == (first.policy.digest, first.policy.source)
    assert (10, 0, 0, 0) == (first.pool.size, first.pool.in_use, first.calls, first.worker)
    await asyncio.sleep(0.01)
    second = await admin.stub.GetStatus(pb.GetStatusRequest())
    assert first.start_time == second.start_time
    assert first.uptime.ToTimedelta() < second.uptime.ToTimedelta()


async def test_what_runs(admin: Operated) -> None:
    """Calls in flight and the connections they use are counted, and so is their end."""
    stub, pool = admin.service.stub, admin.service.database.pool
    made = [await stub.CreateConversation(create()) for _ in range(3)]
    connection = await pool.acquire()
    async with connection.transaction():
        await connection.execute("LOCK TABLE conversations")
        calls = [
            asyncio.create_task(stub.UpdateConversation(update(each.id, "metadata", metadata={"a": "b"})).code())
            for each in made
        ]
        status = pb.Status()
        async with asyncio.timeout(5):
            while status.calls < 3 or status.pool.in_use < 4:  # ours too
                status = await admin.stub.GetStatus(pb.GetStatusRequest())
    await pool.release(connection)
    assert [grpc.StatusCode.OK] * 3 == await asyncio.gather(*calls)
    status = await admin.stub.GetStatus(pb.GetStatusRequest())
    assert (0, 0) == (status.calls, status.pool.in_use)


async def test_a_database_that_is_away(url: str) -> None:
    """The admin address answers while the service waits for its database, and says what it waits for."""
    async with operated(f"postgresql://postgres@127.0.0.1:{free_port()}/none") as admin:
        status = await admin.stub.GetStatus(pb.GetStatusRequest())
        assert (False, True) == (status.ready, "connection_refused" in status.waits_for)
        async with asyncio.timeout(5):
            while not status.database_problem.failures:  # the first probe comes soon
                await asyncio.sleep(0.02)
                status = await admin.stub.GetStatus(pb.GetStatusRequest())
        problem = status.database_problem
        told = (problem.reason, problem.error, problem.code)
        assert ("connection_refused", "ConnectionRefusedError", "ECONNREFUSED") == told
        async with asyncio.timeout(10):
            while status.database_problem.failures < problem.failures + 2:
                await asyncio.sleep(0.02)
                status = await admin.stub.GetStatus(pb.GetStatusRequest())
        assert problem.HasField("start_time")
        assert problem.start_time == status.database_problem.start_time  # of the outage, not of its last probe
        health = health_pb2_grpc.HealthStub(admin.channel)
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert health_pb2.HealthCheckResponse.NOT_SERVING == answer.status


async def test_the_drain_can_be_seen(url: str) -> None:
    """The admin address is there until the last call has ended."""
    async with AsyncExitStack() as stack:
        lock = await asyncpg.connect(url)
        stack.push_async_callback(lock.close)
        await lock.execute("BEGIN")
        await lock.execute("LOCK TABLE conversations")
        async with operated(url, grace_seconds=5) as admin:
            callers = await stack.enter_async_context(connect(admin.service.address))
            call = asyncio.create_task(callers.CreateConversation(create()).code())
            status = pb.Status()
            async with asyncio.timeout(5):
                while not status.calls:
                    status = await admin.stub.GetStatus(pb.GetStatusRequest())
            looking = asyncio.create_task(draining(admin.address))
            looking.add_done_callback(lambda _: lock.terminate())  # the call can go on
        assert grpc.StatusCode.OK == await call
    assert (True, False, 1) == await looking


async def draining(address: str) -> tuple[bool, bool, int]:
    """What is seen of a process that ends, when its callers' server takes no more connections."""
    status = pb.Status()
    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(5):
        stub = AdminServiceStub(channel)
        while not status.draining:
            status = await stub.GetStatus(pb.GetStatusRequest())
        await asyncio.sleep(0.5)
        status = await stub.GetStatus(pb.GetStatusRequest())
    return status.draining, status.ready, status.calls


# --- what is turned


async def test_log_level(url: str) -> None:
    """The level changes for loggers that have been used already; the log tells, and audit lines come at any level."""
    address = f"{HOST}:{free_port()}"
    async with server_process(url, admin_listen=address, log_format="json") as (service, line):
        async with grpc.aio.insecure_channel(address) as channel, connect(address_in(line)) as stub:
            for level in (None, pb.LEVEL_DEBUG, pb.LEVEL_ERROR):
                if level:
                    answer = await AdminServiceStub(channel).SetLogLevel(pb.SetLogLevelRequest(level=level))
                    assert pb.LogLevel(level=level, configured=pb.LEVEL_INFO) == answer
                assert "NOT_FOUND" == (await problem(stub.GetConversation(get("conv_none")))).code
        service.terminate()
        _, _, errors = await finish(service)
    lines = sorted(
        map(json.loads, errors.splitlines()), key=lambda line: line["timestamp"]
    )  # those of calls come later
    changed = [n for n, each in enumerate(lines) if each["event"] == "log level changed"]
    assert [("info", "debug"), ("debug", "error")] == [(lines[n]["was"], lines[n]["level_now"]) for n in changed]
    parts = lines[: changed[0]], lines[changed[0] : changed[1]], lines[changed[1] :]
    assert [0, 1, 0] == [sum(each["event"] == "call" for each in part) for part in parts]
    assert [1, 1, 1] == [sum(each["event"] == "refused" for each in part) for part in parts]


async def test_log_level_for_a_while(admin: Operated) -> None:
    """A level with a duration becomes the configured one again; a later change counts."""
    request = pb.SetLogLevelRequest(level=pb.LEVEL_DEBUG, duration=Duration(seconds=1))
    answer = await admin.stub.SetLogLevel(request)
    assert answer.HasField("expire_time")
    assert "debug" == logs.level()
    async with asyncio.timeout(3):
        while logs.level() != "info":  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    assert pb.LogLevel(level=pb.LEVEL_INFO, configured=pb.LEVEL_INFO) == await admin.stub.GetLogLevel(
        pb.GetLogLevelRequest()
    )
    await admin.stub.SetLogLevel(request)
    await admin.stub.SetLogLevel(pb.SetLogLevelRequest(level=pb.LEVEL_WARNING))
    await asyncio.sleep(1.1)
    assert "warning" == logs.level()


@pytest.mark.parametrize(
    "request_",
    [
        pb.SetLogLevelRequest(),
        pb.SetLogLevelRequest(level=9),  # type: ignore[arg-type]
        pb.SetLogLevelRequest(level=pb.LEVEL_DEBUG, duration=Duration()),
        pb.SetLogLevelRequest(level=pb.LEVEL_DEBUG, duration=Duration(seconds=86_401)),
    ],
    ids=["none", "unknown", "no time", "too long"],
)
async def test_requests_are_checked(admin: Operated, request_: pb.SetLogLevelRequest) -> None:
    """A request that breaks a rule changes nothing."""
    assert "INVALID_ARGUMENT" == (await problem(admin.stub.SetLogLevel(request_))).code
    assert "info" == logs.level()


async def test_reload(url: str, tmp_path: Path) -> None:
    """The policy is read again; the status tells what came of it."""
    policy = tmp_path / "policy.yaml"
    policy.write_text("- permit: {actions: [create, read]}\n", encoding="utf-8")
    async with operated(url, policy_file=policy) as admin:
        first = (await admin.stub.GetStatus(pb.GetStatusRequest())).policy
        for text, expected in (("- permit: {actions: [creat]}\n", (0, 1)), ("- permit: {actions: [read]}\n", (1, 1))):
            policy.write_text(text, encoding="utf-8")
            await admin.stub.Reload(pb.ReloadRequest())
            found = first
            async with asyncio.timeout(5):
                while (found.reloads, found.refused) != expected:
                    found = (await admin.stub.GetStatus(pb.GetStatusRequest())).policy
            assert (found.digest == first.digest) == (not expected[0])


# --- what gRPC shows


async def test_channelz(admin: Operated) -> None:
    """The callers' server and its connections are seen, with the calls they had."""
    await admin.service.stub.CreateConversation(create())
    by_port = await servers(admin.channel)
    port = int(admin.service.address.rpartition(":")[2])
    assert {port, int(admin.address.rpartition(":")[2])} <= set(by_port)
    assert by_port[port].data.calls_started >= 1
    asked = channelz.GetServerSocketsRequest(server_id=by_port[port].ref.server_id)
    sockets = await ChannelzStub(admin.channel).GetServerSockets(asked)
    assert 1 == len(sockets.socket_ref)


async def servers(channel: grpc.aio.Channel) -> dict[int, channelz.Server]:
    """What channelz shows, by the port that was asked for."""
    answer = await ChannelzStub(channel).GetServers(channelz.GetServersRequest())
    return {int(each.name.rpartition(":")[2]): server for server in answer.server for each in server.listen_socket}


@pytest.mark.tool("grpcurl")
@pytest.mark.parametrize(
    "command, expected",
    [
        (["list"], "conversations.admin.v1.AdminService"),
        (["list"], "grpc.channelz.v1.Channelz"),
        (["list"], "grpc.health.v1.Health"),
        (["describe", "conversations.v1.ConversationsService"], "rpc CreateItems"),
        (["conversations.admin.v1.AdminService/GetStatus"], '"ready": true'),
        (
            ["-d", '{"level": "LEVEL_DEBUG", "duration": "600s"}', "conversations.admin.v1.AdminService/SetLogLevel"],
            '"level": "LEVEL_DEBUG"',
        ),
        (["conversations.admin.v1.AdminService/Reload"], "{}"),
        (["grpc.channelz.v1.Channelz/GetServers"], "chttp2 listener"),
        (["grpc.health.v1.Health/Check"], "SERVING"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_grpcurl(admin: Operated, command: list[str], expected: str) -> None:
    """The recipes of docs/operations.md, which take the descriptors by reflection."""
    options = [] if command[0] != "-d" else command[:2]
    rest = command[len(options) :]
    arguments = ("-plaintext", *options, admin.address, *rest)
    ran = await asyncio.create_subprocess_exec("grpcurl", *arguments, stdout=PIPE, stderr=PIPE)
    output, errors = await ran.communicate()
    assert (0, b"") == (ran.returncode, errors)
    assert expected in output.decode()


async def test_callers_have_none_of_it(admin: Operated) -> None:
    """The callers' address knows neither the admin service nor channelz, nor the admin address the contract."""
    for call in (
        AdminServiceStub(admin.service.channel).GetStatus(pb.GetStatusRequest()),
        ChannelzStub(admin.service.channel).GetServers(channelz.GetServersRequest()),
        ConversationsServiceStub(admin.channel).CreateConversation(create()),
    ):
        assert "UNIMPLEMENTED" == (await problem(call)).code


# --- addresses


async def test_each_worker_has_one(url: str) -> None:
    """So that each of several processes can be asked; worker 1 answers at the next port."""
    first = free_port()
    async with server_process(url, workers="2", admin_listen=f"{HOST}:{first}"):
        for worker in (0, 1):
            async with grpc.aio.insecure_channel(f"{HOST}:{first + worker}") as channel:
                status = await AdminServiceStub(channel).GetStatus(pb.GetStatusRequest())
                assert (worker, True) == (status.worker, status.ready)


async def test_a_taken_address(admin: Operated) -> None:
    """A second service does not get the first one's admin address, nor half of its connections."""
    with pytest.raises(StartFailed, match=admin.address):
        async with running_service(admin.service.url, admin_listen=admin.address):
            pass


async def test_off(url: str) -> None:
    """Without an admin address gRPC keeps no statistics: channelz is of the process, and another one's is asked."""
    async with operated(url) as admin, running_service(url, listen=f"{HOST}:{free_port()}") as silent:
        await silent.stub.CreateConversation(create())
        ports = set(await servers(admin.channel))
    assert int(admin.service.address.rpartition(":")[2]) in ports
    assert int(silent.address.rpartition(":")[2]) not in ports
