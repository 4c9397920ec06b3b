"""The one place where things are built, started and drained."""

import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import grpc
import grpc.aio
import structlog
from conversations.v1 import access_service_pb2, conversations_service_pb2
from conversations.v1.access_service_pb2_grpc import add_AccessServiceServicer_to_server
from conversations.v1.conversations_service_pb2_grpc import add_ConversationsServiceServicer_to_server
from grpc_health.v1 import health_pb2_grpc

from server.app import instrumentation, version_check
from server.app.admin_listener import admin
from server.app.background import purge_periodically
from server.app.database import Store, open_store, prepare_schema
from server.authorization.policy_file import PolicyFile
from server.authorization.requirements import needs
from server.identity import source_of
from server.identity.tenants import TenantRequirement
from server.interceptors import build_chain
from server.interceptors.drain_gate import DrainGate
from server.observability import metrics
from server.observability.metrics.sources import Sources
from server.observability.stats import PurgeStats
from server.observability.task_supervisor import TaskSupervisor, Work
from server.requests.page_tokens import PageTokens
from server.services.access import AccessServicer
from server.services.admin import Process
from server.services.conversations import ConversationsServicer
from server.services.new_items import BatchBuilder
from server.settings.addresses import Address
from server.settings.service import Settings
from server.store.auditing import mark_interrupted_write
from server.store.connection.database import Database
from server.store.conversations import ConversationStore
from server.store.items import ItemStore
from server.store.tenants import has_tenants
from server.transport import tls
from server.transport.health import Health
from server.transport.readiness import Readiness
from server.transport.server import add_unregistered, bind, build_server, reflect
from server.transport.shutdown import drain

log = structlog.get_logger(__name__)

CONTRACT = (conversations_service_pb2.DESCRIPTOR, access_service_pb2.DESCRIPTOR)
SERVICES = tuple(service.full_name for file in CONTRACT for service in file.services_by_name.values())


@dataclass(frozen=True)
class RunningService:
    """A server that accepts calls."""

    addresses: tuple[Address, ...]  # with the port in use where 0 was asked for
    store: Store
    policy: PolicyFile
    readiness: Readiness
    metrics: Address | None  # None when they are not served
    certificate: tls.Credentials | None

    @property
    def name(self) -> str:
        """Of the database, for people."""
        return self.store.name

    @property
    def address(self) -> str:
        """The first of the addresses, as a client dials it."""
        return str(self.addresses[0])

    @property
    def waits_for(self) -> str:
        """What keeps it from serving, in words; '' when it serves."""
        return self.readiness.waits_for

    def reload(self) -> None:
        """Has the policy and the files of TLS read again; safe in a signal handler."""
        self.policy.reload()
        if self.certificate:
            self.certificate.reload()


@asynccontextmanager
async def run_service(settings: Settings, worker: int | None = None) -> AsyncIterator[RunningService]:
    """The whole service, which answers health from the first moment and calls once its store is prepared.

    A database that cannot be reached is waited for; see `RunningService.waits_for`. Leaving drains.

    ``worker``: which of several processes this is.

    Raises:
        StartFailed: With what to do about it.
        IdentityConfigError, PolicyConfigError, TlsConfigError: A configured file cannot be used.
        DatabaseConfigError, MigrationFailed: Waiting would not help.
    """
    version_check.check()
    async with AsyncExitStack() as stack:
        policy = PolicyFile(settings.policy_file, settings.attribute_names, anonymous=settings.identity == "none")
        certificate = tls.load_credentials(settings)
        parts = await stack.enter_async_context(instrumentation.instrument(tracing=settings.tracing))
        tasks = TaskSupervisor()
        tenants = TenantRequirement(settings.proxy_require_tenant)
        source = await stack.enter_async_context(source_of(settings, parts.tracer, tenants, tasks))
        auditing = (mark_interrupted_write,) if settings.audit_permits else ()
        store = await stack.enter_async_context(open_store(settings, (*parts.statement_interceptors, *auditing), tasks))
        drain_gate, health, tokens = DrainGate(), await Health.create(SERVICES), PageTokens()
        chain = build_chain(settings, needs(*CONTRACT), drain_gate, source, policy.accesses, parts.interceptors)
        server = build_server(settings, chain)
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        _add_services(server, settings, store.database, tokens, drain_gate)
        addresses = tuple(
            bind(server, listen, certificate.for_address() if certificate else None) for listen in settings.listen
        )

        async def prepare() -> None:
            tokens.set_keys(await prepare_schema(settings, store))
            if settings.identity == "proxy" and not tenants.is_fixed and await has_tenants(store.database):
                tenants.note_tenant()
            drain_gate.open()

        readiness = Readiness(store.database, prepare, health)
        purges = PurgeStats()
        sources = Sources(
            settings=settings,
            calls=chain.observe,
            unary=chain.fair_share,
            streams=chain.stream_limit,
            drain=drain_gate,
            readiness=readiness,
            database=store.database,
            policy=policy,
            purges=purges,
            jwks=source.jwks,
            certificate=certificate,
            tasks=tasks,
        )
        exposed = await stack.enter_async_context(metrics.expose_metrics(sources, worker or 0, tasks))
        served = RunningService(addresses, store, policy, readiness, exposed, certificate)
        # Before the first call, and after the last: operators can look while it waits and while it drains.
        process = Process(worker or 0, addresses, drain_gate, readiness, store.database, policy, served.reload)
        await stack.enter_async_context(admin(settings, process, health))
        await server.start()
        stack.push_async_callback(drain, server, health, drain_gate, settings.grace_seconds)
        await readiness.start()
        for name, work in _background_work(settings, served, purges, worker):
            await stack.enter_async_context(tasks.running(name, work))
        _keep_collector_off()
        yield served


def _background_work(
    settings: Settings, served: RunningService, purges: PurgeStats, worker: int | None
) -> Iterator[tuple[str, Work]]:
    """Yields what runs beside the calls: a name, and what starts it."""
    yield "readiness", served.readiness.run
    yield "release of connections", served.store.database.release_unused
    yield "policy", served.policy.watch
    if served.certificate:
        yield "certificate", served.certificate.watch
    if settings.purge_every_minutes and not worker:
        yield "purge", partial(purge_periodically, settings, served.store.url, purges)


def _add_services(
    server: grpc.aio.Server,
    settings: Settings,
    database: Database,
    tokens: PageTokens,
    drain_gate: DrainGate,
) -> None:
    """The services of the contract on a database, and reflection of them."""
    conversations = ConversationStore(database, settings.max_items_bytes)
    items = ItemStore(database, conversations, settings.max_items_bytes)
    batches = BatchBuilder(settings.max_item_bytes, settings.max_items_bytes)
    methods = ConversationsServicer(conversations, items, tokens, batches, drain_gate.draining)
    add_unregistered(add_ConversationsServiceServicer_to_server, methods, server)
    add_unregistered(add_AccessServiceServicer_to_server, AccessServicer(conversations), server)
    if settings.reflection:
        reflect(server, SERVICES)


def _keep_collector_off() -> None:
    """Lets the garbage collector look seldom, and not at what was made at start.

    Calls leave few cycles behind; by default it looks at every 700 objects (ADR 13).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
