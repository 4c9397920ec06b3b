"""TLS: what is refused, what new files change, and how commands connect."""

import asyncio
import re
import signal
import socket
import ssl
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc.aio
import pytest
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from structlog.testing import capture_logs

from server.app.service import run_service
from server.cli.client import Target, own_connection
from server.settings.addresses import Address
from server.settings.service import load
from server.transport import tls
from server.transport.certificates import PemFile, host_name
from server.transport.server import bind
from server.transport.tls import Credentials, TlsConfigError
from tests.support.build import create
from tests.support.certificates import CA, HOUR, OTHER_CA, TlsFiles, private_key_pem
from tests.support.commands import error_line_of, output_of, server_process
from tests.support.jwt import ISSUER_KEY, jwk_set, jwt_settings, token
from tests.support.postgres import fresh_database
from tests.support.service import Service

SERVING = health_pb2.HealthCheckResponse.SERVING
# gRPC says nothing to whom it refuses, and closes the connection; a newer one may send the alert.
BY_THE_SERVER = re.compile("^UNEXPECTED_EOF_WHILE_READING$|^ConnectionResetError$|_ALERT_(PROTOCOL|HANDSHAKE)_")
NO_TLS = (ssl.SSLError, ConnectionError, EOFError)


# -- certificates


RSA_KEY = rsa.generate_private_key(65537, 2048)


