"""Who is asking: every forged credential is refused with the same bytes, every good one becomes its principal."""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog
from aiohttp import web
from conversations.v1 import conversations_service_pb2 as pb
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from conversations.v1.error_reason_pb2 import ErrorReason
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from joserfc import jwk

from server import errors
from server.app.service import run_service
from server.identity import IdentityConfigError, source_of
from server.identity import jwks_url as jwks_module
from server.identity.jwks import FileKeys, JwksInvalid, parse_jwk_set
from server.identity.jwks_url import UrlKeys
from server.identity.jwt import Jwt
from server.identity.principals import Principals
from server.identity.principals_file import PrincipalsFile
from server.identity.source import Idle, Source
from server.interceptors.authentication import Authentication
from server.interceptors.chain import InterceptorChain
from server.interceptors.error_status import ErrorStatus
from server.policy.principal import Principal, current_principal
from server.settings.service import SettingsInvalid, load
from server.transport.tls import TlsConfigError, load_credentials
from tests.support.certificates import CA, CertificateAuthority
from tests.support.jwt import AUDIENCE, ISSUER, ISSUER_KEY, b64, claims, identity_settings, jwk_set, jwt_settings, token
from tests.support.postgres import fresh_database
from tests.support.problems import problem
from tests.support.service import running_service

EC = jwk.ECKey.generate_key("P-256", {"kid": "ec"})
OKP = jwk.OKPKey.generate_key("Ed25519", {"kid": "okp"})
STRANGER = jwk.RSAKey.generate_key(2048, {"kid": "rsa"})  # takes our key's id
BARE = bytes.fromhex("08101219")  # any call: who asks does not depend on the body

_RAW: Any = (bytes, bytes)  # a body as it is

Metadata = list[tuple[str, str | bytes]]


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        """The time."""
        return self.now


def by_hand(header: bytes, signature: Callable[[bytes], bytes] = lambda _signed: b"x" * 256) -> str:
    """A token that nobody's library makes."""
    signed = f"{b64(header)}.{b64(json.dumps(claims()).encode())}"
    return f"{signed}.{b64(signature(signed.encode()))}"


def bearer(value: str) -> Metadata:
    return [("authorization", f"Bearer {value}")]


