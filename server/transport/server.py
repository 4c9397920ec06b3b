"""The gRPC server: its limits, its addresses and reflection."""

import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import structlog
from grpc_health.v1.health import SERVICE_NAME as HEALTH

from server.errors import StartFailed, cannot_listen
from server.interceptors.chain import InterceptorChain
from server.settings.addresses import Address
from server.settings.service import Settings
from server.transport import reflection

log = structlog.get_logger(__name__)


_PENDING_CALLS = 3  # times as many as may run may wait for the process, without which a burst would be refused
_LEAST_PENDING = 128  # however few may run
_IDENTITY, _ALL = 0b1, 0b111  # compression algorithms: none; none, deflate and gzip
_UNREAD_BYTES = 64 * 1024  # of each call


def build_server(settings: Settings, chain: InterceptorChain) -> grpc.aio.Server:
    """Returns a server with its limits, without services and addresses."""
    pending = max(_LEAST_PENDING, _PENDING_CALLS * settings.calls_limit)
    options = [
        # On by default: a second server on the port would start, and take half of the connections.
        ("grpc.so_reuseport", int(settings.workers > 1)),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        # A token may have 8 KiB. Between this and the absolute limit gRPC refuses calls at random.
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes // 4 * 5),
        # Calls that wait for this process to take them. Between the two limits gRPC would cancel calls at random, also
        # in a short burst. A longer queue would hold calls until their deadlines have passed (docs/adr/0025).
        ("grpc.server.max_pending_requests", pending),
        ("grpc.server.max_pending_requests_hard_limit", pending),
        # Of a request that nobody reads yet; 4 MiB by default. The rest of it may come once it is read.
        ("grpc.http2.lookahead_bytes", _UNREAD_BYTES),
        ("grpc.compression_enabled_algorithms_bitset", _ALL if settings.compressed_requests else _IDENTITY),
        ("grpc.http2.bdp_probe", 0),  # would raise it again
        ("grpc.max_concurrent_streams", settings.max_calls_per_connection),
        ("grpc.max_connection_age_ms", _milliseconds(settings.connection_age_seconds)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(settings.connection_age_grace_seconds)),
        ("grpc.max_connection_idle_ms", _milliseconds(settings.connection_idle_seconds)),
        ("grpc.keepalive_time_ms", _milliseconds(settings.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", _milliseconds(settings.keepalive_timeout_seconds)),
        # keepalive_timeout_ms has no effect without this one (docs/adr/0016).
        ("grpc.http2.ping_timeout_ms", _milliseconds(settings.keepalive_timeout_seconds)),
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(settings.min_ping_interval_seconds)),
        ("grpc.keepalive_permit_without_calls", 1),
        (
            "grpc.enable_channelz",
            int(bool(settings.admin_listen)),
        ),  # on by default, though only the admin address shows it
    ]
    return grpc.aio.server(interceptors=[chain], options=options)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def add_unregistered(add: Callable[[Any, Any], None], servicer: object, server: grpc.aio.Server) -> None:
    """Adds a service without registering its methods with gRPC.

    gRPC keeps a queue for each registered method and one for all others. Health is registered, so its calls do not
    wait behind those of the contract. grpc.aio also keeps a task for each registered method, and visits all of these
    tasks at every call.

    Args:
        add: The generated function, such as `add_ConversationsServiceServicer_to_server`.
        servicer: Its first argument.
        server: Not started yet.
    """
    add(servicer, _GenericOnly(server))


class _GenericOnly:
    """What generated code sees of a server; it adds each handler twice, as a generic and as a registered one."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, _service: str, _handlers: object) -> None:
        """Leaves the generic handlers to answer."""


def reflect(server: grpc.aio.Server, names: Iterable[str]) -> None:
    """Adds reflection of the services ``names`` and of health."""
    reflection.reflect(server, (*names, HEALTH))


def bind(server: grpc.aio.Server, listen: Address, credentials: grpc.ServerCredentials | None) -> Address:
    """Binds an address, and returns it with the port in use.

    Args:
        server: Not started yet.
        listen: Port 0 takes any free one.
        credentials: For TLS. A Unix socket is served without, to its owner and group.

    Raises:
        StartFailed: The address is taken or not allowed.
    """
    if listen.path:
        clear_socket(listen.path)
    try:
        if credentials is None or listen.is_unix:
            port = server.add_insecure_port(str(listen))
        else:
            port = server.add_secure_port(str(listen), credentials)
    except RuntimeError as error:
        raise cannot_listen(str(listen)) from error
    if listen.path:
        listen.path.chmod(0o660)  # for a sidecar of the same group; gRPC makes the socket by the umask
        return listen
    return listen.with_port(port)


def clear_socket(path: Path) -> None:
    """Removes the socket of a process that has ended.

    Raises:
        StartFailed: A process serves it; binding the path again would take the address away from that process.
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
