"""How a command of the command line reaches a service: the options that say so, and the channel they make."""

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
TOKEN = f"{PREFIX}TARGET_TOKEN"  # no option takes a token: what runs, and with what, is seen by all
_LARGEST = 64 * 1024 * 1024  # bytes of a message
_PROBE_SECONDS = 2.0  # for a server on this machine to show its certificate


class TargetConfigError(OperatorError):
    """It cannot be said how to connect; the text names the option."""


def _option(name: str, help_text: str) -> Any:
    setting = "target" if name == "target" else f"target_{name.replace('-', '_')}"
    return typer.Option(f"--{name}", help=help_text, envvar=variable_of(setting))


@dataclass(frozen=True)
class Target:
    """A running service, as the options and variables say; all of them may be left out."""

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
    """Gives a command the options of `Target`, which it takes as one parameter, ``target``."""
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
    """What a channel is made of."""

    address: str  # a target in gRPC's own words: `host:port`, `unix:path`, `dns:///name` and others
    roots: bytes | None = None  # None, with TLS: those of the system
    client: tuple[bytes, bytes] | None = None  # private key and certificate chain
    tls: bool = False
    authority: str | None = None
    token: str | None = None

    def open(self) -> grpc.Channel:
        """A channel, which connects when it is used."""
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what fails is told once, by the command
        options = [("grpc.max_receive_message_length", _LARGEST), ("grpc.max_send_message_length", _LARGEST)]
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
    """To the service that the options say, else to the default address.

    Raises:
        TargetConfigError, TlsConfigError: An option cannot be meant, or its file not be used.
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
    """To the service that these settings start, on this machine; options replace what follows from them.

    A Unix socket is preferred: it needs nothing else. By TLS, whatever certificate
    is shown there is taken, as the kubelet does: files that were just replaced, or
    that the server refuses to take, say nothing of its health. So nothing secret is sent.

    Raises:
        TargetConfigError, TlsConfigError: It cannot be told how, or nobody is there.
    """
    _check(target)
    address = next((each for each in settings.listen if each.is_unix), None) or _reachable(settings.listen[0])
    if address.is_unix or settings.tls_certificate is None:
        return Connection(str(address), authority=target.authority)
    if settings.tls_client_ca and not target.cert:
        target = replace(target, cert=settings.tls_certificate, key=settings.tls_key)
    client = _client(target)
    shown = _shown(address, target)
    name = target.authority or host_name(shown)
    if name is None:
        raise TargetConfigError("--target: the server's certificate has no host name to check; name another address.")
    return Connection(str(address), _roots(target) if target.ca else shown, client, tls=True, authority=name)


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
    """The token, without the end of line that editors and `echo` add."""
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
    """Whether only this machine can reach a target; gRPC knows forms that are no address, which may lead anywhere."""
    try:
        return Address.parse(target).is_local
    except ValueError:
        return False


def _reachable(listen: Address) -> Address:
    """An address that connects to what listens on ``listen``."""
    if listen.port == 0:
        raise TargetConfigError(f"--target: needed, for any port may be served ({variable_of('listen')}).")
    return Address("127.0.0.1", listen.port) if listen.is_wildcard else listen


def _shown(address: Address, target: Target) -> bytes:
    """The certificate that is served there, unchecked."""
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


class _Call(NamedTuple):
    """What an interceptor says of a call: gRPC takes anything with these names."""

    method: str
    timeout: float | None
    metadata: list[tuple[str, str]]
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _Bearer(grpc.UnaryUnaryClientInterceptor):
    """Sends a token with each call; all that commands make are unary."""

    def __init__(self, token: str) -> None:
        self._sent = ("authorization", f"Bearer {token}")

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """As gRPC has it."""
        told = client_call_details
        metadata = [*(told.metadata or ()), self._sent]
        call = _Call(told.method, told.timeout, metadata, told.credentials, told.wait_for_ready, told.compression)
        return continuation(call, request)
