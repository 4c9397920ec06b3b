"""The client of commands: options that name a running service, and the channel to it."""

import functools
import inspect
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import grpc
import typer

from server.errors import OperatorError
from server.settings.addresses import Address
from server.settings.environment import PREFIX, variable_of
from server.settings.service import Settings
from server.transport.certificates import PemFile, host_name, load_authorities, load_key_pair

DEFAULT_TARGET = "127.0.0.1:50051"
TOKEN = f"{PREFIX}TARGET_TOKEN"  # not an option: other users see the arguments of a process
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_PROBE_SECONDS = 2.0  # for a server on this machine to show its certificate


class TargetConfigError(OperatorError):
    """The options do not say how to connect; the text names the option at fault."""


def _option(name: str, help_text: str) -> Any:
    setting = "target" if name == "target" else f"target_{name.replace('-', '_')}"
    return typer.Option(f"--{name}", help=help_text, envvar=variable_of(setting))


@dataclass(frozen=True)
class Target:
    """A running service as options and variables describe it; all of them are optional."""

    target: Annotated[str | None, _option("target", f"Address of a running service. [{DEFAULT_TARGET}]")] = None
    tls: Annotated[bool, _option("tls", "Connect by TLS, with the CAs of this system.")] = False
    ca: Annotated[Path | None, _option("ca", "Connect by TLS, with the CAs in this PEM file.")] = None
    cert: Annotated[Path | None, _option("cert", "Client certificate, PEM; goes together with --key.")] = None
    key: Annotated[Path | None, _option("key", "Its private key, PEM.")] = None
    authority: Annotated[
        str | None, _option("authority", "Name in the server's certificate, if it is not the host's.")
    ] = None
    token_file: Annotated[
        Path | None, _option("token-file", f"File with a bearer token; {TOKEN} may hold one instead.")
    ] = None


def targeted(command: Callable[..., None]) -> Callable[..., None]:
    """Decorates a command that takes a `Target` as its parameter ``target`` with the options of `Target`."""
    signature, options = inspect.signature(command), inspect.signature(Target).parameters.values()
    own = [each for each in signature.parameters.values() if each.name != "target"]
    keyword_only = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *options)]

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        target = Target(**{each.name: given.pop(each.name) for each in fields(Target)})
        command(**given, target=target)

    with_options.__signature__ = signature.replace(parameters=keyword_only)  # type: ignore[attr-defined]
    with_options.__annotations__ = {each.name: each.annotation for each in keyword_only}
    return with_options


@dataclass(frozen=True)
class Connection:
    """What a channel is made of.

    Attributes:
        address: A target of gRPC: `host:port`, `unix:path`, `dns:///name` and others.
        roots: CAs, PEM; None for those of gRPC.
        client: Private key and certificate chain.
    """

    address: str
    roots: bytes | None = None
    client: tuple[bytes, bytes] | None = None
    tls: bool = False
    authority: str | None = None
    token: str | None = None

    def open(self) -> grpc.Channel:
        """Returns a channel, which connects at its first use."""
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # the command reports the error itself
        options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ]
        if name := self.authority or ("localhost" if _is_unix(self.address) else None):
            # Without it the path of a socket is sent as authority, which proxies refuse (grpc/grpc#38142).
            options.append(("grpc.default_authority", name))  # type: ignore[arg-type]
        if self.tls:
            credentials = grpc.ssl_channel_credentials(self.roots, *(self.client or ()))
            channel = grpc.secure_channel(self.address, credentials, options=options)
        else:
            channel = grpc.insecure_channel(self.address, options=options)
        return grpc.intercept_channel(channel, _Bearer(self.token)) if self.token else channel


def connection(target: Target) -> Connection:
    """Returns a connection to the service in the options, else to the default address.

    Raises:
        TargetConfigError, TlsConfigError: Options contradict each other, or a file cannot be used.
    """
    _check(target)
    address = target.target or DEFAULT_TARGET
    tls = target.tls or bool(target.ca or target.cert)
    if tls and _is_unix(address):
        raise TargetConfigError("--tls, --ca, --cert: TLS is not served on a Unix socket.")
    token = _token(target.token_file)
    if token and not tls and not _is_local(address):
        raise TargetConfigError("--token-file: a token leaves this machine by TLS only; give --ca or --tls.")
    roots = _roots(target) if tls else None
    return Connection(address, roots, _client(target), tls, target.authority, token)


