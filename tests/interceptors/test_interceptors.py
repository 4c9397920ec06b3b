"""The chain: its order, and what it does with methods that the contract says nothing about."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import pytest
from conversations.v1 import conversations_service_pb2 as pb
from google.protobuf import descriptor_pb2, descriptor_pool
from structlog.testing import capture_logs

from server.app.service import CONTRACT
from server.authorization.access import AccessCache
from server.authorization.policy_file import ONE_USER
from server.authorization.requirements import AccessUndeclared, Need, needs
from server.identity.anonymous import Anonymous
from server.interceptors import build_chain
from server.interceptors.drain_gate import DrainGate
from server.settings.service import load
from server.store.response_budget import ResponseBudget
from tests.support.problems import problem
from tests.support.service import Service

ORDER = [
    "Observe",
    "ErrorStatus",
    "DrainGate",
    "CallLimit",
    "Deadline",
    "Authentication",
    "FairShare",
    "StreamLimit",
    "StreamLimit",
    "Authorization",
    "Decode",
    "Encode",
]


def undeclared() -> Any:
    """A file with a service whose method has no access option."""
    file = descriptor_pb2.FileDescriptorProto(name="undeclared.proto", package="undeclared", syntax="proto3")
    file.message_type.add(name="Empty")
    service = file.service.add(name="Open")
    service.method.add(name="Door", input_type=".undeclared.Empty", output_type=".undeclared.Empty")
    pool: Any = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool.FindFileByName(file.name)


def test_every_method_says_what_it_needs() -> None:
    """The need of each method is in the contract; only CheckAccess is open."""
    found = needs(*CONTRACT)
    assert {"/conversations.v1.AccessService/CheckAccess"} == {name for name, need in found.items() if not need.actions}
    assert (
        Need("conversation", ("update", "share")) == found["/conversations.v1.ConversationsService/UpdateConversation"]
    )
    assert sum(len(service.methods) for file in CONTRACT for service in file.services_by_name.values()) == len(found)


def test_a_method_without_a_need_stops_the_start() -> None:
    """A contract with a method nobody thought about does not serve."""
    with pytest.raises(AccessUndeclared, match=r"undeclared\.Open\.Door"):
        needs(undeclared())


async def test_a_method_outside_of_the_contract_is_refused() -> None:
    """A service that somebody registers beside the contract is not reached."""
    drain_gate = DrainGate()
    drain_gate.open()
    chain = build_chain(load(), needs(*CONTRACT), drain_gate, Anonymous(), AccessCache(ONE_USER), ResponseBudget(2**20))
    assert ORDER == [type(each).__name__ for each in chain.interceptors]
    reached: list[bytes] = []

    async def door(request: bytes, _context: Any) -> bytes:
        reached.append(request)
        return b""

    async with AsyncExitStack() as stack:
        server = grpc.aio.server(interceptors=[chain], options=[("grpc.so_reuseport", 0)])
        handlers: dict[str, Any] = {"Door": grpc.unary_unary_rpc_method_handler(door)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("undeclared.Open", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, 0)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        call: Any = channel.unary_unary("/undeclared.Open/Door")
        refused = await problem(call(b""))
    assert ("PERMISSION_DENIED", "ACTION_DENIED", []) == (refused.code, refused.reason, reached)


async def test_each_call_is_seen_with_its_code(service: Service) -> None:
    """A line for a call that succeeds and for one that is refused, as the caller sees them."""
    made = await service.stub.CreateConversation(pb.CreateConversationRequest())
    with capture_logs() as lines:
        await service.stub.GetConversation(pb.GetConversationRequest(conversation_id=made.id))
        await problem(service.stub.GetConversation(pb.GetConversationRequest(conversation_id="conv_none")))
        await problem(service.stub.GetConversation(pb.GetConversationRequest(conversation_id="x")))
        async with asyncio.timeout(10):  # a caller has its status before the line is written
            while sum(line["event"] == "call" for line in lines) < 3:  # noqa: ASYNC110 - a log is no event
                await asyncio.sleep(0.01)
    seen = [(line["method"].rpartition("/")[2], line["code"]) for line in lines if line["event"] == "call"]
    assert [("GetConversation", code) for code in ("OK", "NOT_FOUND", "INVALID_ARGUMENT")] == seen
