"""How the client package connects: service config, TLS, tokens and Unix sockets."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc.aio
import pytest
from conversations.v1.access_service_pb2 import CheckAccessRequest, Permission
from conversations.v1.conversations_service_pb2 import ListConversationsRequest, WatchItemsRequest
from conversations.v1.erasure_service_pb2 import EraseSubjectRequest
from conversations_client import BearerToken, Client, Tls, connect, details_of
from conversations_client.channel import service_config
from conversations_client.token import expiry_of

from tests.support.build import ahead, create, get, list_items, user_message
from tests.support.certificates import CA, TlsFiles
from tests.support.commands import ROOT
from tests.support.jwt import AUDIENCE, ISSUER, ISSUER_KEY, claims, jwk_set, token
from tests.support.postgres import fresh_database
from tests.support.service import Service, running_service

READ = Permission(resource="conversation", action="read")


def test_the_config_is_the_one_that_is_shipped() -> None:
    """A client retries and waits as deploy/service_config.json says."""
    assert (ROOT / "deploy/service_config.json").read_text(encoding="utf-8") == service_config()


async def first_of(stream: Any) -> Any:
    """The first message of a stream."""
    return await stream.read()


async def test_it_connects(service: Service) -> None:
    """Calls, watches and questions about access reach the service without further options."""
    async with connect(service.address) as client:
        made = await client.conversations.CreateConversation(create(user_message("hi")))
        watch = client.watches.WatchItems(WatchItemsRequest(conversation_id=made.id, after_sequence=0))
        assert made == (await first_of(watch)).changes[0].conversation
        watch.cancel()
        asked = CheckAccessRequest(conversation_id=made.id, permissions=[READ])
        assert [READ] == (await client.access.CheckAccess(asked)).allowed
        counted = EraseSubjectRequest(principal="nobody", request_id=str(uuid4()), validate_only=True)
        assert 0 == (await first_of(client.erasures.EraseSubject(counted))).conversation_count


async def test_a_call_waits_for_a_server(postgres: str, template: str, short_folder: Path) -> None:
    """With the service config, a call that comes before the server is answered; over a Unix socket here."""
    socket = f"unix:{short_folder}/socket"
    async with connect(socket) as client, fresh_database(postgres, template) as url:
        call = asyncio.ensure_future(client.conversations.CreateConversation(create()))
        await asyncio.sleep(0.05)
        async with running_service(url, listen=socket):
            assert (await call).id


async def test_a_large_response_arrives(service: Service) -> None:
    """A page of more than the 4 MiB that gRPC takes by default."""
    async with connect(service.address) as client:
        made = await client.conversations.CreateConversation(create(user_message("x" * 5 * 2**20)))
        assert 1 == len((await client.conversations.ListItems(list_items(made.id))).items)


@asynccontextmanager
async def served(postgres: str, template: str, **settings: Any) -> AsyncIterator[str]:
    """The address of a service with these settings."""
    async with fresh_database(postgres, template) as url, running_service(url, **settings) as running:
        yield running.address


class Issuer:
    """Gives tokens.

    Attributes:
        changed: How the claims of the next token differ from those of a valid one.
        given: How many it has given.
    """

    def __init__(self) -> None:
        self.changed: dict[str, Any] = {}
        self.given = 0

    async def fetch(self) -> str:
        """A new token."""
        await asyncio.sleep(0)
        self.given += 1
        return token(claims(**self.changed))


@pytest.fixture(scope="module", params=["tls", "plain"])
async def guarded(
    request: pytest.FixtureRequest, postgres: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Callable[[BearerToken], Client]]:
    """Connects to a service that takes tokens, over TLS and without."""
    folder = tmp_path_factory.mktemp("issuer")
    (folder / "jwks.json").write_bytes(jwk_set(ISSUER_KEY))
    identity = {"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_jwks": str(folder / "jwks.json")}
    tls, files = None, {}
    if request.param == "tls":
        tls, files = Tls(ca=CA.pem, server_name="localhost"), TlsFiles(folder).put(*CA.issue("localhost")).settings
    async with served(postgres, template, identity="jwt", **identity, **files) as address:
        yield lambda bearer: connect(address, tls=tls, token=bearer)


Guarded = Callable[[BearerToken], Client]


async def test_calls_of_all_kinds_carry_a_token(guarded: Guarded) -> None:
    """Unary calls, watches and streams of appends; many calls at once fetch one token, which is then kept."""
    issuer = Issuer()
    async with guarded(BearerToken(issuer.fetch)) as client:
        made, *_ = await asyncio.gather(*(client.conversations.CreateConversation(create()) for _ in range(5)))
        assert "alice" == made.owner
        watch = client.watches.WatchItems(WatchItemsRequest(conversation_id=made.id))
        assert made.id == (await first_of(watch)).changes[0].conversation.id
        watch.cancel()
        stream = client.conversations.AppendItems()
        await stream.write(ahead(made.id, user_message("hi")))
        assert 1 == (await first_of(stream)).appended.first_sequence
        stream.cancel()
        assert 1 == issuer.given


async def test_a_token_is_renewed(guarded: Guarded) -> None:
    """One that expires soon is fetched again before the next call, and one that the server refuses after `renew`."""
    issuer = Issuer()
    bearer = BearerToken(issuer.fetch)
    async with guarded(bearer) as client:
        issuer.changed = {"exp": int(time.time()) + 10}
        await client.conversations.ListConversations(ListConversationsRequest())
        issuer.changed = {"aud": "others"}
        assert "CREDENTIALS_INVALID" == await refusal(client)
        issuer.changed, given = {}, issuer.given
        assert ("CREDENTIALS_INVALID", given) == (await refusal(client), issuer.given)
        await bearer.renew()
        await client.conversations.ListConversations(ListConversationsRequest())
        assert given + 1 == issuer.given


async def refusal(client: Client) -> str:
    """The reason why a call is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.conversations.ListConversations(ListConversationsRequest())
    return details_of(caught.value).reason


