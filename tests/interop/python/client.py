"""Connections with a service config, and the details of errors."""

from pathlib import Path

import grpc.aio
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

DOMAIN = "conversations.v1"
_MAX_MESSAGE_BYTES = 32 * 1024 * 1024  # limit of the server; Python receives at most 4 MiB by default
# Watches have a connection of their own, are resumed by token instead of retried, and look for a lost server often.
_WATCHING = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


def connect(target: str, service_config: Path) -> grpc.aio.Channel:
    """A channel for all calls but watches."""
    return _channel(target, service_config, [])


def connect_for_watches(target: str, service_config: Path) -> grpc.aio.Channel:
    """A channel for at most 100 watches."""
    return _channel(target, service_config, _WATCHING)


def _channel(target: str, service_config: Path, more: list[tuple[str, int]]) -> grpc.aio.Channel:
    options: list[tuple[str, str | int]] = [
        ("grpc.service_config", service_config.read_text(encoding="utf-8")),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.per_rpc_retry_buffer_size", _MAX_MESSAGE_BYTES),  # larger requests are not retried; 256 KiB by default
        *more,
    ]
    if target.startswith("unix:"):
        options.append(("grpc.default_authority", "localhost"))  # the default is the path, which is not a host name
    return grpc.aio.insecure_channel(target, options=options)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """What programs branch on; messages are for people and may change."""
    info = ErrorInfo()
    return info.reason if _unpack(error, info) and info.domain == DOMAIN else ""


def invalid_fields(error: grpc.aio.AioRpcError) -> set[str]:
    """The paths of the fields that an error is about."""
    found = BadRequest()
    _unpack(error, found)
    return {violation.field for violation in found.field_violations}


def _unpack(error: grpc.aio.AioRpcError, into: Message) -> bool:
    """Reads the detail of this type; an error has at most one of each."""
    encoded = error.trailing_metadata().get("grpc-status-details-bin", b"")
    return any(detail.Unpack(into) for detail in Status.FromString(encoded).details)


def check_failure(error: grpc.aio.AioRpcError, code: StatusCode, reason: str) -> None:
    """Fails unless an error has this code and this reason."""
    assert (code, reason) == (error.code(), reason_of(error)), error
