"""The one place where things are built, started and drained."""

import asyncio
import gc
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

import asyncpg
import grpc
import grpc.aio
import structlog
from conversations.v1 import access_service_pb2, conversations_service_pb2
from conversations.v1.access_service_pb2_grpc import add_AccessServiceServicer_to_server
from conversations.v1.conversations_service_pb2_grpc import add_ConversationsServiceServicer_to_server
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from server import tls, versions
from server.complaint import Complaint
from server.errors import Failure
from server.identity import source_of
from server.interceptors import interceptors
from server.interceptors.access import needs
from server.interceptors.running import Running
from server.paging import PageTokens
from server.policy_file import PolicyFile
from server.services.access import AccessQuestions
from server.services.admission import Admission
from server.services.conversations import Conversations
from server.serving import StartFailed, bind, drain, reflect
from server.serving import built as server_of
from server.settings import Settings
from server.store import schema
from server.store.conversations import ConversationStore
from server.store.database import Bounds, Database, connected
from server.store.embedded import default_data_dir, embedded
from server.store.items import ItemStore
from server.store.migrate import HEAD, migrate, revision
from server.store.purge import purge
from server.store.statement import compiled

log = structlog.get_logger(__name__)

CONTRACT = (conversations_service_pb2.DESCRIPTOR, access_service_pb2.DESCRIPTOR)
SERVICES = tuple(service.full_name for file in CONTRACT for service in file.services_by_name.values())
_SERVING = health_pb2.HealthCheckResponse.SERVING
_TOKEN_KEYS = compiled(schema.page_token_keys.select().order_by(schema.page_token_keys.c.id.desc()))


@dataclass(frozen=True)
class Store:
    """Where the data is: its address for connections of their own, what to call it, and the pool."""

    url: str
    name: str
    database: Database


@dataclass(frozen=True)
class Serving:
    """A server that accepts calls."""

    addresses: tuple[str, ...]  # with the port in use where 0 was asked for
    store: Store
    policy: PolicyFile

    @property
    def name(self) -> str:
        """Of the database, for people."""
        return self.store.name

    @property
    def address(self) -> str:
        """The first of the addresses."""
        return self.addresses[0]

    def reload(self) -> None:
        """Has the policy read again; safe in a signal handler."""
        self.policy.reload()


@asynccontextmanager
async def database_url(settings: Settings) -> AsyncIterator[tuple[str, str]]:
    """The database's address and its name for people; the private PostgreSQL runs as long as this is open."""
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
        yield url, f"PostgreSQL at {_without_password(url)}"
        return
    async with embedded(settings.data_dir or default_data_dir()) as private:
        how = "started" if private.started else "joined"
        yield private.url, f"private PostgreSQL {private.version} in {private.data_dir} ({how})"


@asynccontextmanager
async def prepared(settings: Settings) -> AsyncIterator[tuple[str, str]]:
    """As `database_url`, of a database that is fit for use and its schema up to date."""
    async with database_url(settings) as (url, name):
        async with _pool(settings, url, 1):
            await _up_to_date(url, migrating=settings.migrate)
        yield url, name


@asynccontextmanager
async def opened(settings: Settings, *, is_prepared: bool = False) -> AsyncIterator[Store]:
    """The store, its schema up to date."""
    async with database_url(settings) as (url, name), _pool(settings, url, settings.pool_size) as database:
        if not is_prepared:
            await _up_to_date(url, migrating=settings.migrate)
        yield Store(url, name, database)


def _pool(settings: Settings, url: str, size: int) -> AbstractAsyncContextManager[Database]:
    """The pool for calls, by way of PgBouncer if there is one."""
    bounds, lax = Bounds(statement=settings.statement_timeout_seconds), settings.unsafe_durability
    if settings.pgbouncer_url is None:
        return connected(url, size, bounds, unsafe_durability=lax)
    return connected(settings.pgbouncer_url.get_secret_value(), size, bounds, unsafe_durability=lax, bounced=True)


@asynccontextmanager
async def serving(settings: Settings, worker: int | None = None) -> AsyncIterator[Serving]:
    """The whole service; leaving drains it.

    ``worker``: which of several processes this is; their parent has prepared the
    database. A later start must not look at the schema again: it may be newer by
    then, and works (traps §4.7).

    Raises:
        StartFailed: With what to do about it.
        IdentityUnfit, PolicyUnfit, TlsUnfit: A configured file cannot be used.
    """
    versions.check()
    async with AsyncExitStack() as stack:
        anonymous = settings.identity == "none"
        policy = PolicyFile(settings.policy_file, settings.attribute_names, anonymous=anonymous)
        credentials = tls.credentials_of(settings)
        source = await stack.enter_async_context(source_of(settings))
        store = await stack.enter_async_context(opened(settings, is_prepared=worker is not None))
        running, check = Running(), health.HealthServicer()
        chain = interceptors(settings, needs(*CONTRACT), running, source, policy.accesses)
        server = server_of(settings, chain)
        health_pb2_grpc.add_HealthServicer_to_server(check, server)
        await _add_services(server, settings, store.database, running)
        addresses = tuple(bind(server, listen, credentials) for listen in settings.listen)
        await server.start()
        stack.push_async_callback(drain, server, check, running, settings.grace_seconds)
        for name in ("", *SERVICES):
            await check.set(name, _SERVING)
        await stack.enter_async_context(_meanwhile(policy.watch()))
        if settings.purge_every_minutes and not worker:
            await stack.enter_async_context(_meanwhile(_purge_for_ever(settings, store.url)))
        _keep_collector_off()
        yield Serving(addresses, store, policy)


async def _add_services(server: grpc.aio.Server, settings: Settings, database: Database, running: Running) -> None:
    """The services of the contract on a database, and reflection of them."""
    keys = await database.fetch(_TOKEN_KEYS, {})
    tokens = PageTokens([row["secret"] for row in keys])
    conversations = ConversationStore(database)
    items = ItemStore(database, conversations, settings.max_items_bytes)
    admission = Admission(settings.max_item_bytes, settings.max_items_bytes)
    methods = Conversations(conversations, items, tokens, admission, running.draining)
    add_ConversationsServiceServicer_to_server(methods, server)
    add_AccessServiceServicer_to_server(AccessQuestions(conversations), server)
    if settings.reflection:
        reflect(server, SERVICES)


async def _up_to_date(url: str, *, migrating: bool) -> None:
    if migrating:
        if await migrate(url):
            log.info("database schema brought up to date", revision=HEAD)
    elif (found := await revision(url)) != HEAD:
        raise StartFailed(
            f"The database schema is at {found or 'nothing'}, not {HEAD}: run `python -m server migrate`."
        )


@asynccontextmanager
async def _meanwhile(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Does ``work`` while this is open."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _purge_for_ever(settings: Settings, url: str) -> None:
    while True:
        await asyncio.sleep(settings.purge_every_minutes * 60)
        try:
            purged = await purge(url, settings.purge_after)
        except (Failure, Complaint, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            log.warning("purge failed", error=type(error).__name__)
        else:
            log.info("purged", **vars(purged) if purged else {"skipped": "another process is at it"})


def _without_password(url: str) -> str:
    """Host and database of a URL; credentials and parameters stay unsaid."""
    rest = url.partition("://")[2]
    return rest.rpartition("@")[2].partition("?")[0] or "the default socket"


def _keep_collector_off() -> None:
    """Lets the garbage collector look seldom, and not at what was made at start.

    Calls leave few cycles behind; by default it looks at every 700 objects (ADR 13).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