async def test_a_token_that_cannot_be_fetched_fails_the_call(guarded: Guarded) -> None:
    """The call ends with the error of the one who fetched it, or with one of gRPC that does not repeat its text."""

    async def fetch() -> str:
        raise OSError("secret")

    async with guarded(BearerToken(fetch)) as client:
        with pytest.raises((grpc.aio.AioRpcError, OSError)) as caught:
            await client.conversations.GetConversation(get("conv_1"), timeout=0.3)
    assert isinstance(caught.value, OSError) or "secret" not in str(caught.value)


@pytest.mark.parametrize("target", ["conversations:50051", "dns:///localhost:50051", "10.0.0.1:50051", "x"])
def test_a_token_leaves_the_machine_by_tls_only(target: str) -> None:
    """A target that may lead elsewhere is refused at once; a loopback address and a socket are not."""

    async def fetch() -> str:
        return ""

    with pytest.raises(ValueError, match="TLS"):
        connect(target, token=BearerToken(fetch))


@pytest.mark.parametrize("target", ["127.0.0.1:50051", "[::1]:50051", "localhost:1", "unix:/run/api.sock"])
async def test_a_token_may_go_to_this_machine(target: str) -> None:
    """A loopback address and a socket need no TLS."""

    async def fetch() -> str:
        return ""

    async with connect(target, token=BearerToken(fetch)):
        pass


@pytest.mark.parametrize("told", ["", "opaque", "a.b.c", "a.%.c", "a.bnVsbA.c", "a.e30.c", "a.eyJleHAiOiBbXX0.c"])
def test_a_token_that_does_not_say_when_it_expires(told: str) -> None:
    """It is kept until the server refuses it."""
    assert math.inf == expiry_of(told)


def test_the_expiry_is_read_from_a_token() -> None:
    """The claim `exp`, whatever the padding."""
    for name in ("a", "ab", "abc"):
        assert 1234567890 == expiry_of(token(claims(exp=1234567890, sub=name)))


async def test_a_client_certificate(postgres: str, template: str, tmp_path: Path) -> None:
    """A server with mutual TLS knows the client by its certificate."""
    files = TlsFiles(tmp_path).put(*CA.issue("localhost"), client_ca=CA.pem)
    certificate, key = CA.issue("cart", uris=["spiffe://prod.example/cart"])
    tls = Tls(CA.pem, certificate, key, server_name="localhost")
    async with (
        served(postgres, template, **files.settings, identity="mtls", mtls_trust_domains="prod.example") as address,
        connect(address, tls=tls) as client,
    ):
        assert "spiffe://prod.example/cart" == (await client.conversations.CreateConversation(create())).owner
