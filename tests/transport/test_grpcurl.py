"""The service explains itself to grpcurl, and does what grpcurl asks."""

import asyncio
import json
from asyncio.subprocess import PIPE
from typing import Any

import pytest
from conversations.v1 import conversations_service_pb2
from conversations.v1.error_reason_pb2 import ErrorReason
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha.reflection_pb2 import (
    ExtensionRequest,
    ServerReflectionRequest,
    ServerReflectionResponse,
)

from server.app.service import CONTRACT, SERVICES
from tests.support.service import Service

SERVICE = SERVICES[0]

INVALID_ARGUMENT, NOT_FOUND = 3, 5
HEALTH = "grpc.health.v1.Health"
REFLECTION = ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"]


async def grpcurl(*arguments: str, code: int = 0) -> str:
    """What grpcurl prints: its output, or its errors when ``code`` is not 0."""
    process = await asyncio.create_subprocess_exec("grpcurl", *arguments, stdout=PIPE, stderr=PIPE)
    async with asyncio.timeout(20):
        output, errors = await process.communicate()
    assert code == process.returncode, errors.decode()
    return (errors if code else output).decode()


async def call(service: Service, method: str, request: Any, code: int = 0) -> Any:
    """The answer to a call, or the errors of one that fails."""
    body = json.dumps(request)
    told = await grpcurl("-plaintext", "-d", body, service.address, f"{SERVICE}/{method}", code=code)
    return told if code else json.loads(told)


@pytest.mark.tool("grpcurl")
async def test_list_shows_the_services(service: Service) -> None:
    """Each service is listed, those of gRPC itself too."""
    assert sorted([*SERVICES, HEALTH, *REFLECTION]) == (await grpcurl("-plaintext", service.address, "list")).split()
    methods = [
        f"{SERVICE}.{method.name}"
        for method in conversations_service_pb2.DESCRIPTOR.services_by_name["ConversationsService"].methods
    ]
    assert sorted(methods) == (await grpcurl("-plaintext", service.address, "list", SERVICE)).split()


@pytest.mark.tool("grpcurl")
@pytest.mark.parametrize(
    ("symbol", "says"),
    [
        (SERVICE, "rpc CreateItems ( .conversations.v1.CreateItemsRequest )"),
        (SERVICE, "\n// Conversations and their items: the OpenAI Conversations API with types."),
        (f"{SERVICE}.CreateItems", "\n// Appends 1 to 20 items in request order, all or none, and returns"),
        (f"{SERVICE}.CreateItems", 'option (.conversations.v1.access) = { resource: "item", action: "create" };'),
        ("conversations.v1.Item", ".conversations.v1.FunctionCall function_call = 9"),
        ("conversations.v1.Item", "// One entry of a conversation."),
        ("conversations.v1.Item.sequence", "// Position in the conversation: from 1, without gaps"),
        ("conversations.v1.NewItem", "oneof source {"),
        ("conversations.v1.NewItem.source", "is a one-of"),
        (
            "conversations.v1.ListItemsRequest",
            "  // Optional. 0 means 20. At most 100; larger values are lowered to 100",
        ),
        (
            "conversations.v1.AppendItemsResponse.Appended",
            "// `Item.sequence` of the first item; the others follow without a gap.",
        ),
        ("conversations.v1.ErrorReason", "ERROR_REASON_SEQUENCE_MISMATCH = 13;"),
        ("conversations.v1.ERROR_REASON_SEQUENCE_MISMATCH", "// ABORTED; `lastSequence`, the present one."),
        ("conversations.v1.access", "// Required on every method of this package."),
        ("conversations.v1.Conversation", "buf.validate.field"),
        ("google.rpc.BadRequest.FieldViolation", "string description = 2;"),
        (f"{HEALTH}.Check", "rpc Check ( .grpc.health.v1.HealthCheckRequest )"),
        (REFLECTION[0], "rpc ServerReflectionInfo ( stream .grpc.reflection.v1.ServerReflectionRequest )"),
        (REFLECTION[1], "rpc ServerReflectionInfo ( stream .grpc.reflection.v1alpha.ServerReflectionRequest )"),
    ],
)
async def test_describe_shows_the_contract(service: Service, symbol: str, says: str) -> None:
    """Whatever has a name is described, with its options and with the comment that the contract has on it."""
    assert says in await grpcurl("-plaintext", service.address, "describe", symbol)


@pytest.mark.tool("grpcurl")
@pytest.mark.parametrize("symbol", ["conversations.v1.Nothing", f"{SERVICE}.Nothing", "conversations.v1"])
async def test_describe_of_nothing(service: Service, symbol: str) -> None:
    """A name that nothing has is told as such."""
    assert f"Symbol not found: {symbol}" in await grpcurl("-plaintext", service.address, "describe", symbol, code=1)


@pytest.mark.tool("grpcurl")
@pytest.mark.parametrize("name", ["", SERVICE])
async def test_health_is_serving(service: Service, name: str) -> None:
    """The server and its service are healthy by name."""
    body = json.dumps({"service": name})
    told = await grpcurl("-plaintext", "-d", body, service.address, f"{HEALTH}/Check")
    assert {"status": "SERVING"} == json.loads(told)


