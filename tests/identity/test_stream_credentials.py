"""A stream ends with the credentials that it began with: they are checked again with each message."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import grpc.aio
import pytest
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from cryptography import x509
from joserfc import jwk

from server.app.service import run_service
from server.errors import CredentialsInvalid, CredentialsMissing, IdentityUnavailable
from server.identity import source_of
from server.identity.caller import RecordedCall
from server.identity.jwt import SKEW_SECONDS
from server.identity.peer_certificate import PeerCertificates
from server.policy.principal import Principal
from server.services import append_stream
from server.services.append_stream import CREDENTIALS_SECONDS, AppendStream
from server.settings.service import load
from tests.support.build import ahead, create, user_message
from tests.support.certificates import CA, TlsFiles
from tests.support.jwt import AUDIENCE, ISSUER, ISSUER_KEY, claims, jwk_set, token
from tests.support.postgres import fresh_database
from tests.support.problems import problem, problem_of

OTHER_KEY = jwk.ECKey.generate_key("P-256", {"kid": "ec"})
ID = "spiffe://prod.example/cart"


@pytest.fixture
async def url(postgres: str, template: str) -> AsyncIterator[str]:
    """A database with the schema."""
    async with fresh_database(postgres, template) as found:
        yield found


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """The issuer's keys."""
    file = tmp_path / "jwks.json"
    file.write_bytes(jwk_set(ISSUER_KEY, OTHER_KEY))
    return file


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    """TLS of a server that needs client certificates."""
    folder = tmp_path / "tls"
    folder.mkdir()
    return TlsFiles(folder).put(*CA.issue("localhost"), client_ca=CA.pem)


@asynccontextmanager
async def served(url: str, **settings: Any) -> AsyncIterator[str]:
    """The address of a service."""
    values = {"listen": "127.0.0.1:0", "database_url": url, "purge_every_minutes": 0, "grace_seconds": 1, **settings}
    async with run_service(load(**values)) as running:
        yield running.address


@asynccontextmanager
async def tls_client(address: str, left: timedelta) -> AsyncIterator[Any]:
    """A stub whose client certificate is valid for ``left``."""
    chain, key = CA.issue("cart", left=left, uris=[ID])
    options = [("grpc.ssl_target_name_override", "localhost")]
    credentials = grpc.ssl_channel_credentials(CA.pem, key, chain)
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        yield ConversationsServiceStub(channel)


@pytest.fixture
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams whose credentials are looked at with each message only."""
    monkeypatch.setattr(append_stream, "CREDENTIALS_SECONDS", 3600.0)


class Stream:
    """A stream of appends to a conversation of its own."""

    def __init__(self, stub: Any, conversation_id: str, metadata: Any) -> None:
        self._conversation_id = conversation_id
        self._call = stub.AppendItems(metadata=metadata)

    @classmethod
    async def begin(cls, stub: Any, metadata: Any = ()) -> "Stream":
        """A stream that has appended one item."""
        made = await stub.CreateConversation(create(), metadata=metadata)
        stream = cls(stub, made.id, metadata)
        assert "appended" == await stream.append()
        return stream

    async def append(self) -> str:
        """Appends an item; the kind of answer, or how the stream ended instead."""
        try:
            await self._call.write(ahead(self._conversation_id, user_message("hello")))
            answer = await self._call.read()
        except grpc.aio.AioRpcError as error:
            told = problem_of(error)
            return f"{told.code} {told.reason}"
        return str(answer.WhichOneof("result"))

    async def end(self) -> str:
        """How the stream ends although nothing is sent."""
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await self._call.read()
        told = problem_of(ended.value)
        return f"{told.code} {told.reason}"


REFUSED = "UNAUTHENTICATED CREDENTIALS_INVALID"


def jwt_settings(key_file: Path) -> dict[str, Any]:
    """Settings of a service that takes tokens."""
    return {"identity": "jwt", "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_jwks": str(key_file)}


def bearer(**changed: Any) -> list[tuple[str, str]]:
    """Metadata with a token."""
    return [("authorization", f"Bearer {token(claims(**changed))}")]


@pytest.mark.usefixtures("unwatched")
async def test_a_stream_ends_with_its_token(url: str, key_file: Path) -> None:
    """The message after `exp`, and the skew of clocks, is not appended."""
    async with served(url, **jwt_settings(key_file)) as address, grpc.aio.insecure_channel(address) as channel:
        expiry = int(time.time()) - SKEW_SECONDS + 2
        stream = await Stream.begin(ConversationsServiceStub(channel), bearer(exp=expiry))
        await asyncio.sleep(expiry + SKEW_SECONDS + 0.1 - time.time())
        assert REFUSED == await stream.append()


async def test_an_idle_stream_ends_with_its_token(url: str, key_file: Path) -> None:
    """A stream ends soon after `exp`, and the skew of clocks, also when no further message comes."""
    async with served(url, **jwt_settings(key_file)) as address, grpc.aio.insecure_channel(address) as channel:
        expiry = int(time.time()) - SKEW_SECONDS + 2
        stream = await Stream.begin(ConversationsServiceStub(channel), bearer(exp=expiry))
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + 5):
            assert REFUSED == await stream.end()
        assert time.time() >= expiry + SKEW_SECONDS


async def test_idle_streams_end_with_their_key(url: str, key_file: Path) -> None:
    """A stream ends soon after the issuer's key was withdrawn, another one whose key stays does not."""
    async with served(url, **jwt_settings(key_file)) as address, grpc.aio.insecure_channel(address) as channel:
        stub = ConversationsServiceStub(channel)
        stream = await Stream.begin(stub, bearer())
        kept = await Stream.begin(stub, [("authorization", f"Bearer {token(key=OTHER_KEY, alg='ES256')}")])
        key_file.write_bytes(jwk_set(OTHER_KEY))
        async with asyncio.timeout(5):
            assert REFUSED == await stream.end()
        assert "appended" == await kept.append()


