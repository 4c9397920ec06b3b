"""`export` and `import`: whole conversations as JSON Lines, which go on where they broke."""

import asyncio
import json
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import pytest
from conversations.v1.item_pb2 import Item
from conversations.v1.transfer_service_pb2 import ExportConversationsRequest, Record

from server.cli import transfer
from server.cli.transfer_lines import lines_of, records_of
from server.errors import OperatorError
from server.items import new_item_from_json
from tests.support.build import append, create, user_message
from tests.support.commands import error_line_of, output_of, run_command
from tests.support.postgres import fresh_database
from tests.support.samples import SAMPLES
from tests.support.service import Service, running_service
from tests.support.transfers import ended, exported, of_its_own, untold


@pytest.fixture(scope="module")
async def other(postgres: str, template: str) -> AsyncIterator[Service]:
    """Another service, with a database of its own."""
    async with fresh_database(postgres, template) as url, running_service(url) as served:
        yield served


async def filled(service: Service) -> list[str]:
    """The ids of a conversation with all samples, and of one without items."""
    made = await service.stub.CreateConversation(create(metadata={"a": "ä\u2028"}))
    for start in range(0, len(SAMPLES), 20):
        samples = list(enumerate(SAMPLES.values()))[start : start + 20]
        items = [new_item_from_json(of_its_own(sample, number)) for number, sample in samples]
        await service.stub.CreateItems(append(made.id, *items))
    return [made.id, (await service.stub.CreateConversation(create())).id]


def bare(file: Path) -> list[dict[str, Any]]:
    """The lines of a file without their tokens."""
    lines = [json.loads(line) for line in file.read_text("utf-8").split("\n")[:-1]]
    return [{name: value for name, value in line.items() if name != "resume_token"} for line in lines]


@pytest.mark.slow
async def test_a_file_brings_all_there_is(service: Service, other: Service, short_folder: Path) -> None:
    """Exported, imported and exported again it is the same file; the items are the same to the byte."""
    names = await filled(service)
    first, second = short_folder / "first.jsonl", short_folder / "second.jsonl"
    await output_of("export", *names, "--output", str(first), "--target", service.address)
    printed = await output_of("export", *names, "--target", service.address)
    assert first.read_text("utf-8") == printed
    told = await output_of("import", str(first), "--target", other.address)
    assert "2 imported, 0 there already, 0 refused\n" == told
    assert "0 imported, 2 there already, 0 refused\n" == await output_of(
        "import", str(first), "--target", other.address
    )
    await output_of("export", *names, "--output", str(second), "--target", other.address)
    assert bare(first) == bare(second)
    assert untold(await exported(service.channel, *names)) == untold(await exported(other.channel, *names))
    assert {"conversation", "sequence", "end"} == {next(iter(line)) for line in bare(first)}


async def test_a_broken_file_is_gone_on_with(service: Service, short_folder: Path) -> None:
    """Cut anywhere, in a line or between two, an export completes it to the same file."""
    name = (await service.stub.CreateConversation(create(*map(user_message, "abc")))).id
    whole, broken = short_folder / "whole.jsonl", short_folder / "broken.jsonl"
    request = ExportConversationsRequest(conversation_ids=[name])

    def export_to(file: Path) -> bytes:
        with grpc.insecure_channel(service.address) as channel:
            transfer.export_to(channel, request, file)
        return file.read_bytes()

    content = await asyncio.to_thread(export_to, whole)
    for end in range(content.index(b"\n") + 1, len(content), 97):
        broken.write_bytes(content[:end])
        assert content == await asyncio.to_thread(export_to, broken)


async def test_a_file_that_is_no_export_stays(service: Service, short_folder: Path) -> None:
    """It is not overwritten; what is no line of an export is told with its number."""
    file = short_folder / "notes.txt"
    file.write_text("mine\n")
    assert "is no export" in await error_line_of("export", "-o", str(file), "--target", service.address)
    assert "mine\n" == file.read_text()
    assert "line 1: is no head" in await error_line_of("import", str(file), "--target", service.address)


@pytest.mark.parametrize("text", ["[]", '{"item": 1}', '{"end": {"digest": 1}}', '{"message": "?"}', "{" * 9_999, "1"])
def test_a_line_that_is_none(text: str) -> None:
    """It is told with its number."""
    with pytest.raises(OperatorError, match="line 7: is no head, item or end of an export"):
        list(records_of([(7, text)]))


async def test_what_is_refused_is_told(service: Service, short_folder: Path) -> None:
    """A file without its last lines has a conversation that is not imported, and exit code 1."""
    records = [*ended(head_of("conv_cli_whole")), *ended(head_of("conv_cli_broken"))]
    lines = [line for record in records for line in lines_of(record)]
    file = short_folder / "broken.jsonl"
    file.write_text("\n".join(lines)[:-9])
    code, out, err = await run_command("import", str(file), "--target", service.address)
    assert (1, "1 imported, 0 there already, 1 refused\n") == (code, out)
    assert err.startswith("conv_cli_broken: Invalid request: record.end")


def head_of(name: str) -> Record:
    """The head of a conversation of nobody."""
    record = Record()
    record.conversation.id = name
    record.conversation.create_time.seconds = record.conversation.update_time.seconds = 5
    return record


def test_an_item_that_json_does_not_give_back() -> None:
    """Its message is in the line as well, and what is read is the same."""
    item = Item(id="odd", sequence=1)
    item.function_call.name = "f"
    odd = Record(items={"items": [item]})  # type: ignore[arg-type]
    lines = list(lines_of(odd))
    assert "message" in json.loads(lines[0])
    assert [(1, odd)] == list(records_of(enumerate(lines, 1)))


@pytest.mark.parametrize("tail", [7, 64, 1024])
def test_the_last_token_is_found(monkeypatch: pytest.MonkeyPatch, tail: int) -> None:
    """However long the lines behind it are, and wherever the file was cut."""
    monkeypatch.setattr(transfer, "_TAIL", tail)
    content = b'{"a": 1}\n{"a": 1, "resume_token": "one"}\n{"b": "' + b"x" * 100 + b'"}\n{"resume_token": "cut'
    assert ("one", content.index(b'{"b"')) == transfer.find_resume(BytesIO(content))
    assert ("", 0) == transfer.find_resume(BytesIO(content[:9]))
    assert ("", 0) == transfer.find_resume(BytesIO())


def test_large_exports_are_cut_into_records() -> None:
    """A record has what the contract allows, whatever the lines were made of."""
    records = ended(head_of("conv_a"), [_item(number) for number in range(1, 2_502)])
    lines = [line for record in records for line in lines_of(record)]
    sizes = [len(record.items.items) for _, record in records_of(enumerate(lines, 1)) if record.HasField("items")]
    assert [1_000, 1_000, 501] == sizes
    with pytest.raises(OperatorError, match="line 2: is no head"):
        list(records_of([(1, lines[0]), (2, "{")]))


def _item(number: int) -> Item:
    item = user_message(id=f"msg_{number}").item
    item.sequence = number
    return item