@pytest.mark.tool("grpcurl")
async def test_health_of_an_unknown_service(service: Service) -> None:
    """A name that is not served is not found."""
    body = json.dumps({"service": "nobody"})
    assert "Code: NotFound" in await grpcurl("-plaintext", "-d", body, service.address, f"{HEALTH}/Check", code=64 + 5)


@pytest.mark.tool("grpcurl")
async def test_a_conversation_from_begin_to_end(service: Service) -> None:
    """A conversation is created, appended to, read by pages and deleted, with names and enums as in the contract."""
    message = {"message": {"role": "ROLE_USER", "content": [{"input_text": {"text": "Hello ☃"}}]}}
    made = await call(
        service,
        "CreateConversation",
        {"conversation": {"metadata": {"topic": "demo"}}, "items": [{"item": message}]},
    )
    assert ({"topic": "demo"}, "1", '"1"') == (made["metadata"], made["last_sequence"], made["etag"])
    name = made["id"]
    tool = {"id": "fc_1", "function_call": {"call_id": "call_1", "name": "f", "arguments": '{"a": 1}'}}
    request = {
        "conversation_id": name,
        "items": [{"item": tool}, {"item": message}],
        "request_id": "3d5b3b1c-6c1f-4b7e-8a55-5d1f3f0f2a11",
        "expected_last_sequence": 1,
    }
    appended = await call(service, "CreateItems", request)
    assert ["2", "3"] == [item["sequence"] for item in appended["items"]]
    assert ("fc_1", "ITEM_STATUS_COMPLETED") == (appended["items"][0]["id"], appended["items"][0]["status"])
    assert appended == await call(service, "CreateItems", request)

    first = await call(service, "ListItems", {"conversation_id": name, "page_size": 2})
    assert (["3", "2"], True) == ([item["sequence"] for item in first["items"]], first["has_more"])
    token = first["next_page_token"]
    second = await call(service, "ListItems", {"conversation_id": name, "page_size": 2, "page_token": token})
    assert ["1"] == [item["sequence"] for item in second["items"]]
    assert "has_more" not in second
    assert "Hello ☃" == second["items"][0]["message"]["content"][0]["input_text"]["text"]

    assert "3" == (await call(service, "DeleteItem", {"conversation_id": name, "item_id": "fc_1"}))["last_sequence"]
    forked = await call(service, "ForkConversation", {"conversation_id": name, "through_sequence": 1})
    assert {"conversation_id": name, "sequence": "1"} == forked["forked_from"]
    assert ("1", {"topic": "demo"}) == (forked["last_sequence"], forked["metadata"])
    own = {"filter": f'forked_from = "{name}"'}
    assert {"deleted_count": 1} == await call(service, "DeleteConversations", own)
    rewound = {"conversation_id": name, "sequence": 0, "expected_last_sequence": 3}
    assert "3" == (await call(service, "RewindConversation", rewound))["last_sequence"]
    assert {} == await call(service, "ListItems", {"conversation_id": name})
    assert {} == await call(service, "DeleteConversation", {"conversation_id": name})
    told = await call(service, "GetConversation", {"conversation_id": name}, code=64 + 5)
    assert "Code: NotFound" in told
    assert "CONVERSATION_NOT_FOUND" in told


@pytest.mark.tool("grpcurl")
async def test_a_stream_of_appends(service: Service) -> None:
    """Messages one after the other are a stream, and so are the answers."""
    name = (await call(service, "CreateConversation", {}))["id"]
    message = {"item": {"message": {"role": "ROLE_USER", "content": [{"input_text": {"text": "Hello"}}]}}}
    body = json.dumps({"conversation_id": name, "items": [message]}) + json.dumps({"items": [message, message]})
    told = await grpcurl("-plaintext", "-d", body, service.address, f"{SERVICE}/AppendItems")
    first, second = json.loads("[" + told.replace("}\n{", "},{") + "]")
    assert ("1", "2") == (first["appended"]["first_sequence"], second["appended"]["first_sequence"])
    assert [1, 2] == [len(each["appended"]["item_ids"]) for each in (first, second)]


@pytest.mark.tool("grpcurl")
async def test_violations_are_shown(service: Service) -> None:
    """A wrong request is told field by field: grpcurl knows the messages of the details."""
    told = await call(service, "ListItems", {"conversation_id": "x", "page_size": -1}, code=64 + 3)
    assert "Code: InvalidArgument" in told
    for word in ("google.rpc.BadRequest", "google.rpc.ErrorInfo", "conversation_id", "page_size", "FIELD_INVALID"):
        assert word in told


async def reflected(service: Service, name: str, *requests: ServerReflectionRequest) -> list[ServerReflectionResponse]:
    """The answers of one of the reflection services."""
    method = service.channel.stream_stream(
        f"/{name}/ServerReflectionInfo",
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=ServerReflectionResponse.FromString,
    )
    return [answer async for answer in method(iter(requests))]


