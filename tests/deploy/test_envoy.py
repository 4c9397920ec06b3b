"""Envoy before two services with a database each: a call goes to the database of its caller's tenant."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import yaml
from aiohttp import ClientSession
from conversations.v1.conversations_service_pb2 import ListConversationsRequest, WatchItemsRequest
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub

from tests.support.build import append, create, get, user_message
from tests.support.commands import ROOT
from tests.support.jwt import AUDIENCE, ISSUER, ISSUER_KEY, claims, jwk_set, token
from tests.support.pages import code_blocks
from tests.support.postgres import fetch, fresh_database
from tests.support.problems import problem
from tests.support.programs import ending, run_program
from tests.support.service import Service, running_service

pytestmark = pytest.mark.tool("envoy")

CONFIGURATION = ROOT / "deploy" / "envoy" / "tenants.yaml"
ACME, GLOBEX = "acme", "globex"  # of the first database, like every tenant without a route; and of the second
SCALE, PRINTED_ADDRESS = ROOT / "docs" / "scale.md", "127.0.0.1:50050"
ROUTE_HEADER = "x-tenant-of-token"
ENVOY_SECONDS = 15.0  # after which Envoy ends a call, unless it is told otherwise


@dataclass(frozen=True)
class Front:
    """The service as callers of Envoy see it, and the services behind it, by tenant."""

    address: str
    stub: Any
    services: dict[str, Service]

    async def rows(self, tenant: str) -> int:
        """How many conversations the database of a tenant has."""
        query = "SELECT count(*) AS count FROM conversations"
        return int((await fetch(self.services[tenant].url, query))[0]["count"])


def user_of(tenant: str, *more: tuple[str, str]) -> dict[str, Any]:
    """Options of a call by a user of a tenant."""
    return {"metadata": [("authorization", f"Bearer {token(claims(org=tenant))}"), *more], "timeout": 30}


def address_of(host: str, port: int) -> dict[str, Any]:
    """An address as Envoy writes it."""
    return {"socket_address": {"address": host, "port_value": port}}


def configure(services: list[Service], folder: Path) -> Path:
    """Writes the configuration of the repository with addresses and keys of this test."""
    whole = yaml.safe_load(CONFIGURATION.read_text())
    whole["admin"] = {"address": address_of("127.0.0.1", 0)}
    listener, clusters = whole["static_resources"]["listeners"][0], whole["static_resources"]["clusters"]
    listener["address"] = address_of("127.0.0.1", 0)
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    provider = manager["http_filters"][0]["typed_config"]["providers"]["issuer"]
    assert (ISSUER, [AUDIENCE]) == (provider["issuer"], provider["audiences"])
    provider["local_jwks"]["filename"] = str(folder / "jwks.json")
    for cluster, service in zip(clusters, services, strict=True):
        host, port = service.address.split(":")
        endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
        endpoint["address"] = address_of(host, int(port))
    path = folder / "envoy.yaml"
    path.write_text(yaml.safe_dump(whole))
    return path


async def ask(admin: Path, question: str) -> str:
    """What Envoy answers at the address of its administration, which it writes to a file."""
    async with ClientSession() as session, session.get(f"http://{admin.read_text()}{question}") as answer:
        return await answer.text()


async def listens_on(admin: Path) -> str:
    """The address of the listener, once Envoy has found all services ready."""
    async with asyncio.timeout(30):
        while not (admin.exists() and admin.read_text()):  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.05)
        while (await ask(admin, "/clusters")).count("health_flags::healthy") < 2:  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.05)
        listeners = json.loads(await ask(admin, "/listeners?format=json"))
    found = listeners["listener_statuses"][0]["local_address"]["socket_address"]
    return f"{found['address']}:{found['port_value']}"


@asynccontextmanager
async def running_envoy(configuration: Path) -> AsyncIterator[str]:
    """Its address."""
    admin = configuration.with_name("admin")
    options = ("--admin-address-path", str(admin), "--use-dynamic-base-id", "--log-level", "off")
    process = await asyncio.create_subprocess_exec("envoy", "-c", str(configuration), *options)
    async with ending(process):
        yield await listens_on(admin)


@pytest.fixture(scope="module")
async def front(postgres: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    """Two services with a database each, and Envoy before them."""
    folder = tmp_path_factory.mktemp("envoy")
    keys = folder / "jwks.json"
    keys.write_bytes(jwk_set(ISSUER_KEY))
    identity = {"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_jwks": str(keys), "jwt_tenant_claim": "org"}
    async with AsyncExitStack() as stack:
        services = []
        for _ in (ACME, GLOBEX):
            url = await stack.enter_async_context(fresh_database(postgres, template))
            service = running_service(url, identity="jwt", listen="127.0.0.1:0", **identity)
            services.append(await stack.enter_async_context(service))
        address = await stack.enter_async_context(running_envoy(configure(services, folder)))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        yield Front(address, ConversationsServiceStub(channel), dict(zip((ACME, GLOBEX), services, strict=True)))


async def listed(front: Front, tenant: str) -> list[str]:
    """The ids of all conversations of a tenant, which are few."""
    page = await front.stub.ListConversations(ListConversationsRequest(page_size=100), **user_of(tenant))
    return [each.id for each in page.conversations]


async def test_each_tenant_has_its_database(front: Front) -> None:
    """What a tenant writes is in its database only, and read from there; other tenants are in the first."""
    before = {tenant: await front.rows(tenant) for tenant in (ACME, GLOBEX)}
    made = {
        tenant: await front.stub.CreateConversation(create(user_message("x")), **user_of(tenant))
        for tenant in (ACME, GLOBEX, "initech")
    }
    assert {ACME: before[ACME] + 2, GLOBEX: before[GLOBEX] + 1} == {
        tenant: await front.rows(tenant) for tenant in (ACME, GLOBEX)
    }
    for tenant, conversation in made.items():
        assert conversation == await front.stub.GetConversation(get(conversation.id), **user_of(tenant))
        assert conversation.id in await listed(front, tenant)
    told = await problem(front.stub.GetConversation(get(made[ACME].id), **user_of(GLOBEX)))
    assert "NOT_FOUND" == told.code


@pytest.mark.tool("grpcurl")
async def test_grpcurl(front: Front) -> None:
    """The command of the documentation makes a conversation in the database of the token's tenant."""
    before = await front.rows(GLOBEX)
    (script,) = code_blocks(SCALE)["Tenants over several databases"]
    script = f"TOKEN={token(claims(org=GLOBEX))}\n{script.replace(PRINTED_ADDRESS, front.address)}"
    output = await run_program("bash", "-euc", script, seconds=30)
    assert '"topic": "weather"' in output
    assert before + 1 == await front.rows(GLOBEX)