@asynccontextmanager
async def asked(source: Source, address: str = "127.0.0.1:0") -> AsyncIterator[grpc.aio.Channel]:
    """A client of a server that only says who asked, by a unary call and a stream."""

    def body() -> bytes:
        who = current_principal.get()
        return json.dumps([who.tenant, who.id, {name: sorted(v) for name, v in who.attributes.items()}]).encode()

    async def unary(_request: bytes, _context: Any) -> bytes:
        return body()

    async def stream(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        yield body()

    handlers: Any = {
        "Who": grpc.unary_unary_rpc_method_handler(unary),
        "Watch": grpc.unary_stream_rpc_method_handler(stream),
    }
    options = [("grpc.so_reuseport", 0), ("grpc.max_metadata_size", 16 * 1024)]
    server = grpc.aio.server(interceptors=[InterceptorChain([ErrorStatus(), Authentication(source)])], options=options)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Who", handlers),))
    port = server.add_insecure_port(address)
    target = address if address.startswith("unix:") else f"127.0.0.1:{port}"
    async with source:
        await server.start()
        try:
            async with grpc.aio.insecure_channel(target, options=[("grpc.default_authority", "localhost")]) as channel:
                yield channel
        finally:
            await server.stop(None)


async def who(channel: grpc.aio.Channel, metadata: Metadata, *, stream: bool = False) -> Any:
    """The principal as `[tenant, id, attributes]`."""
    if stream:
        (body,) = [body async for body in channel.unary_stream("/test.Who/Watch", *_RAW)(BARE, metadata=metadata)]
        return json.loads(body)
    return json.loads(await channel.unary_unary("/test.Who/Who", *_RAW)(BARE, metadata=metadata))


Answer = tuple[str, str | None, bytes]


async def refusal(channel: grpc.aio.Channel, metadata: Metadata, *, stream: bool = False) -> Answer:
    """All that a refused caller can see: code, message and the bytes of the details."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await who(channel, metadata, stream=stream)
    trailers: dict[str, Any] = dict(caught.value.trailing_metadata() or ())
    return caught.value.code().name, caught.value.details(), trailers.get("grpc-status-details-bin", b"")


def told(failure: errors.ServiceError) -> Answer:
    """The answer that ``failure`` is."""
    return failure.code.name, str(failure), failure.status().SerializeToString()


MISSING = told(errors.CredentialsMissing())
INVALID = told(errors.CredentialsInvalid("never sent"))
UNAVAILABLE = told(errors.IdentityUnavailable())


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The issuer's keys."""
    path = tmp_path_factory.mktemp("keys") / "jwks.json"
    path.write_bytes(jwk_set(ISSUER_KEY, EC, OKP))
    return path


@pytest.fixture(scope="module")
async def jwt_channel(key_file: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A server that takes tokens; a tenant is required."""
    async with asked(source_of(jwt_settings(str(key_file), jwt_tenant_claim="org"))) as channel:
        yield channel


# --- tokens


def _public_pem() -> bytes:
    return ISSUER_KEY.as_pem(private=False)


def _tampered() -> str:
    head, _, signature = token().split(".")
    return f"{head}.{b64(json.dumps(claims(sub='mallory')).encode())}.{signature}"


def _of_length(size: int) -> str:
    """A good token of exactly ``size`` bytes."""
    lengths = ((extra, padding) for extra in range(4) for padding in range((size - 1000) * 3 // 4, size))
    for extra, padding in lengths:  # base64 skips every fourth length, which a longer header makes up for
        made = token(claims(pad="x" * padding), key=OKP, alg="EdDSA", vendor="x" * extra)
        if len(made) == size:
            return made
    raise AssertionError(size)


HS256 = b'{"alg":"HS256","typ":"JWT","kid":"rsa"}'
FORGED: dict[str, Callable[[], Metadata]] = {
    "signed by another key of the same id": lambda: bearer(token(key=STRANGER)),
    "key id unknown": lambda: bearer(token(kid="other")),
    "no key id": lambda: bearer(token(kid=None)),
    "key id is a number": lambda: bearer(token(kid=7)),
    "key id of another type of key": lambda: bearer(token(kid="ec")),
    "algorithm of another type of key": lambda: bearer(token(key=EC, alg="ES256", kid="rsa")),
    "algorithm not configured": lambda: bearer(token(alg="RS512")),
    "PSS where PKCS1 is meant": lambda: bearer(token(alg="PS256")),
    "alg none, unsigned": lambda: bearer(by_hand(b'{"alg":"none","kid":"rsa"}', lambda _: b"")),
    "alg none, signed": lambda: bearer(by_hand(b'{"alg":"none","kid":"rsa"}')),
    "alg nOnE": lambda: bearer(by_hand(b'{"alg":"nOnE","kid":"rsa"}')),
    "alg missing": lambda: bearer(by_hand(b'{"kid":"rsa"}')),
    "alg a list": lambda: bearer(by_hand(b'{"alg":["RS256"],"kid":"rsa"}')),
    "alg null": lambda: bearer(by_hand(b'{"alg":null,"kid":"rsa"}')),
    "HS256, the public PEM as secret": lambda: bearer(
        by_hand(HS256, lambda s: hmac.digest(_public_pem(), s, "sha256"))
    ),
    "HS256, the JWK as secret": lambda: bearer(by_hand(HS256, lambda s: hmac.digest(jwk_set(ISSUER_KEY), s, "sha256"))),
    "HS256, no secret": lambda: bearer(by_hand(HS256, lambda s: hmac.digest(b"", s, "sha256"))),
    "jku": lambda: bearer(token(jku="https://evil.example/jwks")),
    "jwk": lambda: bearer(token(key=EC, alg="ES256", jwk=EC.as_dict(private=False))),
    "jwk of the forger": lambda: bearer(token(key=STRANGER, jwk=STRANGER.as_dict(private=False))),
    "x5u": lambda: bearer(token(x5u="https://evil.example/x5u")),
    "x5c": lambda: bearer(token(x5c=["AAAA"])),
    "crit": lambda: bearer(token(crit=["exp"])),
    "crit that is kept": lambda: bearer(token(crit=["kid"])),
    "b64": lambda: bearer(token(b64=True)),
    "a logout token": lambda: bearer(token(typ="logout+jwt")),
    "issuer wrong": lambda: bearer(token(claims(iss="https://evil.example"))),
    "issuer longer": lambda: bearer(token(claims(iss=ISSUER + "/"))),
    "issuer a list": lambda: bearer(token(claims(iss=[ISSUER]))),
    "issuer missing": lambda: bearer(token(claims(iss=None))),
    "audience wrong": lambda: bearer(token(claims(aud="other"))),
    "audience wrong in a list": lambda: bearer(token(claims(aud=["other", "another"]))),
    "audience empty": lambda: bearer(token(claims(aud=[]))),
    "audience missing": lambda: bearer(token(claims(aud=None))),
    "expired beyond the skew": lambda: bearer(token(claims(exp=int(time.time()) - 61))),
    "expiry missing": lambda: bearer(token(claims(exp=None))),
    "expiry a text": lambda: bearer(token(claims(exp="9999999999"))),
    "expiry true": lambda: bearer(token(claims(exp=True))),
    "expiry not a number": lambda: bearer(token(claims(exp=float("nan")))),
    "expiry infinite": lambda: bearer(token(claims(exp=float("inf")))),
    "not yet valid": lambda: bearer(token(claims(nbf=int(time.time()) + 120))),
    "issued in the future": lambda: bearer(token(claims(iat=int(time.time()) + 120))),
    "subject missing": lambda: bearer(token(claims(sub=None))),
    "subject empty": lambda: bearer(token(claims(sub=""))),
    "subject a number": lambda: bearer(token(claims(sub=7))),
    "subject of 257 bytes": lambda: bearer(token(claims(sub="ü" * 128 + "x"))),
    "subject with U+0000": lambda: bearer(token(claims(sub="alice\0"))),
    "subject no text": lambda: bearer(token(claims(sub="\ud800"))),
    "tenant missing": lambda: bearer(token(claims(org=None))),
    "tenant empty": lambda: bearer(token(claims(org=""))),
    "tenant a list": lambda: bearer(token(claims(org=["acme"]))),
    "257 attribute values": lambda: bearer(token(claims(roles=[str(n) for n in range(257)]))),
    "attribute value of 257 bytes": lambda: bearer(token(claims(roles="x" * 257))),
    "attribute value empty": lambda: bearer(token(claims(roles=[""]))),
    "attribute value a number": lambda: bearer(token(claims(roles=["a", 1]))),
    "attribute values an object": lambda: bearer(token(claims(roles={"admin": True}))),
    "claims a list": lambda: bearer(token(b"[1]")),
    "claims nested deeply": lambda: bearer(token(b"[" * 5000)),
    "claims no UTF-8": lambda: bearer(token(b'{"sub": "\xff"}')),
    "header nested deeply": lambda: bearer(by_hand(b'{"alg":' + b"[" * 3000)),
    "header not JSON": lambda: bearer(by_hand(b"alg")),
    "header a text": lambda: bearer(by_hand(b'"alg kid"')),
    "tampered claims": lambda: bearer(_tampered()),
    "truncated by one": lambda: bearer(token()[:-1]),
    "truncated to two parts": lambda: bearer(token().rpartition(".")[0]),
    "signature empty": lambda: bearer(token().rpartition(".")[0] + "."),
    "signature padded": lambda: bearer(token() + "=="),
    "a part too many": lambda: bearer(token() + ".AAAA"),
    "8 KiB and one byte": lambda: bearer(_of_length(8193)),
    "two in one value": lambda: [("authorization", f"Bearer {token()},Bearer {token()}")],
    "twice": lambda: bearer(token()) * 2,
    "twice, once empty": lambda: [*bearer(token()), ("authorization", "")],
    "as bytes": lambda: [("authorization-bin", f"Bearer {token()}".encode())],
    "as bytes too": lambda: [*bearer(token()), ("authorization-bin", b"x")],
    "empty": lambda: [("authorization", "")],
    "scheme only": lambda: [("authorization", "Bearer")],
    "scheme and a space": lambda: [("authorization", "Bearer ")],
    "no scheme": lambda: [("authorization", token())],
    "Basic": lambda: [("authorization", "Basic YWxpY2U6c2VjcmV0")],
    "two spaces": lambda: [("authorization", f"Bearer  {token()}")],
    "a space in it": lambda: bearer(token().replace(".", " .", 1)),
    "no space": lambda: [("authorization", f"Bearer{token()}")],
    "a space before": lambda: [("authorization", f" Bearer {token()}")],
    "a space after": lambda: bearer(token() + " "),
    "not a token": lambda: bearer("secret"),
    "with x-principal": lambda: [*bearer(token()), ("x-principal", "admin")],
    "with x-tenant": lambda: [*bearer(token()), ("x-tenant", "other")],
    "with x-attributes": lambda: [*bearer(token()), ("x-attributes", "roles=admin")],
    "with a certificate header": lambda: [*bearer(token()), ("x-forwarded-client-cert", "URI=spiffe://a/b")],
    "with x-principal-bin": lambda: [*bearer(token()), ("x-principal-bin", b"admin")],
    "x-principal alone": lambda: [("x-principal", "admin")],
}


@pytest.mark.parametrize("name", FORGED)
async def test_forged_token(jwt_channel: grpc.aio.Channel, name: str) -> None:
    """Whatever is wrong, the answer is the same to the byte."""
    assert INVALID == await refusal(jwt_channel, FORGED[name]())


async def test_none_missing_and_invalid_are_all_there_is(jwt_channel: grpc.aio.Channel) -> None:
    """No credentials are another reason than bad ones, with ErrorInfo only and nothing of the call in it."""
    assert MISSING == await refusal(jwt_channel, [])
    for answer, reason in ((MISSING, "CREDENTIALS_MISSING"), (INVALID, "CREDENTIALS_INVALID")):
        (detail,) = Status.FromString(answer[2]).details
        info = error_details_pb2.ErrorInfo()
        assert detail.Unpack(info)
        assert ("UNAUTHENTICATED", reason, {}) == (answer[0], info.reason, dict(info.metadata))


def test_reasons_are_in_the_contract() -> None:
    """Each reason of identity is in the enum."""
    for failure in (errors.CredentialsMissing, errors.CredentialsInvalid, errors.IdentityUnavailable):
        assert f"ERROR_REASON_{failure.reason}" in ErrorReason.keys()  # noqa: SIM118 - an enum wrapper, not a dict


GOOD: dict[str, tuple[Callable[[], Metadata], list[Any]]] = {
    "RS256": (lambda: bearer(token()), ["acme", "alice", {}]),
    "ES256": (lambda: bearer(token(key=EC, alg="ES256")), ["acme", "alice", {}]),
    "EdDSA": (lambda: bearer(token(key=OKP, alg="EdDSA")), ["acme", "alice", {}]),
    "bearer": (lambda: [("authorization", f"bearer {token()}")], ["acme", "alice", {}]),
    "BEARER": (lambda: [("authorization", f"BEARER {token()}")], ["acme", "alice", {}]),
    "one of two audiences": (lambda: bearer(token(claims(aud=["x", AUDIENCE]))), ["acme", "alice", {}]),
    "expired within the skew": (lambda: bearer(token(claims(exp=int(time.time()) - 50))), ["acme", "alice", {}]),
    "valid from now on": (lambda: bearer(token(claims(nbf=int(time.time()) + 50))), ["acme", "alice", {}]),
    "expiry beyond a float": (lambda: bearer(token(claims(exp=10**400))), ["acme", "alice", {}]),
    "an access token": (lambda: bearer(token(typ="at+jwt")), ["acme", "alice", {}]),
    "no kind": (lambda: bearer(token(typ=None)), ["acme", "alice", {}]),
    "a header of the issuer's own": (lambda: bearer(token(x5t="AAAA", vendor=1)), ["acme", "alice", {}]),
    "8 KiB": (lambda: bearer(_of_length(8192)), ["acme", "alice", {}]),
    "subject of 256 bytes": (lambda: bearer(token(claims(sub="ü" * 128))), ["acme", "ü" * 128, {}]),
    "attributes": (
        lambda: bearer(token(claims(roles=["b", "a", "a"], teams="blue", projects=None, email="a@b.example"))),
        ["acme", "alice", {"roles": ["a", "b"], "teams": ["blue"]}],
    ),
    "256 values": (
        lambda: bearer(token(claims(roles=[f"{n:03}" for n in range(256)]))),
        ["acme", "alice", {"roles": [f"{n:03}" for n in range(256)]}],
    ),
    "a value of 256 bytes": (lambda: bearer(token(claims(roles="x" * 256))), ["acme", "alice", {"roles": ["x" * 256]}]),
}


@pytest.mark.parametrize("name", GOOD)
async def test_good_token(jwt_channel: grpc.aio.Channel, name: str) -> None:
    """It is the principal that the token is about, the first time and from memory, in calls and streams."""
    metadata, expected = GOOD[name][0](), GOOD[name][1]
    assert expected == await who(jwt_channel, metadata)
    assert expected == await who(jwt_channel, metadata, stream=True)


async def test_streams_are_refused_too(jwt_channel: grpc.aio.Channel) -> None:
    """A stream tells the same as a call."""
    assert MISSING == await refusal(jwt_channel, [], stream=True)
    assert INVALID == await refusal(jwt_channel, bearer(token(key=STRANGER)), stream=True)


async def test_attribute_map(key_file: Path) -> None:
    """Only the claims of the map count, and only for names on the list."""
    claims_map = "groups=teams,https://x.example/roles=roles,squads=teams"
    chosen = jwt_settings(str(key_file), jwt_attribute_claims=claims_map, attribute_names="teams,roles")
    async with asked(source_of(chosen)) as channel:
        body = claims(groups=["a"], squads="b", teams=["no"], **{"https://x.example/roles": ["r"]})
        assert ["", "alice", {"roles": ["r"], "teams": ["a", "b"]}] == await who(channel, bearer(token(body)))


@dataclass
class Seen:
    """A call without a server."""

    metadata: Metadata
    end: str = "ipv4:127.0.0.1:1"
    auth: dict[str, list[bytes]] = field(default_factory=dict)

    def invocation_metadata(self) -> Metadata:
        """As sent."""
        return self.metadata

    def peer(self) -> str:
        """As configured."""
        return self.end

    def auth_context(self) -> dict[str, list[bytes]]:
        """As configured."""
        return self.auth


async def test_a_remembered_token_expires(key_file: Path) -> None:
    """Memory does not outlive the token, skew included; equal callers are one object."""
    now = int(time.time())
    clock = Clock(now)
    source = Jwt(jwt_settings(str(key_file)), FileKeys(key_file), clock)
    first = await source.principal(Seen(bearer(token(claims(exp=now + 100)))))
    other = await source.principal(Seen(bearer(token(claims(exp=now + 101)))))
    assert first is other
    clock.now = now + 159
    call = Seen(bearer(token(claims(exp=now + 100))))
    assert first is await source.principal(call)
    clock.now = now + 160
    with pytest.raises(errors.CredentialsInvalid):
        await source.principal(call)


async def test_a_key_that_goes_during_the_check(key_file: Path) -> None:
    """A token whose key is withdrawn while it is checked is checked again at the next call."""
    source = Jwt(jwt_settings(str(key_file)), keys := Withdrawing(ISSUER_KEY))
    call = Seen(bearer(token()))
    await source.principal(call)
    assert keys.key_set is None
    with pytest.raises(errors.CredentialsInvalid):
        await source.principal(call)


class Withdrawing(Idle):
    """Gives its key once."""

    def __init__(self, key: Any) -> None:
        self.key_set = key

    def version(self) -> int:
        """Another one when the key is gone."""
        return 1 if self.key_set else 2

    async def key(self, identifier: str, key_type: str) -> Any:
        """The key, which is gone when it is used."""
        given, self.key_set = self.key_set, None
        return given


async def test_memory_is_bounded(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token unused for longest is forgotten."""
    monkeypatch.setattr("server.identity.jwt.MAX_TOKENS", 2)
    source = Jwt(jwt_settings(str(key_file)), FileKeys(key_file))
    for name in "abca":
        await source.principal(Seen(bearer(token(claims(sub=name)))))
    assert 2 == len(source._verified._entries)


# --- key sets


@dataclass
class Issuer:
    """A server of key sets on loopback that counts how often it is asked."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0
    asked: int = 0
    url: str = ""

    async def answer(self, request: web.Request) -> web.Response:
        """The body; at another address always good keys."""
        if request.path != "/jwks":
            return web.Response(body=jwk_set(ISSUER_KEY))
        self.asked += 1
        await asyncio.sleep(self.delay)
        return web.Response(body=self.body, status=self.status, headers=self.headers)


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    """An issuer with one key."""
    served = Issuer(jwk_set(ISSUER_KEY))
    application = web.Application()
    application.router.add_get("/{any:.*}", served.answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    served.url = f"http://127.0.0.1:{runner.addresses[0][1]}/jwks"
    yield served
    await runner.cleanup()


async def test_rotation(issuer: Issuer) -> None:
    """A new key is fetched when it is first named, once in 30 s; a removed one ends its tokens, remembered or not."""
    clock = Clock(1000.0)
    keys = UrlKeys(issuer.url, clock)
    old, new = bearer(token()), bearer(token(key=EC, alg="ES256"))
    async with asked(Jwt(jwt_settings(issuer.url), keys)) as channel:
        assert "alice" == (await who(channel, old))[1]
        assert INVALID == await refusal(channel, new)  # asks the issuer, who has no such key yet
        assert 2 == issuer.asked
        issuer.body = jwk_set(ISSUER_KEY, EC)
        clock.now += 29.9
        for answer in await asyncio.gather(*(refusal(channel, new) for _ in range(5))):
            assert INVALID == answer
        assert 2 == issuer.asked  # not within 30 s
        clock.now += 0.1
        issuer.delay = 0.05
        names = await asyncio.gather(*(who(channel, new) for _ in range(20)))
        assert {"alice"} == {name[1] for name in names}
        assert 3 == issuer.asked  # all of them waited for one fetch
        assert "alice" == (await who(channel, old))[1]
        issuer.body = jwk_set(EC)
        await keys.refresh()  # what the timer does every ten minutes
        assert INVALID == await refusal(channel, old)
        assert "alice" == (await who(channel, new))[1]


async def test_the_same_keys_forget_nothing(issuer: Issuer) -> None:
    """A fetch that brings the same keys, in another order, leaves the remembered tokens alone."""
    issuer.body = jwk_set(ISSUER_KEY, EC).ljust(256 * 1024)  # the most there may be
    async with UrlKeys(issuer.url) as keys:
        before = keys.version()
        assert await keys.key("ec", "EC") is not None
        issuer.body = jwk_set(EC, ISSUER_KEY)
        await keys.refresh()
        assert (2, before) == (issuer.asked, keys.version())


async def test_a_cancelled_call_leaves_the_fetch(issuer: Issuer) -> None:
    """Who goes away while the keys are fetched does not take them from the others."""
    issuer.body = jwk_set()
    async with UrlKeys(issuer.url) as keys:
        issuer.body, issuer.delay = jwk_set(ISSUER_KEY), 0.1
        first, second = (asyncio.create_task(keys.key("rsa", "RSA")) for _ in range(2))
        await asyncio.sleep(0.02)
        first.cancel()
        assert await second is not None
        assert 2 == issuer.asked


BROKEN: dict[str, Callable[[Issuer], None]] = {
    "slow": lambda issuer: setattr(issuer, "delay", 2),
    "huge": lambda issuer: setattr(issuer, "body", jwk_set(ISSUER_KEY).ljust(256 * 1024 + 1)),
    "redirecting": lambda issuer: vars(issuer).update(status=302, headers={"Location": f"{issuer.url}/elsewhere"}),
    "failing": lambda issuer: setattr(issuer, "status", 500),
    "not JSON": lambda issuer: setattr(issuer, "body", b"<html>"),
    "not a key set": lambda issuer: setattr(issuer, "body", b"[]"),
    "keys not a list": lambda issuer: setattr(issuer, "body", b'{"keys": {}}'),
    "nested deeply": lambda issuer: setattr(issuer, "body", b'{"keys":' + b"[" * 100_000),
    "two keys of a name": lambda issuer: setattr(issuer, "body", jwk_set(ISSUER_KEY, STRANGER)),
    "not UTF-8": lambda issuer: setattr(issuer, "body", b'{"keys": "\xff"}'),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_broken_issuer(issuer: Issuer, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without keys calls are UNAVAILABLE, and work as soon as there are some; keys that are there are kept a day."""
    monkeypatch.setattr(jwks_module, "FETCH_SECONDS", 0.2)
    clock, good = Clock(0.0), Issuer(jwk_set(ISSUER_KEY), url=issuer.url)
    keys = UrlKeys(issuer.url, clock)
    BROKEN[name](issuer)
    async with asked(Jwt(jwt_settings(issuer.url), keys)) as channel:
        assert UNAVAILABLE == await refusal(channel, bearer(token()))
        assert INVALID == await refusal(channel, bearer("x"))
        vars(issuer).update(status=good.status, body=good.body, delay=0)
        clock.now += 30
        assert "alice" == (await who(channel, bearer(token())))[1]
        BROKEN[name](issuer)
        clock.now += 24 * 3600
        await keys.refresh()
        assert "alice" == (await who(channel, bearer(token())))[1]
        clock.now += 1
        await keys.refresh()
        assert UNAVAILABLE == await refusal(channel, bearer(token()))


async def test_the_timer_retries(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed first fetch is tried again without any call."""
    monkeypatch.setattr(jwks_module, "RETRY_SECONDS", 0.05)
    issuer.status = 503
    async with UrlKeys(issuer.url) as keys:
        issuer.status = 200
        async with asyncio.timeout(5):
            while keys.version() == 0:  # noqa: ASYNC110 - the timer is what is tested
                await asyncio.sleep(0.01)
    assert issuer.asked >= 2


def test_only_fit_keys_are_taken() -> None:
    """Symmetric, encryption, nameless, weak and malformed keys are not there; the others are."""
    weak = "AQAB" + "A" * 167
    members = [
        jwk.OctKey.generate_key(256, {"kid": "oct"}).as_dict(private=True),
        ISSUER_KEY.as_dict(private=False) | {"kid": "enc", "use": "enc"},
        {name: value for name, value in EC.as_dict(private=False).items() if name != "kid"},
        {"kty": "ISSUER_KEY", "kid": "weak", "n": weak, "e": "AQAB"},
        {"kty": "EC", "kid": "bad", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": ["RSA"], "kid": "list"},
        {"kty": "OKP", "kid": "new", "crv": "Ed9999", "x": "AA"},
        "text",
        OKP.as_dict(private=False),
    ]
    assert [("okp", "OKP")] == list(parse_jwk_set(json.dumps({"keys": members}).encode()))
    with pytest.raises(JwksInvalid):
        parse_jwk_set(json.dumps({"keys": [{}] * 257}).encode())


async def test_a_key_file_is_read_again(tmp_path: Path) -> None:
    """A changed or swapped file counts within a second; a broken or missing one changes nothing."""
    path, clock = tmp_path / "jwks.json", Clock(0.0)
    path.write_bytes(jwk_set(ISSUER_KEY))
    keys = FileKeys(path, clock)

    async def known() -> list[bool]:
        return [await keys.key("rsa", "RSA") is not None, await keys.key("ec", "EC") is not None]

    def replace(body: bytes) -> None:
        other = tmp_path / "other"
        other.write_bytes(body)
        other.rename(path)

    replace(jwk_set(EC))
    assert [True, False] == await known()  # looked at less than a second ago
    for change, expected in [
        (lambda: None, [False, True]),
        (lambda: replace(b"{"), [False, True]),
        (lambda: replace(jwk_set(ISSUER_KEY).ljust(256 * 1024 + 1)), [False, True]),
        (path.unlink, [False, True]),
        (lambda: replace(jwk_set(ISSUER_KEY, EC)), [True, True]),
    ]:
        change()
        clock.now += 1
        assert expected == await known()
    with pytest.raises(IdentityConfigError, match="jwt_jwks"):
        FileKeys(tmp_path / "missing")


# --- metadata of other sources


OTHERS: list[Metadata] = [
    bearer("x"),
    [("authorization", "")],
    [("authorization-bin", b"x")],
    [("x-principal", "admin")],
    [("x-principal-bin", b"admin")],
    [("x-principal", "a"), ("x-principal", "b")],
    [("x-tenant", "acme")],
    [("x-tenant-bin", b"acme")],
    [("x-attributes", "roles=admin")],
    [("x-attributes-bin", b"roles=admin")],
    [("x-forwarded-client-cert", "Hash=0;URI=spiffe://prod.example/a")],
    [("x-forwarded-client-cert-bin", b"x")],
]


@pytest.mark.parametrize("metadata", OTHERS, ids=str)
async def test_anonymous_is_not_told_otherwise(metadata: Metadata) -> None:
    """Without an identity source, who brings credentials is refused: they would be ignored."""
    async with asked(source_of(identity_settings())) as channel:
        assert INVALID == await refusal(channel, metadata)
        assert ["", "local", {}] == await who(channel, [("x-request-id", "1"), ("x-principal-other", "a")])


@pytest.mark.parametrize("metadata", OTHERS, ids=str)
async def test_upper_case_is_the_same_name(metadata: Metadata) -> None:
    """A key that reached us in capitals is not another key."""
    shouted = [(key.upper(), value) for key, value in metadata]
    with pytest.raises(errors.CredentialsInvalid):
        await source_of(identity_settings()).principal(Seen(shouted))


# --- the proxy


@pytest.fixture
def socket_path(tmp_path: Path) -> str:
    """A Unix socket's address, short enough for the kernel."""
    return f"unix:{tmp_path / 's'}"


PROXIED: list[tuple[Metadata, Any]] = [
    ([("x-principal", "alice")], ["", "alice", {}]),
    ([("x-principal", "alice"), ("x-tenant", "acme")], ["acme", "alice", {}]),
    (
        [("x-principal", "a b@c%41"), ("x-attributes", "roles=a;roles=b%2C%C3%BC;teams=x=y;color=red")],
        ["", "a b@c%41", {"roles": ["a", "b,ü"], "teams": ["x=y"]}],
    ),
    ([("x-principal", "x" * 256), ("x-attributes", "")], ["", "x" * 256, {}]),
    ([], MISSING),
    ([("x-tenant", "acme")], INVALID),
    ([("x-attributes", "roles=a")], INVALID),
    ([("x-principal", "")], INVALID),
    ([("x-principal", "x" * 257)], INVALID),
    ([("x-principal", "alice,admin")], INVALID),
    ([("x-principal", " alice")], INVALID),
    ([("x-principal", "alice"), ("x-principal", "admin")], INVALID),
    ([("x-principal", "alice"), ("x-principal-bin", b"admin")], INVALID),
    ([("x-principal", "alice"), ("x-tenant", "")], INVALID),
    ([("x-principal", "alice"), ("x-tenant", "a"), ("x-tenant", "a")], INVALID),
    ([("x-principal", "alice"), ("x-attributes", "roles")], INVALID),
    ([("x-principal", "alice"), ("x-attributes", "roles=")], INVALID),
    ([("x-principal", "alice"), ("x-attributes", "roles=a;")], INVALID),
    ([("x-principal", "alice"), ("x-attributes", "roles=a,roles=b")], INVALID),
    ([("x-principal", "alice"), ("x-attributes", "roles=a, roles=b")], INVALID),
    ([("x-principal", "alice"), ("x-attributes", "roles=a; roles=b")], INVALID),
    ([("x-principal", "alice"), ("x-attributes", "roles=a;roles=b,teams=c")], INVALID),
    ([("x-principal", "alice"), ("x-attributes", "Roles=a")], INVALID),
    ([("x-principal", "alice"), ("x-attributes", "roles=%zz")], INVALID),
    ([("x-principal", "alice"), ("x-attributes", "roles=%ff")], INVALID),
    ([("x-principal", "alice"), ("x-attributes", "roles=%00")], INVALID),
    ([("x-principal", "alice"), ("x-attributes", ";".join(f"roles={n}" for n in range(257)))], INVALID),
    ([("x-principal", "alice"), ("x-attributes", "roles=a"), ("x-attributes", "roles=b")], INVALID),
    ([("x-principal", "local")], INVALID),
    ([("x-principal", "local"), ("x-tenant", "acme")], INVALID),
    ([("x-principal", "alice"), ("authorization", "Bearer x")], INVALID),
    ([("x-principal", "alice"), ("x-forwarded-client-cert", "x")], INVALID),
]


async def test_proxy_on_a_unix_socket(socket_path: str) -> None:
    """A peer on the socket names the caller: each time the same, and each header once."""
    settings = load(listen=socket_path, identity="proxy", proxy_require_tenant=False)
    async with asked(source_of(settings), socket_path) as channel:
        for metadata, expected in PROXIED * 2:
            if isinstance(expected, list):
                assert expected == await who(channel, metadata)
            else:
                assert expected == await refusal(channel, metadata), metadata


@pytest.mark.parametrize(
    "required, before, after", [(None, True, False), (False, True, True), (True, False, False)], ids=str
)
async def test_a_tenant_can_be_required(socket_path: str, required: Any, *, before: bool, after: bool) -> None:
    """A caller without a tenant is refused if the setting says so; unset, once another caller had one."""
    source = source_of(load(listen=socket_path, identity="proxy", proxy_require_tenant=required))
    alone, tenanted, wrong = (
        Seen([("x-principal", "alice"), *(("x-tenant", tenant) for tenant in tenants)], end="unix:")
        for tenants in ([], ["acme"], ["a,b"])
    )

    async def accepts(call: Seen) -> bool:
        try:
            return bool(await source.principal(call))
        except errors.CredentialsInvalid:
            return False

    assert [before, False, before] == [await accepts(call) for call in (alone, wrong, alone)]
    assert [True, after] == [await accepts(call) for call in (tenanted, alone)]


@pytest.mark.parametrize("tenant", ["", "acme"])
def test_the_id_of_callers_without_identity_is_reserved(tenant: str, tmp_path: Path) -> None:
    """With identity nobody is `local`, who owns what was made without; `Local` is another id."""
    principals = Principals(())
    with pytest.raises(errors.CredentialsInvalid):
        principals.of(tenant, "local", {})
    assert "Local" == principals.of(tenant, "Local", {}).id
    file = tmp_path / "principals.yaml"
    file.write_text(f"local: {{tenant: '{tenant}'}}")
    with pytest.raises(IdentityConfigError, match="reserved"):
        PrincipalsFile(file, principals)


async def test_tenants_are_remembered(postgres: str, template: str, socket_path: str) -> None:
    """A service that starts on a database with conversations of tenants requires a tenant of its first call."""
    async with fresh_database(postgres, template) as url:
        for metadata, reason in (
            ([("x-principal", "alice")], ""),
            ([("x-principal", "alice"), ("x-tenant", "acme")], ""),
            ([("x-principal", "alice")], "CREDENTIALS_INVALID"),
        ):
            settings = {"identity": "proxy", "database_url": url, "purge_every_minutes": 0, "grace_seconds": 1}
            async with run_service(load(listen=socket_path, **settings)) as served:
                options = [("grpc.default_authority", "localhost")]
                async with grpc.aio.insecure_channel(served.address, options=options) as channel:
                    call = ConversationsServiceStub(channel).CreateConversation(
                        pb.CreateConversationRequest(), metadata=metadata
                    )
                    if reason:
                        assert reason == (await problem(call)).reason
                    else:
                        assert (await call).id


async def test_proxy_over_tcp_is_refused(socket_path: str) -> None:
    """Anybody can send metadata over TCP, so it says nothing, also right after a trusted proxy said it."""
    source = source_of(load(listen=socket_path, identity="proxy"))
    metadata: Metadata = [("x-principal", "alice")]
    assert "alice" == (await source.principal(Seen(metadata, end="unix:"))).id
    async with asked(source) as channel:
        assert INVALID == await refusal(channel, metadata)
        assert MISSING == await refusal(channel, [])
    with pytest.raises(errors.CredentialsInvalid):
        await source.principal(Seen(metadata, end="unix-abstract:x"))


# --- certificates


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    """The one that clients and the server trust."""
    return CertificateAuthority()


@pytest.fixture(scope="module")
def tls_files(authority: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The settings of TLS."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = authority.issue("localhost")
    files = {"tls_key": key, "tls_certificate": certificate, "tls_client_ca": authority.pem}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in files}


@asynccontextmanager
async def tls_client(
    address: str, authority: CertificateAuthority, pair: tuple[bytes, bytes] | None
) -> AsyncIterator[Any]:
    """A stub with a client certificate, or none."""
    chain, key = pair or (None, None)
    credentials = grpc.ssl_channel_credentials(authority.pem, key, chain)
    options = [("grpc.ssl_target_name_override", "localhost")]
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        yield ConversationsServiceStub(channel)


OWNERS = [
    (("cart", "spiffe://prod.example/ns/shop/sa/cart"), "spiffe://prod.example/ns/shop/sa/cart"),
    (("root", "spiffe://prod.example"), "spiffe://prod.example"),
    (("two", "spiffe://prod.example/a", "spiffe://prod.example/b"), None),
    (("two kinds", "spiffe://prod.example/a", "https://prod.example"), None),
    (("other domain", "spiffe://test.example/a"), None),
    (("domain as prefix", "spiffe://prod.example.evil/a"), None),
    (("domain in a path", "spiffe://evil.example/prod.example"), None),
    (("domain as user", "spiffe://prod.example@evil.example/a"), None),
    (("capitals", "spiffe://PROD.example/a"), None),
    (("climbing", "spiffe://prod.example/a/../b"), None),
    (("slash at the end", "spiffe://prod.example/a/"), None),
    (("too long", "spiffe://prod.example/" + "a" * 235), None),
    (("no SPIFFE", "https://prod.example/a"), None),
    (("spiffe://prod.example/a",), None),  # a common name is not a name
]


async def test_certificates(
    postgres: str, template: str, authority: CertificateAuthority, tls_files: dict[str, Path]
) -> None:
    """The real service: the one SPIFFE id of a listed domain owns what it makes; any other certificate is refused."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(fresh_database(postgres, template))
        values = {"identity": "mtls", "mtls_trust_domains": "prod.example", "purge_every_minutes": 0, **tls_files}
        chosen = identity_settings(database_url=url, grace_seconds=1, **values)
        served = await stack.enter_async_context(run_service(chosen))
        for (name, *uris), owner in OWNERS:
            pair = authority.issue(name, uris=uris)
            async with tls_client(served.address, authority, pair) as stub:
                call = stub.CreateConversation(pb.CreateConversationRequest())
                if owner:
                    assert owner == (await call).owner
                else:
                    assert ("UNAUTHENTICATED", "CREDENTIALS_INVALID") == _known(await problem(call)), (name, uris)
        name, *uris = OWNERS[0][0]
        pair = authority.issue(name, uris=uris)
        async with tls_client(served.address, authority, pair) as stub:
            call = stub.CreateConversation(pb.CreateConversationRequest(), metadata=[("x-principal", "admin")])
            assert "CREDENTIALS_INVALID" == (await problem(call)).reason
        for stranger in (None, CertificateAuthority().issue(name, uris=uris)):
            async with tls_client(served.address, authority, stranger) as stub:
                call = stub.CreateConversation(pb.CreateConversationRequest(), timeout=5)
                assert ("UNAVAILABLE", "") == _known(await problem(call))  # TLS lets nobody in


def _known(told: Any) -> tuple[str, str]:
    return told.code, told.reason


def peer(**properties: str | list[str]) -> dict[str, list[bytes]]:
    """What gRPC says of a checked certificate."""
    lists = {name: value if isinstance(value, list) else [value] for name, value in properties.items()}
    return {"x509_pem_cert": [CA.pem]} | {name: [text.encode() for text in texts] for name, texts in lists.items()}


async def test_subjects_and_the_file(tls_files: dict[str, Path], tmp_path: Path) -> None:
    """By subject it is the whole subject; with a file only those in it, with their tenant and attributes."""
    file = tmp_path / "principals.yaml"
    file.write_text("CN=backup,O=Example: {tenant: acme, attributes: {roles: [writer, reader]}}\n")
    chosen = identity_settings(identity="mtls", mtls_subjects=True, **tls_files)
    subject = peer(x509_subject="CN=backup,O=Example", x509_common_name="backup", peer_uri="spiffe://prod.example/a")
    found = await source_of(chosen).principal(Seen([], auth=subject))
    assert Principal(tenant="", id="CN=backup,O=Example") == found
    source = source_of(chosen.model_copy(update={"principals_file": file}))
    roles = {"roles": frozenset({"writer", "reader"})}
    assert Principal("acme", "CN=backup,O=Example", roles) == await source.principal(Seen([], auth=subject))
    with pytest.raises(errors.CredentialsInvalid):
        await source.principal(Seen([], auth=peer(x509_subject="CN=backup,O=Other")))
    with pytest.raises(errors.CredentialsMissing):
        await source.principal(Seen([], auth={"transport_security_type": [b"insecure"]}))


@pytest.mark.parametrize(
    "text",
    [
        "[a]",
        "a: [",
        "a: {tenant: x}\na: {tenant: y}",
        "a: {role: x}",
        "a: {tenant: 7}",
        "a: {attributes: [roles]}",
        "a: {attributes: {roles: admin}}",
        "a: {attributes: {roles: [1]}}",
        "a: {attributes: {color: [red]}}",
        "7: {}",
        '"": {}',
        "a: &a {attributes: *a}",
        "? [a]\n: {}",
        f"{'a' * 300}: {{}}",
    ],
)
def test_broken_file_of_principals(tmp_path: Path, text: str) -> None:
    """A file that cannot be meant stops the start, and does not replace a good one."""
    file, clock, principals = tmp_path / "principals.yaml", Clock(0.0), Principals(["roles"])
    file.write_text(text)
    with pytest.raises(IdentityConfigError, match="principals_file"):
        PrincipalsFile(file, principals)
    file.write_text("alice: {attributes: {roles: [r]}}\nbob:")
    listed = PrincipalsFile(file, principals, clock)
    file.write_text(text)
    clock.now += 1
    assert Principal("", "alice", {"roles": frozenset("r")}) == listed.get("alice")
    assert Principal("", "bob") == listed.get("bob")
    file.write_text("alice: {}")
    clock.now += 1
    assert [Principal("", "alice"), None] == [listed.get("alice"), listed.get("bob")]


async def test_proxy_with_a_certificate(tls_files: dict[str, Path]) -> None:
    """A proxy with a listed SPIFFE id is trusted over TCP; another one, or one of its names, is not."""
    chosen = identity_settings(identity="proxy", proxy_spiffe_ids="spiffe://prod.example/mesh", **tls_files)
    source, metadata = source_of(chosen), [("x-principal", "alice")]
    assert "alice" == (await source.principal(Seen([*metadata], auth=peer(peer_uri="spiffe://prod.example/mesh")))).id
    for uris in ([], ["spiffe://prod.example/other"], ["spiffe://prod.example/mesh", "https://a.example"]):
        with pytest.raises(errors.CredentialsInvalid):
            await source.principal(Seen([*metadata], auth=peer(peer_uri=uris)))


def test_tls_files_are_checked(tls_files: dict[str, Path], authority: CertificateAuthority, tmp_path: Path) -> None:
    """A file that is missing, no PEM or of another pair is told at the start, by the setting's name."""
    other, text = tmp_path / "key", tmp_path / "text"
    other.write_bytes(authority.issue("x")[1])
    text.write_text("no PEM")
    assert load_credentials(identity_settings()) is None
    assert load_credentials(identity_settings(**tls_files)) is not None
    wrong = [("tls_key", other), ("tls_key", text), ("tls_certificate", text), ("tls_client_ca", text)]
    for name, path in [*wrong, ("tls_key", tmp_path / "none")]:
        with pytest.raises(TlsConfigError, match=name):
            load_credentials(identity_settings(**tls_files | {name: path}))


# --- the whole service


async def test_two_callers_two_owners(postgres: str, template: str, key_file: Path) -> None:
    """What a caller makes is its own, in its tenant, with its attributes; health and reflection need no credentials."""
    values = {"identity": "jwt", "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_jwks": str(key_file)}
    async with (
        fresh_database(postgres, template) as url,
        running_service(url, jwt_tenant_claim="org", **values) as service,
    ):
        made = {}
        for name in ("alice", "bob"):
            body = claims(sub=name, org=f"tenant of {name}", teams=[f"team of {name}"])
            metadata = bearer(token(body))
            made[name] = await service.stub.CreateConversation(pb.CreateConversationRequest(), metadata=metadata)
            assert name == made[name].owner
            assert [f"team of {name}"] == list(made[name].attributes["teams"].values)
        call = service.stub.GetConversation(
            pb.GetConversationRequest(conversation_id=made["bob"].id),
            metadata=bearer(token(claims(org="tenant of alice"))),
        )
        assert "NOT_FOUND" == (await problem(call)).code
        assert (
            "CREDENTIALS_MISSING"
            == (await problem(service.stub.ListConversations(pb.ListConversationsRequest()))).reason
        )
        long = service.stub.ListConversations(pb.ListConversationsRequest(), metadata=bearer(_of_length(8193)))
        assert "CREDENTIALS_INVALID" == (await problem(long)).reason
        health = health_pb2_grpc.HealthStub(service.channel)
        for anything in (None, bearer("x"), [("x-principal", "a")]):
            answer = await health.Check(health_pb2.HealthCheckRequest(), metadata=anything)
            assert health_pb2.HealthCheckResponse.SERVING == answer.status


async def test_no_secret_in_the_log(
    jwt_channel: grpc.aio.Channel, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal is logged with its cause; of the token there is nothing, nor of any other metadata."""
    caplog.set_level(logging.DEBUG)
    sent = [metadata() for metadata in FORGED.values()]
    with structlog.testing.capture_logs() as lines:
        for metadata in sent:
            await refusal(jwt_channel, metadata)
    assert len(sent) == len([line for line in lines if line["event"] == "credentials refused" and line["why"]])
    out, err = capfd.readouterr()
    logged = json.dumps(lines, default=repr) + out + err + caplog.text
    for _, value in (pair for metadata in sent for pair in metadata):
        text = value.decode() if isinstance(value, bytes) else value
        for part in text.replace(",", " ").replace(".", " ").split():
            assert len(part) < 6 or part in ("Bearer", "secret") or part not in logged


# --- settings and principals


@pytest.mark.parametrize(
    "values, named",
    [
        ({"identity": "jwt"}, ["jwt_issuer", "jwt_audience", "jwt_jwks"]),
        ({"identity": "jwt", "jwt_issuer": "i", "jwt_jwks": "f", "jwt_audience": ""}, ["jwt_audience"]),
        ({"identity": "mtls"}, ["tls_client_ca", "mtls_trust_domains"]),
        (
            {"identity": "mtls", "mtls_subjects": True, "mtls_trust_domains": "a"},
            ["tls_client_ca", "mtls_trust_domains"],
        ),
        ({"identity": "mtls", "mtls_trust_domains": "spiffe://a/b"}, ["tls_client_ca", "mtls_trust_domains"]),
        ({"identity": "proxy"}, ["listen"]),
        ({"identity": "proxy", "proxy_spiffe_ids": "a/b"}, ["tls_client_ca", "proxy_spiffe_ids"]),
        ({"jwt_issuer": "i", "mtls_subjects": True}, ["jwt_issuer", "mtls_subjects"]),
        ({"identity": "jwt", "proxy_spiffe_ids": "spiffe://a/b"}, ["jwt_issuer", "jwt_audience", "proxy_spiffe_ids"]),
        ({"tls_key": "k"}, ["tls_certificate"]),
        ({"tls_client_ca": "c"}, ["tls_client_ca"]),
        ({"listen": "0.0.0.0:1"}, ["allow_anonymous"]),
        ({"jwt_algorithms": "RS256,HS256", "attribute_names": "Roles"}, ["jwt_algorithms", "attribute_names"]),
        ({"jwt_algorithms": "none"}, ["jwt_algorithms"]),
        ({"jwt_algorithms": ""}, ["jwt_algorithms"]),
        ({"jwt_jwks": "http://issuer.example/jwks"}, ["jwt_jwks"]),
        ({"jwt_jwks": "https://user:secret@issuer.example/jwks"}, ["jwt_jwks"]),
        ({"jwt_jwks": "file:///etc/keys"}, ["jwt_jwks"]),
        ({"jwt_attribute_claims": "groups"}, ["jwt_attribute_claims"]),
        ({"jwt_attribute_claims": "a=x,a=y"}, ["jwt_attribute_claims"]),
        ({"identity": "jwt", "jwt_attribute_claims": "a=color"}, ["jwt_issuer", "jwt_attribute_claims"]),
        ({"identity": "ldap"}, ["identity"]),
    ],
    ids=str,
)
def test_wrong_settings(values: dict[str, Any], named: list[str]) -> None:
    """Each is named, all at once, and no value is printed."""
    with pytest.raises(SettingsInvalid) as caught:
        load(**values)
    for name in named:
        assert any(line.startswith(name) for line in str(caught.value).splitlines()), (name, str(caught.value))
    assert "secret" not in str(caught.value)


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists and maps are written with commas; with a source any address may be served."""
    lines = {"IDENTITY": "jwt", "JWT_ISSUER": "i", "JWT_AUDIENCE": "a", "JWT_JWKS": "https://issuer.example/keys"}
    lines |= {
        "LISTEN": "0.0.0.0:1",
        "JWT_ALGORITHMS": "RS256, PS512",
        "JWT_ATTRIBUTE_CLAIMS": "groups=teams, roles=roles",
    }
    for name, value in lines.items():
        monkeypatch.setenv(f"CONVERSATIONS_{name}", value)
    chosen = load()
    assert ("RS256", "PS512") == chosen.jwt_algorithms
    assert {"groups": "teams", "roles": "roles"} == chosen.jwt_attribute_claims


def test_principals_are_equal_by_content() -> None:
    """Order and empty attributes do not matter, anything else does; nothing can be changed afterwards."""
    one = Principal(tenant="t", id="a", attributes={"roles": frozenset("xy"), "teams": frozenset("z")})
    same = Principal(
        tenant="t", id="a", attributes={"teams": frozenset("z"), "roles": frozenset("yx"), "p": frozenset()}
    )
    assert (one, hash(one)) == (same, hash(same))
    others = [Principal("u", "a", one.attributes), Principal("t", "b", one.attributes), Principal("t", "a")]
    assert 4 == len({one, same, *others})
    with pytest.raises(TypeError):
        one.attributes["roles"] = frozenset()  # type: ignore[index]