@pytest.fixture(autouse=True)
def short_period(monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers of these tests look at their files twenty times a second; processes of their own do not."""
    monkeypatch.setattr(tls, "_POLL_SECONDS", 0.05)


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    """A pair named `old`."""
    return TlsFiles(tmp_path).put(*CA.issue("old"))


@asynccontextmanager
async def served(credentials: Credentials, count: int = 1) -> AsyncIterator[list[str]]:
    """Addresses that serve health with them, and the watch."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    check = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(check, server)
    addresses = [str(bind(server, Address("127.0.0.1", 0), credentials.for_address())) for _ in range(count)]
    await server.start()
    await check.set("", SERVING)
    watch = asyncio.create_task(credentials.watch())
    try:
        yield addresses
    finally:
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
        await server.stop(None)


# -- a client of any kind


def context(*, alpn: tuple[str, ...] = ("h2",), client: tuple[bytes, bytes] | None = None) -> ssl.SSLContext:
    """Of a client that trusts everybody."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    if alpn:
        made.set_alpn_protocols(list(alpn))
    if client:
        with TemporaryDirectory() as name:
            _load(made, TlsFiles(Path(name)).put(*client))
    return made


def _load(made: ssl.SSLContext, files: TlsFiles) -> None:
    made.load_cert_chain(files.path("tls_certificate"), files.path("tls_key"))


def only(made: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    """With this version and no other, however weak."""
    made.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        made.minimum_version = made.maximum_version = version
    return made


@dataclass(frozen=True)
class Greeting:
    """A server that speaks HTTP/2 with us."""

    version: str | None
    name: str  # in its certificate


def _greet(address: str, client: ssl.SSLContext) -> Greeting:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 5) as plain, client.wrap_socket(plain) as secure:
        secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        answer = secure.recv(9)  # TLS 1.3 refuses a client's certificate only here
        if answer[3:4] != b"\x04":
            raise EOFError("no SETTINGS")
        shown = x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")
        return Greeting(secure.version(), str(shown.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value))


async def greeting(address: str, client: ssl.SSLContext | None = None) -> Greeting:
    """The server's, if it lets the client in."""
    return await asyncio.to_thread(_greet, address, client or context())


async def refusal(address: str, client: ssl.SSLContext) -> str:
    """Why the server does not let it in."""
    with pytest.raises(NO_TLS) as caught:
        await greeting(address, client)
    return str(getattr(caught.value, "reason", None) or type(caught.value).__name__)


async def _is_let_in_by_others(client: ssl.SSLContext) -> bool:
    """Whether a server without any rule takes it: then it is not the client that refuses."""
    lax = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with TemporaryDirectory() as name:
        _load(lax, TlsFiles(Path(name)).put(*CA.issue("lax", RSA_KEY)))
    lax.set_ciphers("ALL:eNULL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        lax.minimum_version = ssl.TLSVersion.TLSv1

    def shake(port: int) -> bool:
        with socket.create_connection(("127.0.0.1", port), 5) as plain, client.wrap_socket(plain):
            return True

    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=lax)
    async with server:
        return await asyncio.to_thread(shake, server.sockets[0].getsockname()[1])


# -- what is refused


@pytest.fixture(scope="module")
async def strict(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """A server with an RSA key, as most ciphers need."""
    files = TlsFiles(tmp_path_factory.mktemp("strict")).put(*CA.issue("strict", RSA_KEY))
    async with served(files.credentials()) as (address,):
        yield address


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
async def test_old_versions_are_refused(strict: str, version: str) -> None:
    """By the server: the same client is welcome where such versions are."""
    client = only(context(), ssl.TLSVersion[version])
    assert await _is_let_in_by_others(client)
    assert BY_THE_SERVER.search(await refusal(strict, client))


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
async def test_versions_of_today(strict: str, version: str) -> None:
    """Each of the two is served."""
    client = only(context(), ssl.TLSVersion[version])
    assert version.replace("_", ".") == (await greeting(strict, client)).version


WEAK = {
    "no forward secrecy": "AES256-GCM-SHA384",
    "neither, and CBC": "AES128-SHA",
    "CBC": "ECDHE-RSA-AES128-SHA",
    "CBC with SHA-2": "ECDHE-RSA-AES256-SHA384",
    "no encryption": "NULL-SHA256",
    "nobody's certificate": "AECDH-AES128-SHA",
}


@pytest.mark.parametrize("name", WEAK)
async def test_weak_ciphers_are_refused(strict: str, name: str) -> None:
    """By the server: the same client is welcome where such ciphers are."""
    client = only(context(), ssl.TLSVersion.TLSv1_2)
    client.set_ciphers(f"{WEAK[name]}:@SECLEVEL=0")
    assert await _is_let_in_by_others(client)
    assert BY_THE_SERVER.search(await refusal(strict, client))


@pytest.mark.parametrize("ciphers", ["ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES256-GCM-SHA384"])
async def test_good_ciphers(strict: str, ciphers: str) -> None:
    """Forward secrecy and authenticated encryption are served."""
    client = only(context(), ssl.TLSVersion.TLSv1_2)
    client.set_ciphers(ciphers)
    assert "strict" == (await greeting(strict, client)).name


@pytest.mark.parametrize("alpn", [(), ("http/1.1",)], ids=["none", "http/1.1"])
@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
async def test_only_h2_is_spoken(strict: str, alpn: tuple[str, ...], version: str) -> None:
    """A client that has not agreed on HTTP/2 is sent away."""
    assert await refusal(strict, only(context(alpn=alpn), ssl.TLSVersion[version]))
    assert await greeting(strict, only(context(alpn=(*alpn, "h2")), ssl.TLSVersion[version]))


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
async def test_client_certificates(files: TlsFiles, version: str) -> None:
    """Only one of the CA gets in, and only while it is valid."""
    files.path("tls_client_ca").write_bytes(CA.pem)
    async with served(files.credentials()) as (address,):
        strangers = [None, OTHER_CA.issue("client"), CA.issue("client", left=-HOUR)]
        for client in strangers:
            assert await refusal(address, only(context(client=client), ssl.TLSVersion[version]))
        assert await greeting(address, only(context(client=CA.issue("client")), ssl.TLSVersion[version]))


# -- new files


async def eventually(holds: Callable[[], bool], seconds: float = 4.0) -> bool:
    """Whether it does within that time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not holds():  # noqa: ASYNC110 - what is waited for knows nothing of us
                await asyncio.sleep(0.02)
    return holds()


async def check(channel: grpc.aio.Channel) -> Any:
    """What health says."""
    return (await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)).status


def trusting(address: str, roots: bytes) -> grpc.aio.Channel:
    """A gRPC client that checks the server's certificate, on a connection of its own."""
    options = [("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(roots), options=options)


async def test_a_new_certificate(files: TlsFiles) -> None:
    """All addresses serve it to new connections without a restart; the connections that are there live on."""
    credentials = files.credentials()
    async with served(credentials, 2) as addresses, trusting(addresses[0], CA.pem) as old:
        assert SERVING == await check(old)
        files.put(*OTHER_CA.issue("new", left=HOUR * 48))
        assert await eventually(lambda: credentials.reloads["taken"] == 1)
        assert ["new", "new"] == [(await greeting(address)).name for address in addresses]
        assert SERVING == await check(old)
        async with trusting(addresses[0], OTHER_CA.pem) as new, trusting(addresses[0], CA.pem) as late:
            assert SERVING == await check(new)
            with pytest.raises(grpc.aio.AioRpcError):
                await check(late)
    assert HOUR * 47 < credentials.expires_at - datetime.now(UTC) < HOUR * 49
    assert {"taken": 1, "refused": 0} == credentials.reloads


async def test_a_new_client_ca(files: TlsFiles) -> None:
    """Who gets in is decided by the file as it is now."""
    files.path("tls_client_ca").write_bytes(CA.pem)
    ours, theirs = context(client=CA.issue("ours")), context(client=OTHER_CA.issue("theirs"))
    credentials = files.credentials()
    async with served(credentials) as (address,):
        assert await greeting(address, ours)
        assert await refusal(address, theirs)
        files.path("tls_client_ca").write_bytes(OTHER_CA.pem)
        assert await eventually(lambda: credentials.reloads["taken"] == 1)
        assert await greeting(address, theirs)
        assert await refusal(address, ours)
        files.path("tls_client_ca").write_bytes(CA.pem + OTHER_CA.pem)
        assert await eventually(lambda: credentials.reloads["taken"] == 2)
        assert [await greeting(address, each) for each in (ours, theirs)]


async def test_a_secret_of_kubernetes(tmp_path: Path) -> None:
    """A link to the folder of all files is swapped: nothing else changes, not even a file's name or size."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        TlsFiles(tmp_path / name).put(*CA.issue(name), client_ca=CA.pem)
    (tmp_path / "..data").symlink_to("old")
    for name in ("tls_certificate", "tls_key", "tls_client_ca"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    credentials, client = TlsFiles(tmp_path).credentials(), context(client=CA.issue("client"))
    async with served(credentials) as (address,):
        assert "old" == (await greeting(address, client)).name
        (tmp_path / "..next").symlink_to("new")
        (tmp_path / "..next").replace(tmp_path / "..data")
        assert await eventually(lambda: credentials.reloads["taken"] == 1)
        assert "new" == (await greeting(address, client)).name


@pytest.mark.parametrize("first", ["tls_certificate", "tls_key"])
async def test_half_a_pair(files: TlsFiles, first: str) -> None:
    """While one file of two is new, what was there is served and nobody warned; after a while somebody is."""
    credentials = files.credentials()
    new = dict(zip(("tls_certificate", "tls_key"), CA.issue("new"), strict=True))
    files.path(first).write_bytes(new.pop(first))
    with capture_logs() as lines:
        await credentials._poll()
        assert [] == lines
        for _ in range(3):
            await credentials._poll()
    assert [("warning", "certificate refused")] == [(line["log_level"], line["event"]) for line in lines]
    assert {"taken": 0, "refused": 1} == credentials.reloads
    async with served(credentials) as (address,):
        assert "old" == (await greeting(address)).name
        for name, content in new.items():
            files.path(name).write_bytes(content)
        assert await eventually(lambda: credentials.reloads["taken"] == 1)
        assert "new" == (await greeting(address)).name


K1 = ec.generate_private_key(ec.SECP256K1())
BROKEN: dict[str, Callable[[], tuple[str, bytes | None]]] = {
    "no PEM": lambda: ("tls_certificate", b"sesame"),
    "empty": lambda: ("tls_certificate", b""),
    "gone": lambda: ("tls_certificate", None),
    "cut off": lambda: ("tls_certificate", CA.issue("new")[0][:-40]),
    "expired": lambda: ("tls_certificate", b"expired"),  # of the pair that is there
    "a key of another": lambda: ("tls_key", CA.issue("new")[1]),
    "a key with a password": lambda: ("tls_key", private_key_pem(RSA_KEY, b"sesame")),
    "a key that is gone": lambda: ("tls_key", None),
    "a weak key": lambda: ("tls_key", private_key_pem(rsa.generate_private_key(65537, 1024))),  # noqa: S505
    "a key that gRPC cannot serve": lambda: ("tls_key", private_key_pem(K1)),
    "no CA": lambda: ("tls_client_ca", b"sesame"),
    "half a CA": lambda: ("tls_client_ca", CA.pem + CA.pem[:-40]),
    "CAs that are gone": lambda: ("tls_client_ca", None),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_broken_files(files: TlsFiles, case: str) -> None:
    """They change nothing, are told once by the setting's name and without content, and would stop a start."""
    key = ec.generate_private_key(ec.SECP256R1())
    good = (*CA.issue("good", key), CA.pem)
    credentials, client = files.put(*good).credentials(), context(client=CA.issue("client"))
    name, content = BROKEN[case]()
    if case == "expired":
        content = CA.issue("good", key, left=-HOUR)[0]
    files.path(name).unlink() if content is None else files.path(name).write_bytes(content)
    with capture_logs() as lines:
        for _ in range(4):
            await credentials._poll()
    (line,) = lines
    assert "warning" == line["log_level"]
    assert line["problem"].startswith(name) or f", {name}: " in line["problem"]
    assert "sesame" not in str(line)
    assert str(files.folder) not in str(line)
    with pytest.raises(TlsConfigError, match=name):
        Credentials(
            *(PemFile(path.name, path) for path in map(files.path, ("tls_certificate", "tls_key", "tls_client_ca")))
        )
    async with served(credentials) as (address,):
        assert "good" == (await greeting(address, client)).name
        files.put(*CA.issue("better"), client_ca=CA.pem)
        assert await eventually(lambda: credentials.reloads == {"taken": 1, "refused": 1})
        assert "better" == (await greeting(address, client)).name


async def test_each_broken_change_is_told(files: TlsFiles) -> None:
    """Another fault is another line, and the same files written again are no change."""
    credentials = files.credentials()
    good = [files.path(name).read_bytes() for name in ("tls_certificate", "tls_key")]
    with capture_logs() as lines:
        for content in (b"one", b"another", b"a third"):
            files.path("tls_key").write_bytes(content)
            for _ in range(3):
                await credentials._poll()
        files.put(*good)
        for _ in range(3):
            await credentials._poll()
    assert 3 == len(lines)
    assert {"taken": 0, "refused": 3} == credentials.reloads


async def test_a_signal_is_not_waited_for(files: TlsFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked to, the files are looked at without waiting for the next time."""
    monkeypatch.setattr(tls, "_POLL_SECONDS", 3600.0)
    credentials = files.credentials()
    async with served(credentials):
        files.put(*CA.issue("new"))
        assert not await eventually(lambda: credentials.reloads["taken"] == 1, 0.3)
        credentials.reload()
        assert await eventually(lambda: credentials.reloads["taken"] == 1)


# -- the whole service


def unmigrated(url: str, **settings: Any) -> dict[str, Any]:
    """Settings of a service on a database that is ready."""
    return {"database_url": url, "purge_every_minutes": 0, "grace_seconds": 1, **settings}


async def test_tls_is_for_tcp_only(service: Service, files: TlsFiles, short_folder: Path) -> None:
    """One server: TLS, and nothing else, on host:port; plain on a Unix socket."""
    settings = load(**unmigrated(service.url, listen=f"127.0.0.1:0,unix:{short_folder}/s", **files.settings))
    async with run_service(settings) as running:
        tcp, unix = map(str, running.addresses)
        async with trusting(tcp, CA.pem) as channel:
            assert (await ConversationsServiceStub(channel).CreateConversation(create())).id
        async with grpc.aio.insecure_channel(unix, options=[("grpc.default_authority", "localhost")]) as channel:
            assert (await ConversationsServiceStub(channel).CreateConversation(create())).id
        async with grpc.aio.insecure_channel(tcp) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await check(channel)
        with pytest.raises(NO_TLS), socket.socket(socket.AF_UNIX) as plain:
            plain.settimeout(5)
            plain.connect(unix.removeprefix("unix:"))
            context().wrap_socket(plain)


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_process_takes_new_files(service: Service, files: TlsFiles, workers: int) -> None:
    """Every process watches; the signal of a reload has them look at once."""
    paths = {name: str(path) for name, path in files.settings.items()}
    async with server_process(service.url, workers=str(workers), **paths) as (running, line):
        address = line.split()[3].rstrip(",")
        assert "old" == (await greeting(address)).name
        files.put(*CA.issue("new"))
        running.send_signal(signal.SIGHUP)
        async with asyncio.timeout(4):
            while {"new"} != {(await greeting(address)).name for _ in range(8 * workers)}:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


# -- commands


@asynccontextmanager
async def service_with(url: str, **settings: Any) -> AsyncIterator[str]:
    """The address of a service with these settings."""
    async with run_service(load(**unmigrated(url, **{"listen": "127.0.0.1:0", **settings}))) as running:
        yield running.address


@pytest.fixture
async def own_url(postgres: str, template: str) -> AsyncIterator[str]:
    """A database of our own: services with identity make conversations of others."""
    async with fresh_database(postgres, template) as url:
        yield url


async def test_commands_by_tls(own_url: str, files: TlsFiles) -> None:
    """A file of CAs, or the system's, and a name if the address is none; anything else is one line."""
    ca, other = files.folder / "ca", files.folder / "other"
    ca.write_bytes(CA.pem)
    other.write_bytes(OTHER_CA.pem)
    line = '{"type": "message", "role": "user", "content": "Hello"}\n'
    async with service_with(own_url, **files.settings) as address:
        by_options = ("--target", address, "--ca", str(ca), "--authority", "localhost")
        made = (await output_of("import-jsonl", "-", *by_options, given=line)).strip()
        by_name = ("--target", f"localhost:{address.rpartition(':')[2]}", "--ca", str(ca))
        assert "Hello" in await output_of("export-jsonl", made, *by_name)
        variables = {"target": address, "target_ca": str(ca), "target_authority": "localhost"}
        assert "Hello" in await output_of("export-jsonl", made, **variables)
        assert "SERVING\n" == await output_of("healthcheck", **variables)
        wrong: list[tuple[str, ...]] = [
            ("--target", address),
            ("--target", address, "--ca", str(ca)),
            ("--target", address, "--ca", str(other), "--authority", "localhost"),
            ("--target", address, "--tls", "--authority", "localhost"),
        ]
        for options in wrong:
            assert "UNAVAILABLE" in await error_line_of("export-jsonl", made, *options)


async def test_the_systems_authorities(own_url: str, files: TlsFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--tls` alone trusts whom the system trusts."""
    ca = files.folder / "ca"
    ca.write_bytes(CA.pem)
    async with service_with(own_url, **files.settings) as address:
        options = ("--target", f"localhost:{address.rpartition(':')[2]}", "--tls")
        monkeypatch.setenv("SSL_CERT_FILE", str(ca))
        assert "SERVING\n" == await output_of("healthcheck", *options)


@pytest.mark.slow
async def test_commands_with_a_certificate(own_url: str, files: TlsFiles, tmp_path_factory: Any) -> None:
    """Where clients need a certificate, commands have one."""
    files.path("tls_client_ca").write_bytes(CA.pem)
    ours = TlsFiles(tmp_path_factory.mktemp("client")).put(*CA.issue("backup"))
    certificate, key = map(str, (ours.path("tls_certificate"), ours.path("tls_key")))
    identity = {"identity": "mtls", "mtls_subjects": True}
    async with service_with(own_url, **identity, **files.settings) as address:
        options = ("--target", address, "--ca", str(files.path("tls_client_ca")), "--authority", "localhost")
        with_ours = (*options, "--cert", certificate, "--key", key)
        made = (await output_of("import-jsonl", "-", *with_ours, given='{"role": "user", "content": "Hello"}')).strip()
        assert "Hello" in await output_of("export-jsonl", made, *with_ours)
        assert "UNAVAILABLE" in await error_line_of("export-jsonl", made, *options)


@pytest.mark.slow
async def test_commands_with_a_token(own_url: str, files: TlsFiles) -> None:
    """A token comes from a file or a variable, is sent with each call, and is never shown."""
    (files.folder / "jwks").write_bytes(jwk_set(ISSUER_KEY))
    (files.folder / "ca").write_bytes(CA.pem)
    secret = token(key=ISSUER_KEY)
    (files.folder / "token").write_text(f"{secret}\n")
    values = jwt_settings(str(files.folder / "jwks")).model_dump(
        include={"identity", "jwt_issuer", "jwt_audience", "jwt_jwks"}
    )
    async with service_with(own_url, **values, **files.settings) as address:
        options = ("--target", address, "--ca", str(files.folder / "ca"), "--authority", "localhost")
        with_file = (*options, "--token-file", str(files.folder / "token"))
        made = (await output_of("import-jsonl", "-", *with_file, given='{"role": "user", "content": "Hello"}')).strip()
        assert "Hello" in await output_of("export-jsonl", made, *options, target_token=secret)
        assert "UNAUTHENTICATED" in await error_line_of("export-jsonl", made, *options)
        told = await error_line_of("export-jsonl", made, *options, target_token=secret[:-4] + "AAAA")
        assert "UNAUTHENTICATED" in told
        assert secret[:-4] not in told


WRONG = [
    (("--target", "example.org:1"), "--token-file"),  # in the clear, beyond this machine
    (("--target", "unix:/s", "--tls"), "Unix socket"),
    (("--cert", "c"), "--key"),
    (("--key", "k"), "--key"),
    (("--ca", "/nowhere"), "--ca"),
    (("--ca", "README.md"), "--ca"),
    (("--cert", "README.md", "--key", "README.md"), "--cert"),
    (("--token-file", "/nowhere"), "--token-file"),
    (("--token-file", "README.md"), "--token-file"),
    (("--token-file", "/dev/null"), "--token-file"),
]


@pytest.mark.parametrize("options, named", WRONG, ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
async def test_wrong_options(options: tuple[str, ...], named: str) -> None:
    """What cannot be meant is told by the option's name before anything is sent."""
    told = await error_line_of("export-jsonl", "conv_a", *options, target_token="a.secret.token")
    assert named in told
    assert "secret" not in told


# -- the probe of a container


def in_a_pod(address: str, files: TlsFiles, **settings: str) -> dict[str, str]:
    """The environment of a service that serves the port of ``address`` on all of the machine's addresses."""
    paths = {name: str(path) for name, path in files.settings.items()}
    return {"listen": f"0.0.0.0:{address.rpartition(':')[2]}", "allow_anonymous": "true", **paths, **settings}


PODS: dict[str, dict[str, Any]] = {
    "one name": {},
    "a name with a star": {"hosts": ("*.conversations.svc",)},
    "a name in the subject": {"hosts": ()},
    "an RSA key": {"key": RSA_KEY},
}


@pytest.mark.parametrize("pod", PODS)
@pytest.mark.parametrize("client_ca", [False, True], ids=["TLS", "mTLS"])
async def test_healthcheck_without_options(service: Service, tmp_path: Path, pod: str, client_ca: bool) -> None:  # noqa: FBT001
    """It asks the server that its environment describes, also where clients need a certificate."""
    name = "conversations.svc" if pod == "a name in the subject" else "old"
    files = TlsFiles(tmp_path).put(*CA.issue(name, **PODS[pod]), client_ca=CA.pem if client_ca else None)
    async with service_with(service.url, **files.settings) as address:
        assert "SERVING\n" == await output_of("healthcheck", **in_a_pod(address, files))


async def test_healthcheck_is_of_the_server_and_not_of_its_files(service: Service, files: TlsFiles) -> None:
    """A certificate that was just replaced, or is refused, makes no healthy server sick."""
    async with service_with(service.url, **files.settings) as address:
        environment = in_a_pod(address, files)
        files.path("tls_certificate").write_bytes(b"no PEM")
        files.path("tls_key").unlink()
        assert "SERVING\n" == await output_of("healthcheck", **environment)


async def test_healthcheck_prefers_a_socket(service: Service, files: TlsFiles, short_folder: Path) -> None:
    """On a Unix socket nothing else is needed."""
    listen = f"127.0.0.1:0,unix:{short_folder}/s"
    async with service_with(service.url, listen=listen, **files.settings):
        paths = {name: str(path) for name, path in files.settings.items()}
        assert "SERVING\n" == await output_of("healthcheck", listen=listen, **paths)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "127.0.0.1"])  # noqa: S104
async def test_healthcheck_on_any_address(service: Service, host: str) -> None:
    """All addresses of the machine are asked on loopback."""
    listen = f"{host}:{service.address.rpartition(':')[2]}"
    assert "SERVING\n" == await output_of("healthcheck", listen=listen, allow_anonymous="true")
    assert service.address == own_connection(load(listen=listen, allow_anonymous=True), Target()).address


async def test_healthcheck_of_a_named_service(service: Service) -> None:
    """Any name that the health service knows can be asked for."""
    target = ("--target", service.address)
    name = "conversations.v1.ConversationsService"
    assert "SERVING\n" == await output_of("healthcheck", "--service", name, *target)
    assert "NOT_FOUND" in await error_line_of("healthcheck", "--service", "nobody", *target)


async def test_healthcheck_says_why(files: TlsFiles) -> None:
    """Nobody there, any port, a certificate without a host name: one line each."""
    paths = {name: str(path) for name, path in files.settings.items()}
    assert "127.0.0.1:1 " in await error_line_of("healthcheck", listen="127.0.0.1:1", **paths)
    assert "UNAVAILABLE" in await error_line_of("healthcheck", listen="127.0.0.1:1")
    assert "--target" in await error_line_of("healthcheck", listen="127.0.0.1:0")


def test_names_to_check_a_certificate_by() -> None:
    """A host name, else an address, else the common name of one that has no other names."""
    assert "a.example" == host_name(CA.issue("x", hosts=("a.example", "b.example"))[0])
    assert "any.example" == host_name(CA.issue("x", hosts=("*.example",))[0])
    assert "x" == host_name(CA.issue("x", hosts=())[0])
    key = ec.generate_private_key(ec.SECP256R1())
    spiffe = x509.UniformResourceIdentifier("spiffe://prod.example/a")
    assert "10.0.0.7" == host_name(CA._signed("x", key, [spiffe, x509.IPAddress(IPv4Address("10.0.0.7"))], HOUR))
    assert None is host_name(CA._signed("x", key, [spiffe], HOUR))
