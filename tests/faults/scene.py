"""What a row runs on: PostgreSQL, servers and the proxies between them and to their callers."""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import grpc
import grpc.aio
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.store.embedded.initdb import CLUSTER
from tests.faults.callers import CALLERS
from tests.faults.postgres import EmbeddedPostgres, Postgres, Programs
from tests.faults.repeat import beside
from tests.faults.server import ROOT, Server
from tests.faults.workload import CHANNEL_OPTIONS, Caller, Tenant, Workload
from tests.support.build import append, create, user_message
from tests.support.jwt import AUDIENCE, ISSUER, ISSUER_KEY, claims, jwk_set, token
from tests.support.tcp_proxy import TcpProxy, Upstream, tcp_proxy

TENANTS = ("red", "blue")
PRINCIPAL = "alice"  # in each tenant: nothing but the tenant tells one from the other
_LOOK = 0.05  # seconds between two looks at health


@dataclass(frozen=True)
class Layout:
    """How many of what, and settings that are not the default."""

    servers: int = 1
    workers: int = 1
    settings: dict[str, str] = field(default_factory=dict)
    postgres: dict[str, str] = field(default_factory=dict)
    embedded: bool = False  # the server's own PostgreSQL
    standby: bool = False  # a synchronous one beside the primary
    small_disk: bool = False  # for the tables
    callers: tuple[type[Caller], ...] = CALLERS
    proxied: bool = True  # callers come by way of a proxy
    changes: bool = False  # whether the log of changes is on
    http: bool = False  # whether servers have an HTTP edge


@dataclass(frozen=True, slots=True)
class Look:
    """One look at readiness."""

    at: float
    took: float
    ready: bool


@dataclass
class Watch:
    """Looks at the readiness of one server, and at the memory of its processes."""

    server: Server
    looks: list[Look] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)  # when, and bytes of all its processes

    async def run(self) -> None:
        """Looks for ever."""
        options = [*CHANNEL_OPTIONS, ("grpc.max_reconnect_backoff_ms", 100)]
        async with grpc.aio.insecure_channel(self.server.address, options=options) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while True:
                began = time.monotonic()
                ready = await _is_ready(stub)
                self.looks.append(Look(began, time.monotonic() - began, ready))
                self.memory.append((began, sum(map(resident_bytes, self.server.pids()))))
                await asyncio.sleep(_LOOK)


async def _is_ready(stub: health_pb2_grpc.HealthStub) -> bool:
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(service="readiness"), timeout=1)
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def resident_bytes(pid: int) -> int:
    """The resident memory of a process; 0 when it is gone."""
    with suppress(OSError, StopIteration):
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))
    return 0


@dataclass
class Scene:
    """All of it, while a row runs."""

    folder: Path
    programs: Programs
    postgres: Postgres
    servers: list[Server]
    store_proxy: TcpProxy  # between the servers and PostgreSQL
    caller_proxies: list[TcpProxy]  # between callers and each server
    workload: Workload
    watches: list[Watch]
    random: Random
    short: bool  # the short form
    facts: dict[str, str] = field(default_factory=dict)  # what a fault measured, for the table
    violations: list[str] = field(default_factory=list)  # what a fault itself saw
    retired: list[Postgres] = field(default_factory=list)
    disk: Path | None = None  # of the tables, when it is small
    standby: Postgres | None = None

    @property
    def server(self) -> Server:
        """The first server."""
        return self.servers[0]

    def memory(self) -> int:
        """Bytes of all processes of the servers, now."""
        return sum(resident_bytes(pid) for server in self.servers for pid in server.pids())

    async def stranger(
        self, conversations: int, items: int = 0, item_id: str | None = None, tenant: str = TENANTS[0]
    ) -> tuple[str, list[str]]:
        """The token of a principal who is no caller of the workload, and its own conversations.

        ``items``: of 64 KiB, in each of them. ``item_id``: of a short one, with which each of them begins.
        """
        initial = [user_message("x", id=item_id)] if item_id else []
        secret = token(claims(sub="stranger", org=tenant, exp=int(time.time() + 7200)))
        metadata = [("authorization", f"Bearer {secret}")]
        async with self.workload.channel() as channel:
            stub = ConversationsServiceStub(channel)
            made = []
            for _ in range(conversations):
                made.append((await stub.CreateConversation(create(*initial), metadata=metadata, timeout=20)).id)
                for _ in range(items):
                    large = append(made[-1], user_message("x" * 64 * 1024))
                    await stub.CreateItems(large, metadata=metadata, timeout=20)
        return secret, made

    def expect(self, holds: bool, otherwise: str) -> None:  # noqa: FBT001 - reads as an assertion
        """Notes a violation unless something holds."""
        if not holds:
            self.violations.append(otherwise)


