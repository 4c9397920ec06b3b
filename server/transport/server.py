"""The gRPC server itself: its limits, reflection, its address, and how it ends."""

import socket
from collections.abc import Iterable
from pathlib import Path

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


def built(settings: Settings, chain: InterceptorChain) -> grpc.aio.Server:
    """A server with its limits, without services and addresses."""
    options = [
        # Without workers, a second server on the port would take half of its connections (traps §2.7).
        ("grpc.so_reuseport", int(settings.workers > 1)),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        # A token may have 8 KiB; between this and the absolute limit calls are refused by chance.
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes // 4 * 5),
        ("grpc.max_concurrent_streams", settings.max_calls_per_connection),
        ("grpc.max_connection_age_ms", _milliseconds(settings.connection_age_seconds)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(settings.connection_age_grace_seconds)),
        ("grpc.max_connection_idle_ms", _milliseconds(settings.connection_idle_seconds)),
        ("grpc.keepalive_time_ms", _milliseconds(settings.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", _milliseconds(settings.keepalive_timeout_seconds)),
        # What keepalive_timeout_ms promises happens by this one alone (ADR 15).
        ("grpc.http2.ping_timeout_ms", _milliseconds(settings.keepalive_timeout_seconds)),
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(settings.min_ping_interval_seconds)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.enable_channelz", int(bool(settings.admin_listen))),  # gRPC's default is yes, for nobody to look at
    ]
    return grpc.aio.server(interceptors=[chain], options=options)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def reflect(server: grpc.aio.Server, names: Iterable[str]) -> None:
    """Serves reflection of the services ``names`` and of health."""
    reflection.reflect(server, (*names, HEALTH))


def bind(server: grpc.aio.Server, listen: Address, credentials: grpc.ServerCredentials | None) -> Address:
    """The address in use; a Unix socket is guarded by its mode, and without TLS.

    Raises:
        StartFailed: It is taken, or not ours to use.
    """
    if listen.path:
        _clear_socket(listen.path)
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
