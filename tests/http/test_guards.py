"""What keeps web pages, forms and rebound names out, and strangers from being believed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.http import CONVERSATIONS, JSON, EdgeService, HttpClient, edge_service, http_client
from tests.support.jwt import AUDIENCE, ISSUER, ISSUER_KEY, jwk_set, token
from tests.support.service import Service

PLAIN = {"Content-Type": "text/plain"}
TYPES: list[tuple[Mapping[str, str], int]] = [
    (JSON, 200),
    ({"Content-Type": "application/json; charset=UTF-8"}, 200),
    ({"Content-Type": "APPLICATION/JSON"}, 200),
    ({"Content-Type": "application/json; charset=latin-1"}, 415),
    (PLAIN, 415),
    ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
    ({"Content-Type": ""}, 415),
]


@pytest.mark.parametrize("headers, status", TYPES)
async def test_content_type(http: HttpClient, headers: Mapping[str, str], status: int) -> None:
    """A body is JSON by its header too: what a form of a web page may send is refused."""
    answer = await http.call("POST", CONVERSATIONS, data=b"{}", headers=headers)
    assert status == answer.status
    if status == 415:
        assert "unsupported_media_type" == answer.error[1]


@pytest.mark.parametrize("path", [CONVERSATIONS, "/openapi.json", "/v1/nothing"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost"])
async def test_origin(http: HttpClient, path: str, origin: str) -> None:
    """A request that a web page makes is refused, whatever it is for."""
    answer = await http.get(path, Origin=origin)
    assert (403, None, None) == answer.error[:3]
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


HOSTS = [
    ("localhost", 200),
    ("LOCALHOST:80", 200),
    ("127.0.0.1:1", 200),
    ("10.1.2.3", 200),
    ("[::1]:80", 200),
    ("[::1]", 200),
    ("api.internal:443", 200),
    ("evil.example", 421),
    ("localhost.evil.example", 421),
    ("127.0.0.1.evil.example", 421),
    ("", 421),
]


async def test_host(service: Service) -> None:
    """Without identity the name of the service is one of those that are known, so that no page can make up one."""
    async with edge_service(service.url, http_hosts="API.internal") as served:
        for host, status in HOSTS:
            assert status == (await served.http.get(CONVERSATIONS, Host=host)).status, host


async def test_hosts_do_not_matter_on_a_socket(service: Service, short_folder: Path) -> None:
    """No page reaches a Unix socket; its clients say any name."""
    async with edge_service(service.url, http_listen=f"unix:{short_folder}/http") as served:
        assert 0o660 == (short_folder / "http").stat().st_mode & 0o777
        assert 200 == (await served.http.get(CONVERSATIONS, Host="any.example")).status
    assert not (short_folder / "http").exists()


# -- identity


async def test_a_key_that_nobody_checks(http: HttpClient) -> None:
    """SDKs have to send a bearer: one that is no JWT is no credential, and one that is means to be checked."""
    for key in ("unused", "sk-proj-123_456", "a.b", "", "a.b.c.d"):
        assert 200 == (await http.get(CONVERSATIONS, Authorization=f"Bearer {key}")).status
    for credential in (f"Bearer {token()}", f"bearer  {token()}", "Basic dTpw", "a.b.c"):
        answer = await http.get(CONVERSATIONS, Authorization=credential)
        assert (401, "invalid_api_key", None, "Credentials are not valid.") == answer.error
        assert "Bearer" == answer.headers["WWW-Authenticate"]
    for name in ("x-principal", "x-tenant", "x-forwarded-client-cert", "x-principal-bin"):
        assert 401 == (await http.get(CONVERSATIONS, **{name: "root"})).status
    ignored = {"OpenAI-Organization": "acme", "OpenAI-Project": "p", "OpenAI-Beta": "b"}
    assert 200 == (await http.get(CONVERSATIONS, **ignored)).status


@pytest.fixture
def jwt(tmp_path: Path) -> dict[str, Any]:
    """Settings of a service that checks tokens."""
    (tmp_path / "jwks").write_bytes(jwk_set(ISSUER_KEY))
    return {"identity": "jwt", "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_jwks": str(tmp_path / "jwks")}


async def test_tokens(service: Service, jwt: dict[str, Any]) -> None:
    """With the source `jwt` the bearer is the token: its principal owns what it makes, and any name is served."""
    async with edge_service(service.url, **jwt) as served:
        mine = {"Authorization": f"Bearer {token()}"}
        made = await served.http.call("POST", CONVERSATIONS, {}, headers=mine)
        path = f"{CONVERSATIONS}/{made.json['id']}"
        assert 200 == (await served.http.get(path, **mine, Host="any.example")).status
        assert (401, "Credentials are missing.") == (await served.http.get(path)).error[::3]
        for wrong in ("unused", token()[:-4] + "AAAA", "ü"):
            refused = await served.http.get(path, Authorization=f"Bearer {wrong}")
            assert (401, "invalid_api_key") == refused.error[:2]


async def test_a_refused_body_is_not_parsed(service: Service, jwt: dict[str, Any]) -> None:
    """A stranger is told so, and not what is wrong with the body."""
    async with edge_service(service.url, **jwt) as served:
        assert 401 == (await served.http.call("POST", CONVERSATIONS, data=b"{")).status
        assert 401 == (await served.http.get(f"{CONVERSATIONS}?nonsense=1")).status


async def test_a_proxy(service: Service, short_folder: Path) -> None:
    """A trusted proxy names the principal as over gRPC; a header that came twice is refused."""
    settings = {"listen": f"unix:{short_folder}/grpc", "http_listen": f"unix:{short_folder}/http"}
    async with edge_service(service.url, identity="proxy", **settings) as served:
        alice, bob = ({"x-principal": name, "x-tenant": "edge"} for name in ("alice", "bob"))
        made = await served.http.call("POST", CONVERSATIONS, {}, headers=alice)
        path = f"{CONVERSATIONS}/{made.json['id']}"
        assert 200 == (await served.http.get(path, **alice)).status
        assert (404, None) == (await served.http.get(path, **bob)).error[:2]
        assert 401 == (await served.http.get(path)).status
        async with http_client(served.address) as client:
            twice = [("x-principal", "alice"), ("x-principal", "alice"), ("x-tenant", "edge")]
            async with client.session.get(client.base + path, headers=twice) as answer:
                assert 401 == answer.status


async def test_permissions(edge: EdgeService, service: Service, tmp_path: Path) -> None:
    """A policy refuses over HTTP what it refuses over gRPC."""
    policy = tmp_path / "policy.yaml"
    policy.write_text("- permit: {actions: [read]}\n", encoding="utf-8")
    async with edge_service(service.url, policy_file=policy) as served:
        answer = await served.http.post(CONVERSATIONS, {})
        assert (403, "insufficient_permissions", None) == answer.error[:3]
        path = await edge.http.create({"role": "user", "content": "hello"})
        assert 200 == (await served.http.get(path)).status
        assert 403 == (await served.http.delete(path)).status