def own_connection(settings: Settings, target: Target) -> Connection:
    """Returns a connection to the service that these settings start on this machine; options take precedence.

    A Unix socket is preferred: it needs nothing else. By TLS, whatever certificate
    is presented there is taken, as the kubelet does: files that were just replaced, or
    that the server refuses to take, say nothing of its health. So nothing secret is sent.

    Raises:
        TargetConfigError, TlsConfigError: The settings do not say how to connect, or nothing answers.
    """
    _check(target)
    address = next((each for each in settings.listen if each.is_unix), None) or _reachable(settings.listen[0])
    if address.is_unix or settings.tls_certificate is None:
        return Connection(str(address), authority=target.authority)
    if settings.tls_client_ca and not target.cert:
        target = replace(target, cert=settings.tls_certificate, key=settings.tls_key)
    client = _client(target)
    presented = _fetch_certificate(address, target)
    name = target.authority or host_name(presented)
    if name is None:
        raise TargetConfigError("--target: the server's certificate has no host name to check; name another address.")
    return Connection(str(address), _roots(target) if target.ca else presented, client, tls=True, authority=name)


def _check(target: Target) -> None:
    if (target.cert is None) != (target.key is None):
        raise TargetConfigError("--cert: goes together with --key.")


def _roots(target: Target) -> bytes | None:
    if target.ca:
        return load_authorities(PemFile("--ca", target.ca))
    system = ssl.get_default_verify_paths().cafile
    return Path(system).read_bytes() if system else None  # gRPC has a list of its own


def _client(target: Target) -> tuple[bytes, bytes] | None:
    if target.cert is None or target.key is None:
        return None
    ours = load_key_pair(PemFile("--cert", target.cert), PemFile("--key", target.key))
    return ours.key, ours.chain


def _token(file: Path | None) -> str | None:
    """Returns the token, without the line end that editors and `echo` add."""
    try:
        text = file.read_text(encoding="latin-1") if file else os.environ.get(TOKEN, "")
    except OSError as error:
        raise TargetConfigError(f"--token-file: the file cannot be read ({error.strerror}).") from None
    token = text.strip()
    if (file and not token) or not all("!" <= each <= "~" for each in token):
        raise TargetConfigError(f"--token-file, {TOKEN}: must hold one token, of printable ASCII.")
    return token or None


def _is_unix(target: str) -> bool:
    return target.startswith("unix:")


def _is_local(target: str) -> bool:
    """Returns whether a target is local; forms of gRPC other than addresses may lead anywhere."""
    try:
        return Address.parse(target).is_local
    except ValueError:
        return False


def _reachable(listen: Address) -> Address:
    """Returns an address that connects to a server which listens on ``listen``."""
    if listen.port == 0:
        raise TargetConfigError(f"--target: needed, for any port may be served ({variable_of('listen')}).")
    return Address("127.0.0.1", listen.port) if listen.is_wildcard else listen


def _fetch_certificate(address: Address, target: Target) -> bytes:
    """Returns the certificate that a server presents, without verifying it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if target.cert:
        context.load_cert_chain(target.cert, target.key)
    try:
        with (
            socket.create_connection((address.host, address.port), _PROBE_SECONDS) as plain,
            context.wrap_socket(plain) as secure,
        ):
            return ssl.DER_cert_to_PEM_cert(secure.getpeercert(binary_form=True) or b"").encode()
    except OSError as error:
        raise TargetConfigError(
            f"{address} does not answer by TLS ({error.strerror or type(error).__name__})."
        ) from None


class _CallDetails(NamedTuple):
    """The details of a call; gRPC accepts any object with these attributes."""

    method: str
    timeout: float | None
    metadata: list[tuple[str, str]]
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _Bearer(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Sends a token with each call."""

    def __init__(self, token: str) -> None:
        self._sent = ("authorization", f"Bearer {token}")

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Adds the token to the metadata."""
        return continuation(self._with_token(client_call_details), request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """As of unary calls."""
        return continuation(self._with_token(client_call_details), request)

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        """As of unary calls."""
        return continuation(self._with_token(client_call_details), request_iterator)

    def _with_token(self, told: Any) -> _CallDetails:
        metadata = [*(told.metadata or ()), self._sent]
        return _CallDetails(
            told.method, told.timeout, metadata, told.credentials, told.wait_for_ready, told.compression
        )