async def test_only_the_token_names_the_tenant(front: Front) -> None:
    """A caller that sends the header of the route itself gets to the database of its token."""
    before = await front.rows(GLOBEX)
    await front.stub.CreateConversation(create(), **user_of(ACME, (ROUTE_HEADER, GLOBEX)))
    assert before == await front.rows(GLOBEX)


async def test_without_a_good_token(front: Front) -> None:
    """Envoy refuses who has no token, or one that is expired or not signed by the issuer, as the service does."""
    strange = token(claims(exp=1_000_000_000))
    for metadata in ([], [("authorization", "Bearer x")], [("authorization", f"Bearer {strange}")]):
        told = await problem(front.stub.CreateConversation(create(), metadata=metadata, timeout=30))
        assert "UNAUTHENTICATED" == told.code


async def test_large_requests_and_answers(front: Front) -> None:
    """Messages of some MiB pass."""
    large = [user_message("x" * 1024 * 1024) for _ in range(3)]
    made = await front.stub.CreateConversation(create(*large), **user_of(GLOBEX))
    assert 3 == made.last_sequence


@pytest.mark.slow
async def test_a_silent_watch_goes_on(front: Front) -> None:
    """A watch that is silent for longer than Envoy's usual limits is told what comes then."""
    made = await front.stub.CreateConversation(create(), **user_of(GLOBEX))
    watch = front.stub.WatchItems(WatchItemsRequest(conversation_id=made.id), **user_of(GLOBEX) | {"timeout": 60})
    await watch.read()
    await asyncio.sleep(ENVOY_SECONDS + 2)
    await front.stub.CreateItems(append(made.id, user_message("late")), **user_of(GLOBEX))
    async with asyncio.timeout(10):
        while not (answer := await watch.read()).changes:
            assert answer is not grpc.aio.EOF
    watch.cancel()