class _Unchecked:
    """A caller whose credentials cannot be checked now."""

    def __init__(self) -> None:
        self.asked = 0

    async def principal(self) -> Principal:
        """Never returns one."""
        self.asked += 1
        raise IdentityUnavailable


async def test_an_idle_stream_outlasts_an_issuer_that_is_away() -> None:
    """While credentials cannot be checked a stream that sends nothing goes on: only a message would be refused."""

    async def nothing() -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield

    caller, unused = _Unchecked(), cast("Any", None)
    stream = AppendStream(unused, cast("Any", caller), unused, unused, unused, asyncio.Event())
    answer = asyncio.ensure_future(anext(stream.respond(nothing())))
    done, _ = await asyncio.wait([answer], timeout=2 * CREDENTIALS_SECONDS + 0.5)
    assert not done
    assert caller.asked == 2
    answer.cancel()


@pytest.mark.usefixtures("unwatched")
async def test_a_stream_ends_with_its_key(url: str, key_file: Path) -> None:
    """The message after the issuer's key was withdrawn is not appended; a stream whose key stays goes on."""
    async with served(url, **jwt_settings(key_file)) as address, grpc.aio.insecure_channel(address) as channel:
        stub = ConversationsServiceStub(channel)
        stream = await Stream.begin(stub, bearer())
        kept = await Stream.begin(stub, [("authorization", f"Bearer {token(key=OTHER_KEY, alg='ES256')}")])
        key_file.write_bytes(jwk_set(OTHER_KEY))
        await asyncio.sleep(1.1)  # the file is looked at once a second
        assert REFUSED == await stream.append()
        assert "appended" == await kept.append()


@pytest.mark.usefixtures("unwatched")
async def test_a_stream_ends_with_its_entry(url: str, files: TlsFiles, tmp_path: Path) -> None:
    """The message after the caller left `principals_file` is not appended; with other attributes it is."""
    principals = tmp_path / "principals.yaml"
    principals.write_text(f"{ID}: {{attributes: {{roles: [writer]}}}}")
    settings = {"identity": "mtls", "mtls_trust_domains": "prod.example", "principals_file": principals}
    async with served(url, **settings, **files.settings) as address, tls_client(address, timedelta(hours=1)) as stub:
        stream = await Stream.begin(stub)
        principals.write_text(f"{ID}: {{attributes: {{roles: [reader]}}}}")
        await asyncio.sleep(1.1)
        assert "appended" == await stream.append()
        principals.write_text("spiffe://prod.example/other:")
        await asyncio.sleep(1.1)
        assert REFUSED == await stream.append()


@pytest.mark.usefixtures("unwatched")
async def test_a_connection_ends_with_its_certificate(url: str, files: TlsFiles) -> None:
    """TLS checks a certificate when the connection begins; after its end neither a stream nor a call goes on."""
    settings = {"identity": "mtls", "mtls_trust_domains": "prod.example", **files.settings}
    async with served(url, **settings) as address, tls_client(address, timedelta(seconds=3)) as stub:
        stream = await Stream.begin(stub)
        await asyncio.sleep(3.1)
        assert REFUSED == await stream.append()
        assert "CREDENTIALS_INVALID" == (await problem(stub.CreateConversation(create()))).reason


def test_a_certificate_is_valid_to_its_last_second() -> None:
    """At the end of its validity a certificate still counts, a second later no more; other bytes never do."""
    now = time.time()
    chain, _ = CA.issue("cart", left=timedelta(seconds=10))
    end = x509.load_pem_x509_certificate(chain).not_valid_after_utc.timestamp()
    certificates = PeerCertificates(lambda: now)
    certificates.check({"x509_pem_cert": [chain]})
    now = end
    certificates.check({"x509_pem_cert": [chain]})
    now += 1
    for properties, error in (
        ({"x509_pem_cert": [chain]}, CredentialsInvalid),
        ({"x509_pem_cert": [b"-"]}, CredentialsInvalid),
        ({"x509_pem_cert": []}, CredentialsMissing),
        ({}, CredentialsMissing),
    ):
        with pytest.raises(error):
            certificates.check(properties)


async def test_a_proxy_is_trusted_to_the_end_of_its_certificate(files: TlsFiles) -> None:
    """Metadata of a proxy whose certificate has expired counts no more than that of anybody."""
    settings = {"identity": "proxy", "proxy_spiffe_ids": ID, "listen": "127.0.0.1:0", **files.settings}
    source = source_of(load(**settings))
    for left, good in ((timedelta(hours=1), True), (timedelta(seconds=-1), False)):
        chain, _ = CA.issue("proxy", left=left, uris=[ID])
        call = RecordedCall(
            (("x-principal", "alice"),), "ipv4:127.0.0.1:1", {"x509_pem_cert": [chain], "peer_uri": [ID.encode()]}
        )
        if good:
            assert "alice" == (await source.principal(call)).id
        else:
            with pytest.raises(CredentialsInvalid):
                await source.principal(call)
