"""What the client package makes of an error."""

from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
from conversations.v1.conversations_service_pb2 import WatchItemsRequest
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from conversations_client import ErrorDetails, Violation, connect, details_of
from google.protobuf import any_pb2
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from tests.support.build import ahead, create, get, list_items
from tests.support.service import Service, running_service


async def failed(call: Any) -> ErrorDetails:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return details_of(caught.value)


async def test_an_error_of_the_service(stub: Any) -> None:
    """It has code, reason, metadata and the object that it is about, and says that a retry changes nothing."""
    error = await failed(stub.GetConversation(get("conv_nobody")))
    assert (StatusCode.NOT_FOUND, "CONVERSATION_NOT_FOUND", None) == (error.code, error.reason, error.retry_delay)
    assert "conv_nobody" in error.resource
    assert error.message
    assert () == error.violations


async def test_every_violation_is_told(stub: Any) -> None:
    """With the path of its field, the id of the rule and a text."""
    error = await failed(stub.ListItems(list_items("x", page_size=-1)))
    assert (StatusCode.INVALID_ARGUMENT, "FIELD_INVALID") == (error.code, error.reason)
    assert {"conversation_id", "page_size"} == {each.field for each in error.violations}
    assert all(isinstance(each, Violation) and each.rule and each.description for each in error.violations)


async def test_the_time_to_wait_is_told(service: Service) -> None:
    """A limit on load tells its value, and when to come again."""
    async with (
        running_service(service.url, max_watches=1) as limited,
        connect(limited.address) as client,
    ):
        made = await client.conversations.CreateConversation(create())
        first = client.watches.WatchItems(WatchItemsRequest(conversation_id=made.id))
        await first.read()
        error = await failed(client.watches.WatchItems(WatchItemsRequest(conversation_id=made.id)).read())
        first.cancel()
    assert (StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", "1") == (error.code, error.reason, error.metadata["limit"])
    assert error.retry_delay
    assert error.retry_delay > timedelta(0)


async def test_the_error_in_a_stream(stub: Any) -> None:
    """The error of one message of AppendItems is read in the same way."""
    stream = stub.AppendItems()
    await stream.write(ahead("conv_nobody"))
    response = await stream.read()
    stream.cancel()
    error = details_of(response.error)
    assert "INVALID_ARGUMENT" == error.code.name
    assert error.reason


async def test_an_error_of_grpc_has_no_reason() -> None:
    """Nothing listens there: code and text, and nothing that programs would branch on."""
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        error = await failed(ConversationsServiceStub(channel).GetConversation(get("conv_1"), timeout=5))
    assert (StatusCode.UNAVAILABLE, "", {}, ()) == (error.code, error.reason, dict(error.metadata), error.violations)
    assert error.message


def test_a_call_without_asyncio_fails_in_the_same_way() -> None:
    """The errors of gRPC's other API are read as well."""
    with grpc.insecure_channel("127.0.0.1:1") as channel, pytest.raises(grpc.RpcError) as caught:
        ConversationsServiceStub(channel).GetConversation(get("conv_1"), timeout=5)
    assert StatusCode.UNAVAILABLE is details_of(caught.value).code


def test_details_that_cannot_be_read() -> None:
    """A proxy that writes nonsense into the trailer does not hide code and text."""
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff"))
    error = grpc.aio.AioRpcError(StatusCode.INTERNAL, grpc.aio.Metadata(), trailers, "text")
    assert ErrorDetails(StatusCode.INTERNAL, "text") == details_of(error)


@pytest.mark.parametrize("domain", ["conversations.v1", "googleapis.com"])
def test_a_reason_of_others_is_not_ours(domain: str) -> None:
    """A proxy may send an ErrorInfo of its own, whose reasons mean something else."""
    detail = any_pb2.Any()
    detail.Pack(ErrorInfo(domain=domain, reason="RATE_LIMITED", metadata={"limit": "1"}))
    error = details_of(Status(code=8, details=[detail]))
    ours = domain == "conversations.v1"
    assert ("RATE_LIMITED" if ours else "", {"limit": "1"} if ours else {}) == (error.reason, dict(error.metadata))
