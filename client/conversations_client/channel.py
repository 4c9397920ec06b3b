"""Connections to the service, with its service config."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.resources import files
from ipaddress import ip_address
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import grpc
import grpc.aio
from conversations.v1.access_service_pb2_grpc import AccessServiceStub
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from conversations.v1.erasure_service_pb2_grpc import ErasureServiceStub
from conversations.v1.transfer_service_pb2_grpc import TransferServiceStub

from conversations_client.token import BearerToken, bearer_interceptors, call_credentials

if TYPE_CHECKING:
    from conversations.v1.access_service_pb2_grpc import AccessServiceAsyncStub
    from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceAsyncStub
    from conversations.v1.erasure_service_pb2_grpc import ErasureServiceAsyncStub
    from conversations.v1.transfer_service_pb2_grpc import TransferServiceAsyncStub

Options = Sequence[tuple[str, str | int]]

_MAX_MESSAGE_BYTES = 32 * 1024 * 1024  # more than a server sends by default; gRPC takes at most 4 MiB by default
_ALL_CALLS = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.per_rpc_retry_buffer_size", _MAX_MESSAGE_BYTES),  # larger requests are not retried; 256 KiB by default
)
# Watches have a connection of their own, are resumed by token instead of retried, and look for a lost server often.
_WATCHES = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


@dataclass(frozen=True)
class Tls:
    """How to connect by TLS.

    Attributes:
        ca: Certificates of the authorities that may have issued the server's, PEM; None for those that gRPC brings.
        certificate: The client's own certificate chain, PEM, for a server with `identity=mtls`.
        key: Its private key, PEM.
        server_name: The name in the server's certificate, if it is not the host of the target.
    """

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC makes of them."""
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)


class Client:
    """The stubs of a service. It connects at the first call, and closes its connections when its context ends.

    Attributes:
        conversations: For all calls but watches.
        watches: The same service on a connection of its own, which takes at most 100 watches.
        access: What the caller may do.
        transfers: Exports and imports conversations, on the connection of the watches: they are resumed as well.
        erasures: Removes all that belongs to a person, for operators.
    """

    def __init__(self, calls: grpc.aio.Channel, watches: grpc.aio.Channel) -> None:
        self._channels = (calls, watches)
        self.conversations: ConversationsServiceAsyncStub = ConversationsServiceStub(calls)
        self.watches: ConversationsServiceAsyncStub = ConversationsServiceStub(watches)
        self.access: AccessServiceAsyncStub = AccessServiceStub(calls)
        self.transfers: TransferServiceAsyncStub = TransferServiceStub(watches)
        self.erasures: ErasureServiceAsyncStub = ErasureServiceStub(calls)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections; calls that run are cancelled."""
        async with AsyncExitStack() as stack:
            for channel in self._channels:
                stack.push_async_callback(channel.close)


def connect(target: str, *, tls: Tls | None = None, token: BearerToken | None = None, options: Options = ()) -> Client:
    """Returns a client of the service at ``target``; call it in a running event loop.

    Args:
        target: Of gRPC: `host:port`, `dns:///name:port`, `unix:/path` and others.
        tls: None for a connection without TLS.
        token: Sent with each call.
        options: Of the channels; they replace those that the client sets.

    Raises:
        ValueError: A token would leave this machine without TLS.
    """
    if token and not tls and not _is_local(target):
        raise ValueError("a token leaves this machine by TLS only")
    calls = _open(target, tls, token, (*_ALL_CALLS, *options))
    return Client(calls, _open(target, tls, token, (*_ALL_CALLS, *_WATCHES, *options)))


def service_config() -> str:
    """The service config that the channels have, as JSON (docs/clients.md says what it does)."""
    return (files(__package__) / "service_config.json").read_text(encoding="utf-8")


def _open(target: str, tls: Tls | None, token: BearerToken | None, options: Options) -> grpc.aio.Channel:
    defaults: dict[str, str | int] = {"grpc.service_config": service_config()}
    if target.startswith("unix:"):
        defaults["grpc.default_authority"] = "localhost"  # the default is the path, which is not a host name
    if tls and tls.server_name:
        defaults["grpc.ssl_target_name_override"] = defaults["grpc.default_authority"] = tls.server_name
    chosen = list({**defaults, **dict(options)}.items())
    if tls is None:
        return grpc.aio.insecure_channel(target, chosen, interceptors=bearer_interceptors(token) if token else None)
    credentials = tls.credentials()
    if token:
        credentials = grpc.composite_channel_credentials(credentials, call_credentials(token))
    return grpc.aio.secure_channel(target, credentials, chosen)


def _is_local(target: str) -> bool:
    """Whether a target is a Unix socket or a loopback address; a name that is resolved may lead anywhere."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    try:
        host = urlsplit(f"//{target}").hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
