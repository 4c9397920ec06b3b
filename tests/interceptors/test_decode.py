"""A malformed request is an invalid argument, whichever service it is sent to."""

from typing import Any

import grpc.aio
import pytest
from conversations.admin.v1 import admin_service_pb2
from conversations.v1 import access_service_pb2, conversations_service_pb2, erasure_service_pb2
from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from structlog.testing import capture_logs

from tests.support.ports import HOST, free_port
from tests.support.problems import problem_of
from tests.support.service import Service, running_service

V1 = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
BODIES = (b"\xff", b"\x0a\xff", b"\x0b" * 200, b"\x00" * 9)
TEXT = "Invalid request: the request is not a message of its type."


def methods(*files: Any) -> list[str]:
    """The paths of all methods in the files."""
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    return [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]


CALLERS = [*methods(conversations_service_pb2, access_service_pb2, erasure_service_pb2, health_pb2, reflection_pb2), V1]
OPERATORS = [*methods(admin_service_pb2, channelz_pb2, health_pb2, reflection_pb2), V1]


async def code_and_text(channel: grpc.aio.Channel, method: str, body: bytes) -> tuple[str, str, str]:
    """What a call with this body fails with; a stream is a call with one message."""
    multi_callable: Any = channel.stream_stream(method)
    call = multi_callable(iter([body]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    failure = problem_of(caught.value)
    return failure.code, failure.reason, failure.message


@pytest.mark.parametrize("method", CALLERS)
async def test_malformed_requests_of_callers(service: Service, method: str) -> None:
    """A body that is no message gets a fixed text without a word of the parser, and leaves no error in the log."""
    with capture_logs() as lines:
        seen = {await code_and_text(service.channel, method, body) for body in BODIES}
    assert {("INVALID_ARGUMENT", "FIELD_INVALID", TEXT)} == seen
    assert [] == [line for line in lines if line["log_level"] == "error"]


@pytest.fixture(scope="module")
async def operators(service: Service) -> Any:
    """A channel to the admin address of a service."""
    address = f"{HOST}:{free_port()}"
    async with running_service(service.url, admin_listen=address), grpc.aio.insecure_channel(address) as channel:
        yield channel


@pytest.mark.parametrize("method", OPERATORS)
async def test_malformed_requests_of_operators(operators: grpc.aio.Channel, method: str) -> None:
    """The same on the admin address."""
    seen = {await code_and_text(operators, method, body) for body in BODIES}
    assert {("INVALID_ARGUMENT", "FIELD_INVALID", TEXT)} == seen
