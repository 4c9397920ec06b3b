"""The one place where things are built, started and drained."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import grpc
import grpc.aio
import structlog
from conversations.v1 import conversations_service_pb2 as pb
from conversations.v1.conversations_service_pb2_grpc import add_ConversationsServiceServicer_to_server
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION
from grpc_reflection.v1alpha.reflection import aio as reflection

from server import versions
from server.complaint import Complaint
from server.interceptors import interceptors
from server.interceptors.access import needs
from server.interceptors.running import Running
from server.paging import PageTokens
from server.services.admission import Admission
from server.services.conversations import Conversations
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

SERVICE = pb.DESCRIPTOR.services_by_name["ConversationsService"].full_name
_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"  # grpcurl asks it first; the package serves v1alpha only
_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
_REFUSAL_SECONDS = 0.25  # shorter than the pushback of ShuttingDown
_TOKEN_KEYS = compiled(schema.page_token_keys.select().order_by(schema.page_token_keys.c.id.desc()))


class StartFailed(Complaint):
    """The service cannot start; the text is for the operator."""


@dataclass(frozen=True)
class Store:
    """Where the data is: its address for connections of their own, what to call it, and the pool."""

    url: str
    name: str
    database: Database


@dataclass(frozen=True)
class Serving:
    """A server that accepts calls."""

    address: str  # with the port in use when 0 was asked for
    store: Store


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
async def opened(settings: Settings) -> AsyncIterator[Store]:
    """The store, its schema up to date."""
    bounds = Bounds(statement=settings.statement_timeout_seconds)
    async with (
        database_url(settings) as (url, name),
        connected(url, settings.pool_size, bounds, unsafe_durability=settings.unsafe_durability) as database,
    ):
        await _up_to_date(url, migrating=settings.migrate)
        yield Store(url, name, database)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Serving]:
    """The whole service; leaving drains it.

    Raises:
        StartFailed: With what to do about it.
    """
    versions.check()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(opened(settings))
        running, check = Running(), health.HealthServicer()
        server = _server(settings, running)
        _add_services(server, settings, check, await _service(settings, store.database))
        address = _bind(server, settings.listen)
        await server.start()
        stack.push_async_callback(_drain, server, check, running, settings.grace_seconds)
        for name in ("", SERVICE):
            await check.set(name, _SERVING)
        await stack.enter_async_context(_purging(settings, store.url))
        yield Serving(address, store)


def conversations_service(database: Database, tokens: PageTokens, settings: Settings) -> Conversations:
    """The servicer on a database."""
    conversations = ConversationStore(database)
    admission = Admission(settings.max_item_bytes, settings.max_items_bytes)
    items = ItemStore(database, conversations, settings.max_items_bytes)
    return Conversations(conversations, items, tokens, admission)


async def _service(settings: Settings, database: Database) -> Conversations:
    keys = await database.fetch(_TOKEN_KEYS, {})
    return conversations_service(database, PageTokens([row["secret"] for row in keys]), settings)


async def _up_to_date(url: str, *, migrating: bool) -> None:
    if migrating:
        if await migrate(url):
            log.info("database schema brought up to date", revision=HEAD)
    elif (found := await revision(url)) != HEAD:
        raise StartFailed(
            f"The database schema is at {found or 'nothing'}, not {HEAD}: run `python -m server migrate`."
        )


def _server(settings: Settings, running: Running) -> grpc.aio.Server:
    options = [
        ("grpc.so_reuseport", 0),  # else a second server on the port takes half of its connections (traps §2.7)
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_concurrent_streams", 100),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    chain = interceptors(settings, needs(pb.DESCRIPTOR), running)
    return grpc.aio.server(interceptors=chain, options=options)


def _add_services(
    server: grpc.aio.Server, settings: Settings, check: health.HealthServicer, service: Conversations
) -> None:
    add_ConversationsServiceServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(check, server)
    if settings.reflection:
        names = (SERVICE, HEALTH, REFLECTION, _REFLECTION_V1)
        servicer = reflection.ReflectionServicer(names)
        for name in (REFLECTION, _REFLECTION_V1):
            server.add_generic_rpc_handlers((_reflection_handler(name, servicer),))


def _reflection_handler(name: str, servicer: reflection.ReflectionServicer) -> grpc.GenericRpcHandler:
    """Reflection under ``name``: the messages of v1 and v1alpha are the same on the wire."""
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler})


def _bind(server: grpc.aio.Server, listen: str) -> str:
    """The address in use.

    Raises:
        StartFailed: It is taken, or not ours to use.
    """
    if listen.startswith("unix:"):
        _clear_socket(Path(listen.removeprefix("unix:")))
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise StartFailed(f"Cannot listen on {listen}: the address is taken or not allowed.") from error
    if listen.startswith("unix:"):
        Path(listen.removeprefix("unix:")).chmod(0o660)  # a sidecar of the same group connects (traps §2.20)
        return listen
    return f"{listen.rpartition(':')[0]}:{port}"


def _clear_socket(path: Path) -> None:
    """Removes the socket of a process that is gone.

    Raises:
        StartFailed: Its process lives: gRPC would take the address from it.
    """
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise StartFailed(f"Cannot listen on unix:{path}: another process serves it.")


async def _drain(server: grpc.aio.Server, check: health.HealthServicer, running: Running, grace: float) -> None:
    """No new calls, then the end of the running ones, before the pool closes.

    `stop` fails calls it has received but not started with CANCELLED, which no
    client retries; so new ones are refused as UNAVAILABLE for a while first
    (traps §2.3).
    """
    await check.enter_graceful_shutdown()
    running.refuse()
    await asyncio.sleep(_REFUSAL_SECONDS)
    await server.stop(grace)
    if not await running.ended(seconds=2):
        log.warning("calls were still running at the end")


@asynccontextmanager
async def _purging(settings: Settings, url: str) -> AsyncIterator[None]:
    """Purges every now and then while this is open."""
    if not settings.purge_every_minutes:
        yield
        return
    task = asyncio.create_task(_purge_for_ever(settings, url), name="purge")
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
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            log.warning("purge failed", error=type(error).__name__)
        else:
            log.info("purged", **vars(purged) if purged else {"skipped": "another process is at it"})


def _without_password(url: str) -> str:
    """Host and database of a URL; credentials and parameters stay unsaid."""
    rest = url.partition("://")[2]
    return rest.rpartition("@")[2].partition("?")[0] or "the default socket"
