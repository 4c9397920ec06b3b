"""A request is read after its caller may send it."""

import asyncio
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import grpc.aio
import pytest
from conversations.v1 import conversations_service_pb2 as pb

from server.app.service import run_service
from tests.support.build import get
from tests.support.jwt import ISSUER_KEY, jwk_set, jwt_settings, token
from tests.support.postgres import fresh_database
from tests.support.problems import problem_of
from tests.support.service import Service

SERVICE = "/conversations.v1.ConversationsService"
UNARY = [f"{SERVICE}/{each.name}" for each in pb.DESCRIPTOR.services_by_name["ConversationsService"].methods]


async def failure_of(call: Any) -> Any:
    """What a call fails with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(5):
            await call.read()
    return problem_of(caught.value)


@pytest.fixture(scope="module")
async def address(postgres: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The address of a service that wants tokens."""
    jwks = tmp_path_factory.mktemp("jwks") / "jwks.json"
    jwks.write_bytes(jwk_set(ISSUER_KEY))
    async with fresh_database(postgres, template) as url:
        settings = jwt_settings(str(jwks), database_url=url, purge_every_minutes=0, grace_seconds=1)
        async with run_service(settings) as served:
            yield str(served.address)


@pytest.mark.parametrize("method", UNARY)
async def test_a_stranger_is_refused_before_its_request_comes(address: str, method: str) -> None:
    """A call without credentials ends as soon as its headers are there, though its request never comes."""
    async with grpc.aio.insecure_channel(address) as channel:
        began = monotonic()
        call: Any = channel.stream_stream(method)
        failure = await failure_of(call(timeout=4))
    assert (failure.code, failure.reason) == ("UNAUTHENTICATED", "CREDENTIALS_MISSING")
    assert monotonic() - began < 2


async def test_a_caller_is_waited_for(address: str) -> None:
    """A call with credentials may send its request later."""
    async with grpc.aio.insecure_channel(address) as channel:
        method: Any = channel.stream_stream(f"{SERVICE}/GetConversation")
        call = method(metadata=[("authorization", f"Bearer {token()}")], timeout=5)
        await asyncio.sleep(0.2)
        await call.write(get("conv_nothing").SerializeToString())
        failure = await failure_of(call)
    assert failure.code == "NOT_FOUND"


async def test_a_call_without_a_request(service: Service) -> None:
    """A unary call that ends without a message is an invalid argument; before, it was never answered."""
    method: Any = service.channel.stream_stream(f"{SERVICE}/GetConversation")
    call = method(timeout=4)
    await call.done_writing()
    failure = await failure_of(call)
    assert (failure.code, failure.message) == ("INVALID_ARGUMENT", "Invalid request: the call has no request.")
