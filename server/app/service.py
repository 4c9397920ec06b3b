"""The composition root: builds the service from its settings, starts it, and drains it."""

import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import grpc.aio
from conversations.v1 import access_service_pb2, conversations_service_pb2, erasure_service_pb2, transfer_service_pb2
from conversations.v1.access_service_pb2_grpc import add_AccessServiceServicer_to_server
from conversations.v1.conversations_service_pb2_grpc import add_ConversationsServiceServicer_to_server
from conversations.v1.erasure_service_pb2_grpc import add_ErasureServiceServicer_to_server
from conversations.v1.transfer_service_pb2_grpc import add_TransferServiceServicer_to_server
from grpc_health.v1 import health_pb2_grpc

from server.app import instrumentation, version_check
from server.app.activity import ActivityKeeper
from server.app.admin_listener import admin
from server.app.background import mark_expired_periodically, purge_periodically
from server.app.database import Store, open_store, prepare_schema
from server.app.edge import HttpEdge, build_edge
from server.app.erasure_runner import ErasureRunner
from server.app.memory import find_glibc, give_memory_back, limit_arenas
from server.app.transfers import build_transfers
from server.authorization.policy_file import PolicyFile
from server.authorization.requirements import needs
from server.identity import Source, source_of
from server.identity.tenants import TenantRequirement
from server.interceptors import CallerChain, build_chain
from server.interceptors.drain_gate import DrainGate
from server.observability import metrics
from server.observability.metrics.sources import Sources
from server.observability.stats import ActivityStats, ErasureStats, PurgeStats, TransferStats
from server.observability.task_supervisor import TaskSupervisor, Work
from server.requests.page_tokens import PageTokens
from server.services.access import AccessServicer
from server.services.admin import Process
from server.services.conversations import ConversationsServicer
from server.services.erasure import ErasureServicer
from server.services.new_items import BatchBuilder
from server.services.transfer import TransferServicer
from server.services.watch_stream import Watches
from server.settings.addresses import Address
from server.settings.retention import RetentionFile
from server.settings.service import Settings
from server.store.auditing import mark_interrupted_write
from server.store.bulk_deletes import BulkDeleteStore
from server.store.change_hub import ChangeHub
from server.store.change_log_poller import ChangeLogPoller
from server.store.conversation_changes import ConversationChanges
from server.store.conversations import ConversationStore
from server.store.erasures import ErasureStore
from server.store.forks import ForkStore
from server.store.item_changes import ItemChanges
from server.store.items import ItemStore
from server.store.response_budget import ResponseBudget
from server.store.rewinds import RewindStore
from server.store.tenants import has_tenants
from server.transport import tls
from server.transport.health import Health
from server.transport.readiness import Readiness
from server.transport.server import add_unregistered, bind, build_server, reflect
from server.transport.shutdown import drain

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

CONTRACT = (
    conversations_service_pb2.DESCRIPTOR,
    access_service_pb2.DESCRIPTOR,
    transfer_service_pb2.DESCRIPTOR,
    erasure_service_pb2.DESCRIPTOR,
)
SERVICES = tuple(service.full_name for file in CONTRACT for service in file.services_by_name.values())


@dataclass(frozen=True)
class RunningService:
    """A server that accepts calls.

    Attributes:
        addresses: With the port in use where port 0 was configured.
        metrics: Where metrics are served; None if they are not.
        certificate: What TLS connections are served with; None without TLS.
        http: Addresses of the HTTP edge; none if it is not served.
    """

    addresses: tuple[Address, ...]
    store: Store
    policy: PolicyFile
    readiness: Readiness
    metrics: Address | None
    certificate: tls.Credentials | None
    http: tuple[Address, ...]

    @property
    def name(self) -> str:
        """The name of the database, for people."""
        return self.store.name

    @property
    def address(self) -> str:
        """The first of the addresses, as a client dials it."""
        return str(self.addresses[0])

    @property
    def waits_for(self) -> str:
        """Why the service is not ready, in words for operators; '' if it is."""
        return self.readiness.waits_for

    def reload(self) -> None:
        """Reads the policy and the TLS files again soon; safe in a signal handler."""
        self.policy.reload()
        if self.certificate:
            self.certificate.reload()


@dataclass(frozen=True)
class _Parts:
    """What the service consists of before its server is built."""

    policy: PolicyFile
    certificate: tls.Credentials | None
    tenants: TenantRequirement
    source: Source
    store: Store
    health: Health
    chain: CallerChain
    tasks: TaskSupervisor
    drain_gate: DrainGate
    tokens: PageTokens
    purges: PurgeStats
    activity: ActivityStats
    erasures: ErasureRunner
    erasure_stats: ErasureStats
    responses: ResponseBudget
    watches: Watches
    retention: RetentionFile
    transfers: TransferStats
    tracer: "Tracer | None"