def tokens(seconds: float = 7200) -> dict[str, str]:
    """A token for each tenant, of a principal that is called the same in all."""
    end = int(time.time() + seconds)
    return {tenant: token(claims(sub=PRINCIPAL, org=tenant, exp=end)) for tenant in TENANTS}


def _settings(layout: Layout, jwks: Path) -> dict[str, str]:
    return {
        "workers": str(layout.workers),
        "identity": "jwt",
        "jwt_issuer": ISSUER,
        "jwt_audience": AUDIENCE,
        "jwt_jwks": str(jwks),
        "jwt_tenant_claim": "org",
        "log_format": "json",
        "access_log": "true",
        "purge_every_minutes": "0",
        **({"http_listen": "127.0.0.1:0"} if layout.http else {}),
        **layout.settings,
    }


@asynccontextmanager
async def scene(
    layout: Layout, programs: Programs, folder: Path, random: Random, *, short: bool, code: Path = ROOT
) -> AsyncIterator[Scene]:
    """Everything started, and ended afterwards however the row went."""
    async with AsyncExitStack() as stack:
        disk = stack.enter_context(small_disk(folder, programs)) if layout.small_disk else None
        embedded = (
            EmbeddedPostgres(programs, folder / "embedded" / CLUSTER, database="postgres") if layout.embedded else None
        )
        postgres = embedded or await _postgres(layout, programs, folder, disk, stack)
        store = TcpProxy(Upstream.of(postgres.own_url))
        await store.listen()
        stack.push_async_callback(store.close)
        settings = {"data_dir": str(folder / "embedded")} if embedded else {"database_url": postgres.url(store.address)}
        servers = await _servers(layout, settings, folder, code, stack)
        if layout.changes:
            await servers[0].run_command("changes", "on", "--database-url", postgres.url(store.address))
        proxies = [await stack.enter_async_context(tcp_proxy(f"grpc://{server.address}")) for server in servers]
        ways = [each.address for each in (proxies if layout.proxied else servers)]
        tenants = [Tenant(name, secret) for name, secret in tokens().items()]
        edges = [each.http_address for each in servers if each.http_address]
        workload = Workload("ipv4:" + ",".join(ways), tenants, random, layout.callers, edges)
        watches = [Watch(server) for server in servers]
        for watch in watches:
            await stack.enter_async_context(beside(watch.run()))
        await workload.prepare()
        built = Scene(folder, programs, postgres, servers, store, proxies, workload, watches, random, short)
        built.disk = disk
        if layout.standby:
            built.standby = await _standby(postgres, folder / "standby", stack)
        yield built


async def _postgres(
    layout: Layout, programs: Programs, folder: Path, disk: Path | None, stack: AsyncExitStack
) -> Postgres:
    postgres = Postgres(programs, folder / "pg", dict(layout.postgres))
    postgres.create()
    stack.push_async_callback(postgres.stop)
    await postgres.start()
    await postgres.create_database(tables=disk and disk / "tables")
    return postgres


async def _standby(primary: Postgres, data: Path, stack: AsyncExitStack) -> Postgres:
    standby = await primary.create_standby(data)
    stack.push_async_callback(standby.stop)
    await standby.start()
    await primary.wait_for_standby()
    return standby


async def _servers(
    layout: Layout, settings: dict[str, str], folder: Path, code: Path, stack: AsyncExitStack
) -> list[Server]:
    jwks = folder / "jwks.json"
    jwks.write_bytes(jwk_set(ISSUER_KEY))
    servers = []
    for number in range(layout.servers):
        server = Server({**_settings(layout, jwks), **settings}, folder / f"server-{number}.log", code)
        stack.push_async_callback(server.end)
        await server.start()
        servers.append(server)
    return servers


@contextmanager
def small_disk(folder: Path, programs: Programs) -> Iterator[Path]:
    """A disk of 96 MiB in memory, with a folder `tables` of PostgreSQL's user; only root may make one."""
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(disk)), check=True)
    try:
        tables = disk / "tables"
        tables.mkdir()
        programs.user.chown(tables)
        yield disk
    finally:
        subprocess.run(("umount", "--lazy", str(disk)), check=False)
