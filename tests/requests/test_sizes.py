"""The bytes of a request are counted before it is parsed."""

from typing import Any

import grpc
import pytest
from conversations.v1 import access_service_pb2, conversations_service_pb2, erasure_service_pb2

from server.requests.sizes import SMALL_REQUEST_BYTES, max_request_bytes
from tests.support.build import batch_get
from tests.support.problems import problem
from tests.support.service import Service, running_service

WITH_ITEMS = {"CreateConversation", "CreateItems", "AppendItems"}
METHODS = {
    method.name: method
    for file in (conversations_service_pb2, access_service_pb2, erasure_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
UNKNOWN_FIELD = b"\xfa\x3f"  # number 1023, length-delimited


def padded(body: bytes, size: int) -> bytes:
    """``body`` with a field that nobody knows, so that it has ``size`` bytes."""
    for length_bytes in (1, 2, 3):
        length = size - len(body) - len(UNKNOWN_FIELD) - length_bytes
        varint = _varint(length)
        if len(varint) == length_bytes:
            return body + UNKNOWN_FIELD + varint + bytes(length)
    raise AssertionError(size)


def _varint(number: int) -> bytes:
    digits = []
    while True:
        number, low = number >> 7, number & 0x7F
        digits.append(low | (0x80 if number else 0))
        if not number:
            return bytes(digits)


@pytest.mark.parametrize("name", METHODS)
def test_limit_of_each_method(name: str) -> None:
    """Only methods that write items take as much as a message may have; every other takes 64 KiB."""
    limit = max_request_bytes(METHODS[name].input_type, 10 * SMALL_REQUEST_BYTES)
    assert limit == SMALL_REQUEST_BYTES * (10 if name in WITH_ITEMS else 1)


async def test_one_byte_more(service: Service) -> None:
    """64 KiB are parsed; with a byte more the request is refused with the limit, without being parsed."""
    body = batch_get("conv_nothing", "msg_1").SerializeToString()
    call: Any = service.channel.unary_unary("/conversations.v1.ConversationsService/BatchGetItems")
    assert (await problem(call(padded(body, SMALL_REQUEST_BYTES)))).code == "NOT_FOUND"
    for refused in (padded(body, SMALL_REQUEST_BYTES + 1), b"\xff" * (SMALL_REQUEST_BYTES + 1)):
        failure = await problem(call(refused))
        assert (failure.code, failure.fields) == ("INVALID_ARGUMENT", {"": "request.max_bytes"})


async def test_a_small_body_that_grows(service: Service) -> None:
    """The bytes are counted after decompression: 400,000 ids that were sent in a few hundred bytes are refused."""
    body = batch_get("conv_nothing", *[""] * 400_000).SerializeToString()
    async with running_service(service.url, compressed_requests=True) as served:
        call: Any = served.channel.unary_unary("/conversations.v1.ConversationsService/BatchGetItems")
        failure = await problem(call(body, compression=grpc.Compression.Gzip))
    assert (failure.code, failure.fields) == ("INVALID_ARGUMENT", {"": "request.max_bytes"})