@asynccontextmanager
async def run_service(settings: Settings, worker: int | None = None) -> AsyncIterator[RunningService]:
    """Runs the whole service while the context is open; leaving it drains.

    Health is answered from the first moment, calls once the store is prepared. A database that cannot be
    reached is waited for; see `RunningService.waits_for`.

    Args:
        settings: Of the service.
        worker: The number of this process, if there are several.

    Raises:
        StartFailed: An address cannot be used.
        IdentityConfigError, PolicyConfigError, RetentionConfigError, TlsConfigError: A configured file cannot be used.
        DatabaseConfigError, MigrationFailed: Waiting would not help.
    """
    version_check.check()
    if glibc := find_glibc():
        limit_arenas(glibc)
    async with AsyncExitStack() as stack:
        parts = await _open_parts(settings, stack)
        conversations = _conversation_store(settings, parts)
        methods = _methods(settings, parts, conversations)
        transfers = _transfers(settings, parts, conversations)
        server = _build_server(
            settings, parts, methods, AccessServicer(conversations), transfers, _erasure_methods(parts)
        )
        addresses = _bind_all(server, settings, parts.certificate)
        edge = _build_edge(settings, parts, methods)
        readiness = Readiness(parts.store.database, partial(_prepare, settings, parts), parts.health)
        sources = _metric_sources(settings, parts, readiness, edge)
        exposing = metrics.expose_metrics(sources, worker or 0, parts.tasks, parts.health.probes())
        exposed = await stack.enter_async_context(exposing)
        http = edge.addresses if edge else ()
        served = RunningService(addresses, parts.store, parts.policy, readiness, exposed, parts.certificate, http)
        # Opened before the first call and closed after the last: operators can look while it waits and drains.
        await stack.enter_async_context(admin(settings, _process(parts, served, worker), parts.health))
        await server.start()
        others = [edge.listener] if edge else []
        stack.push_async_callback(drain, server, parts.health, parts.drain_gate, settings.grace_seconds, others)
        if edge:
            await edge.start()
        await readiness.start()
        for name, work in _background_work(settings, served, parts, worker, edge):
            await stack.enter_async_context(parts.tasks.running(name, work))
        _relax_garbage_collector()
        yield served


async def _open_parts(settings: Settings, stack: AsyncExitStack) -> _Parts:
    """Opens what calls need; ``stack`` closes it, in reverse."""
    poller = ChangeLogPoller()
    hub = ChangeHub(on_write=poller.note_write)

    def wake_watches() -> None:
        hub.wake_all()
        poller.wake_all()

    policy = PolicyFile(
        settings.policy_file,
        settings.attribute_names,
        anonymous=settings.identity == "none",
        on_change=wake_watches,
    )
    retention = RetentionFile(settings.retention_file)
    certificate = tls.load_credentials(settings)
    tracing = await stack.enter_async_context(instrumentation.instrument(tracing=settings.tracing))
    tasks, tenants = TaskSupervisor(), TenantRequirement(settings.proxy_require_tenant)
    source = await stack.enter_async_context(source_of(settings, tracing.tracer, tenants, tasks))
    auditing = (mark_interrupted_write,) if settings.audit_permits else ()
    store = await stack.enter_async_context(open_store(settings, (*tracing.statement_interceptors, *auditing), tasks))
    drain_gate, responses = DrainGate(wake_watches), ResponseBudget(settings.max_message_bytes)
    tokens, erasure_stats = PageTokens(), ErasureStats()
    return _Parts(
        policy=policy,
        certificate=certificate,
        tenants=tenants,
        source=source,
        store=store,
        health=await Health.create(SERVICES),
        chain=build_chain(
            settings, needs(*CONTRACT), drain_gate, source, policy.accesses, responses, tracing.interceptors
        ),
        tasks=tasks,
        drain_gate=drain_gate,
        tokens=tokens,
        purges=PurgeStats(),
        activity=ActivityStats(),
        erasures=ErasureRunner(store.url, settings.statement_timeout_seconds + 1, erasure_stats),
        erasure_stats=erasure_stats,
        responses=responses,
        watches=_watches(settings, store, hub, poller, tokens, drain_gate),
        retention=retention,
        transfers=TransferStats(),
        tracer=tracing.tracer,
    )


def _watches(
    settings: Settings,
    store: Store,
    hub: ChangeHub,
    poller: ChangeLogPoller,
    tokens: PageTokens,
    drain_gate: DrainGate,
) -> Watches:
    return Watches(
        ItemChanges(store.database),
        hub,
        ConversationChanges(store.database),
        poller,
        tokens,
        settings.watch_seconds,
        drain_gate.refusing,
    )


def _conversation_store(settings: Settings, parts: _Parts) -> ConversationStore:
    return ConversationStore(
        parts.store.database,
        settings.max_items_bytes,
        parts.watches.hub,
        settings.purge_after,
        activity=settings.activity,
    )


def _methods(settings: Settings, parts: _Parts, conversations: ConversationStore) -> ConversationsServicer:
    """Returns the methods of the contract, which every protocol calls."""
    items = ItemStore(parts.store.database, conversations, settings.max_items_bytes, parts.responses)
    batches = BatchBuilder(settings.max_item_bytes, settings.max_items_bytes)
    return ConversationsServicer(
        conversations,
        items,
        BulkDeleteStore(parts.store.database, conversations),
        ForkStore(parts.store.database, conversations),
        RewindStore(parts.store.database, conversations),
        parts.tokens,
        batches,
        parts.drain_gate.draining,
        parts.watches,
        parts.retention,
    )


