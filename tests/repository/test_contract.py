"""The contract tells a caller what the types cannot: it is documented everywhere, and by facts."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conversations.v1.error_reason_pb2 import ErrorReason
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

from server.settings.service import Settings
from server.store import checksum, forks

ROOT = Path(__file__).parents[2]
DESCRIPTORS = FileDescriptorSet.FromString((ROOT / "generated/conversations/v1/descriptors.binpb").read_bytes())
FILES = {file.name: file for file in DESCRIPTORS.file if file.name.startswith("conversations/")}
# Lines of comment for each line of code, at least. Bodies of items repeat fields of the OpenAI API, and the options of
# `Item.body` are lists.
DENSITY = {
    "conversations/admin/v1/admin_service.proto": 0.7,
    "conversations/v1/access_service.proto": 0.5,
    "conversations/v1/content.proto": 0.55,
    "conversations/v1/conversation.proto": 0.45,
    "conversations/v1/conversations_service.proto": 0.7,
    "conversations/v1/erasure_service.proto": 0.7,
    "conversations/v1/error_reason.proto": 1.0,
    "conversations/v1/item.proto": 0.35,
    "conversations/v1/item_body.proto": 0.55,
    "conversations/v1/item_status.proto": 0.7,
    "conversations/v1/options.proto": 0.7,
    "conversations/v1/transfer_service.proto": 0.5,
}
MIB = 1024 * 1024
GRPC_RECEIVE_LIMIT = 4 * MIB  # of clients that are not configured

Element = tuple[tuple[int, ...], str]  # path in the descriptor, and name


def message_elements(message: DescriptorProto, path: tuple[int, ...], name: str) -> Iterator[Element]:
    """A message, its fields, oneofs, and what is declared inside it."""
    yield path, name
    for index, field in enumerate(message.field):
        yield (*path, 2, index), f"{name}.{field.name}"
    for index, oneof in enumerate(message.oneof_decl):
        if not oneof.name.startswith("_"):  # those are `optional` fields
            yield (*path, 8, index), f"{name}.{oneof.name}"
    for index, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from message_elements(nested, (*path, 3, index), f"{name}.{nested.name}")
    for index, enum in enumerate(message.enum_type):
        yield from enum_elements(enum, (*path, 4, index), f"{name}.{enum.name}")


def enum_elements(enum: EnumDescriptorProto, path: tuple[int, ...], name: str) -> Iterator[Element]:
    """An enum and its values."""
    yield path, name
    for index, value in enumerate(enum.value):
        yield (*path, 2, index), value.name


def elements(file: FileDescriptorProto) -> Iterator[Element]:
    """Everything that a file declares."""
    for index, message in enumerate(file.message_type):
        yield from message_elements(message, (4, index), message.name)
    for index, enum in enumerate(file.enum_type):
        yield from enum_elements(enum, (5, index), enum.name)
    for index, service in enumerate(file.service):
        yield (6, index), service.name
        for number, method in enumerate(service.method):
            yield (6, index, 2, number), f"{service.name}.{method.name}"
    for index, extension in enumerate(file.extension):
        yield (7, index), extension.name


def comments(file: FileDescriptorProto) -> dict[str, str]:
    """The comment of each element by its name; '' where there is none."""
    texts = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
    return {name: texts.get(path, "").strip() for path, name in elements(file)}


def test_each_file_has_a_density() -> None:
    """No file of the contract escapes the tests below."""
    on_disk = {str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto")}
    assert DENSITY.keys() == FILES.keys() == on_disk


@pytest.mark.parametrize("name", FILES)
def test_each_element_is_documented(name: str) -> None:
    """Each message, field, oneof, enum value, method and option has a comment that reflection shows."""
    assert [element for element, text in comments(FILES[name]).items() if not text] == []


@pytest.mark.parametrize("name", FILES)
def test_density(name: str) -> None:
    """There are as many lines of comment for each line of code as a caller needs."""
    lines = [line.strip() for line in (ROOT / "proto" / name).read_text(encoding="utf-8").splitlines()]
    comment = sum(line.startswith("//") for line in lines)
    code = sum(bool(line) and not line.startswith("//") for line in lines)
    assert comment / code >= DENSITY[name]


@pytest.mark.parametrize("name", FILES)
def test_reasons_exist(name: str) -> None:
    """Each reason that a comment names can be in an answer."""
    reasons = {key.removeprefix("ERROR_REASON_") for key in ErrorReason.keys()}  # noqa: SIM118 - not a dict
    named = {word for text in comments(FILES[name]).values() for word in re.findall(r"`([A-Z]+_[A-Z_]+)`", text)}
    assert named <= reasons


def test_sizes_are_the_defaults() -> None:
    """Sizes in comments are those that a server has unless it is configured otherwise."""
    fields = Settings.model_fields
    known = {fields["max_item_bytes"].default, fields["max_message_bytes"].default, GRPC_RECEIVE_LIMIT}
    known |= {forks.MAX_BYTES, checksum.BLOCK_BYTES}
    texts = (text for file in FILES.values() for text in comments(file).values())
    assert {int(size) * MIB for text in texts for size in re.findall(r"(\d+)\s+MiB", text)} == known