@pytest.mark.parametrize("name", REFLECTION)
async def test_both_reflections_answer(service: Service, name: str) -> None:
    """Clients of either version learn the services and their files, dependencies included."""
    requests = (
        ServerReflectionRequest(list_services=""),
        ServerReflectionRequest(file_containing_symbol=SERVICE, host="example"),
        ServerReflectionRequest(file_containing_symbol="conversations.v1.Nothing"),
    )
    services, files, unknown = answers = await reflected(service, name, *requests)
    assert {*SERVICES, HEALTH, *REFLECTION} == {each.name for each in services.list_services_response.service}
    assert CONTRACT[0].name == described(files)[0].name
    assert "google/api/http.proto" in {proto.name for proto in described(files)}  # by way of annotations.proto
    assert "example" == files.valid_host
    assert NOT_FOUND == unknown.error_response.error_code
    assert list(requests) == [answer.original_request for answer in answers]


def described(answer: ServerReflectionResponse) -> list[FileDescriptorProto]:
    """The files of an answer."""
    assert not answer.HasField("error_response"), answer
    return [FileDescriptorProto.FromString(each) for each in answer.file_descriptor_response.file_descriptor_proto]


@pytest.mark.parametrize("name", REFLECTION)
async def test_reflection_is_complete(service: Service, name: str) -> None:
    """Every file that a described file imports can be asked for."""
    known: dict[str, FileDescriptorProto] = {}
    wanted = {CONTRACT[0].name, ErrorReason.DESCRIPTOR.file.name}
    while wanted:
        asked = [ServerReflectionRequest(file_by_filename=each) for each in sorted(wanted)]
        for answer in await reflected(service, name, *asked):
            known |= {proto.name: proto for proto in described(answer)}
        wanted = {each for proto in known.values() for each in proto.dependency} - set(known)
    assert {"google/api/annotations.proto", "buf/validate/validate.proto"} <= set(known)


async def test_every_file_is_the_one_that_runs(service: Service) -> None:
    """But for its comments, what reflection tells is what the server serves: `descriptors.binpb` is not stale."""
    files = [file for each in CONTRACT for file in (each, *each.dependencies) if file.package == CONTRACT[0].package]
    asked = [ServerReflectionRequest(file_by_filename=file.name) for file in files]
    for file, answer in zip(files, await reflected(service, REFLECTION[0], *asked), strict=True):
        runs, told = FileDescriptorProto(), described(answer)[0]
        file.CopyToProto(runs)
        assert told.source_code_info.location
        told.ClearField("source_code_info")
        assert runs == told


async def test_every_method_and_value_is_found(service: Service) -> None:
    """Each by its full name, in the file that declares it."""
    found = {f"{method.full_name}": file.name for file in CONTRACT for method in methods(file)}
    reasons = ErrorReason.DESCRIPTOR
    found |= {f"{reasons.file.package}.{value.name}": reasons.file.name for value in reasons.values}
    asked = [ServerReflectionRequest(file_containing_symbol=each) for each in found]
    told = await reflected(service, REFLECTION[0], *asked)
    assert list(found.values()) == [described(answer)[0].name for answer in told]


def methods(file: FileDescriptor) -> list[MethodDescriptor]:
    """Those of all services of a file."""
    return [method for each in file.services_by_name.values() for method in each.methods]


async def test_extensions_are_found(service: Service) -> None:
    """By their message and number, and the numbers by the message; what is not there is not found."""
    options = "google.protobuf.FieldOptions"
    by_number = [
        ServerReflectionRequest(file_containing_extension=ExtensionRequest(containing_type=each, extension_number=no))
        for each, no in ((options, 50202), (options, 1159), (options, 1), ("conversations.v1.Nothing", 1))
    ]
    by_type = [
        ServerReflectionRequest(all_extension_numbers_of_type=each)
        for each in (options, "conversations.v1.Item", SERVICE)
    ]
    item_type, validate, *unknown, numbers, none, no_message = await reflected(
        service, REFLECTION[0], *by_number, *by_type
    )
    assert "conversations/v1/options.proto" == described(item_type)[0].name
    assert "buf/validate/validate.proto" == described(validate)[0].name
    assert [NOT_FOUND] * 3 == [each.error_response.error_code for each in (*unknown, no_message)]
    told = numbers.all_extension_numbers_response
    assert (options, sorted(told.extension_number)) == (told.base_type_name, list(told.extension_number))
    assert {1052, 1159, 50202, 50203, 50204} <= set(told.extension_number)
    assert none.HasField("all_extension_numbers_response")
    assert not none.all_extension_numbers_response.extension_number


async def test_a_question_of_no_known_kind(service: Service) -> None:
    """It is told so, and the stream goes on."""
    strange, services = await reflected(
        service, REFLECTION[0], ServerReflectionRequest(host="x"), ServerReflectionRequest(list_services="")
    )
    assert INVALID_ARGUMENT == strange.error_response.error_code
    assert services.list_services_response.service