def _transfers(settings: Settings, parts: _Parts, conversations: ConversationStore) -> TransferServicer:
    return build_transfers(
        settings,
        parts.store.database,
        conversations,
        parts.responses,
        parts.watches,
        parts.drain_gate.draining,
        parts.transfers,
        parts.retention,
    )


def _erasure_methods(parts: _Parts) -> ErasureServicer:
    return ErasureServicer(ErasureStore(parts.store.database), parts.erasures, parts.drain_gate.refusing)


def _build_edge(settings: Settings, parts: _Parts, methods: ConversationsServicer) -> HttpEdge | None:
    return build_edge(
        settings,
        methods,
        parts.chain,
        parts.drain_gate,
        parts.health,
        parts.responses,
        parts.certificate,
        parts.tracer,
    )


def _build_server(
    settings: Settings,
    parts: _Parts,
    methods: ConversationsServicer,
    access: AccessServicer,
    transfers: TransferServicer,
    erasure: ErasureServicer,
) -> grpc.aio.Server:
    """Returns the callers' server with the services of the contract, health, and reflection if it is on."""
    server = build_server(settings, parts.chain)
    health_pb2_grpc.add_HealthServicer_to_server(parts.health, server)
    add_unregistered(add_ConversationsServiceServicer_to_server, methods, server)
    add_unregistered(add_AccessServiceServicer_to_server, access, server)
    add_unregistered(add_TransferServiceServicer_to_server, transfers, server)
    add_unregistered(add_ErasureServiceServicer_to_server, erasure, server)
    if settings.reflection:
        reflect(server, SERVICES)
    return server


def _bind_all(server: grpc.aio.Server, settings: Settings, certificate: tls.Credentials | None) -> tuple[Address, ...]:
    """Binds the configured addresses; gRPC needs credentials of its own for each."""
    return tuple(bind(server, listen, certificate.for_address() if certificate else None) for listen in settings.listen)


async def _prepare(settings: Settings, parts: _Parts) -> None:
    """Prepares the store for calls, and lets them in; raises as `prepare_schema`."""
    parts.tokens.set_keys(await prepare_schema(settings, parts.store))
    if settings.identity == "proxy" and not parts.tenants.is_fixed and await has_tenants(parts.store.database):
        parts.tenants.note_tenant()
    parts.drain_gate.open()
    parts.erasures.wake()  # one may have been interrupted


def _metric_sources(settings: Settings, parts: _Parts, readiness: Readiness, edge: HttpEdge | None) -> Sources:
    return Sources(
        settings=settings,
        calls=parts.chain.observe,
        unary=parts.chain.fair_share,
        streams=parts.chain.stream_limit,
        watches=parts.chain.watch_limit,
        followed=parts.watches.hub,
        poller=parts.watches.poller,
        watch_stats=parts.watches.stats,
        transfers=parts.transfers,
        drain=parts.drain_gate,
        readiness=readiness,
        database=parts.store.database,
        policy=parts.policy,
        purges=parts.purges,
        activity=parts.activity,
        erasures=parts.erasure_stats,
        jwks=parts.source.jwks,
        certificate=parts.certificate,
        tasks=parts.tasks,
        requests=edge.edge.observe if edge else None,
        connections=edge.listener.connections if edge else None,
    )


def _process(parts: _Parts, served: RunningService, worker: int | None) -> Process:
    """Returns what the admin service shows and turns."""
    database = parts.store.database
    return Process(
        worker or 0, served.addresses, parts.drain_gate, served.readiness, database, parts.policy, served.reload
    )


def _background_work(
    settings: Settings, served: RunningService, parts: _Parts, worker: int | None, edge: HttpEdge | None
) -> Iterator[tuple[str, Work]]:
    """Yields what runs beside the calls: a name, and what starts it."""
    yield "readiness", served.readiness.run
    yield "release of connections", served.store.database.release_unused
    yield "policy", served.policy.watch
    yield "poll for watches", partial(parts.watches.hub.poll_forever, served.store.database)
    yield "poll of the change log", partial(parts.watches.poller.poll_forever, served.store.database)
    if served.certificate:
        yield "certificate", served.certificate.watch
        if edge:
            yield "certificate over HTTP", edge.listener.follow_certificate
    if glibc := find_glibc():
        yield "memory", partial(give_memory_back, glibc)
    yield "erasures", parts.erasures.run
    if not worker:
        database = served.store.database
        keeper = ActivityKeeper(served.store.url, parts.activity, lambda: database.usable)
        yield "activity", keeper.run if settings.activity else keeper.note_off
    if settings.purge_every_minutes and not worker:
        purge = (settings, served.store.url, parts.retention, parts.purges, parts.erasures.wake)
        yield "purge", partial(purge_periodically, *purge)
        yield "expiry", partial(mark_expired_periodically, served.store.url, parts.purges)


def _relax_garbage_collector() -> None:
    """Lets the garbage collector run seldom, and never over what was made at startup.

    Calls leave few cycles behind, and by default it runs after every 700 new objects (ADR 13).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
