"""Exports conversations to, and imports them from, JSON Lines files; goes on where either broke."""

import os
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

import grpc
from conversations.v1 import transfer_service_pb2 as pb
from conversations.v1.transfer_service_pb2_grpc import TransferServiceStub

from server.cli.transfer_lines import lines_of, records_of, token_of
from server.errors import OperatorError

# A stream that ends so is begun again behind what has come of it.
_RESUMABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED)
_ATTEMPTS = 6  # in a row, of which nothing comes
_TAIL = 1024 * 1024  # bytes that are read at once, from the end of a file


def _tell_nobody() -> None:
    pass


class _Attempts:
    """Says whether a stream that broke is begun again, and waits before it is."""

    def __init__(self) -> None:
        self._left = _ATTEMPTS

    def note_progress(self) -> None:
        """Something has come."""
        self._left = _ATTEMPTS

    def wait_after(self, error: grpc.RpcError) -> None:
        """Waits a moment; raises ``error`` if another attempt would not help."""
        self._left -= 1
        if error.code() not in _RESUMABLE or not self._left:
            raise error
        time.sleep(random.uniform(0.5, 1.0) * (_ATTEMPTS - self._left))  # noqa: S311 - jitter


def export_lines(
    channel: grpc.Channel, request: pb.ExportConversationsRequest, on_conversation: Callable[[], None] = _tell_nobody
) -> Iterator[str]:
    """Yields the lines of an export, without line ends; goes on by itself when its stream breaks.

    Calls ``on_conversation`` when a conversation is whole.
    """
    attempts, stub = _Attempts(), TransferServiceStub(channel)
    while True:
        try:
            for record in stub.ExportConversations(request):
                attempts.note_progress()
                yield from lines_of(record)
                request.resume_token = record.resume_token
                if record.HasField("end"):
                    on_conversation()
        except grpc.RpcError as error:
            attempts.wait_after(error)
        else:
            return


def export_to(
    channel: grpc.Channel,
    request: pb.ExportConversationsRequest,
    file: Path,
    on_conversation: Callable[[], None] = _tell_nobody,
) -> None:
    """Writes an export to a file, behind the last whole record that the file has of the same export."""
    with file.open("r+b" if file.exists() else "x+b") as lines:
        request.resume_token, end = find_resume(lines)
        if not end and lines.seek(0, os.SEEK_END):
            raise OperatorError(f"{file}: is no export that could be gone on with; name another file, or remove it.")
        lines.truncate(end)
        lines.seek(end)
        for line in export_lines(channel, request, on_conversation):
            lines.write(f"{line}\n".encode())


def find_resume(lines: IO[bytes]) -> tuple[str, int]:
    """Returns the last resume token in a file, and where its line ends; '' and 0 if there is none."""
    end = lines.seek(0, os.SEEK_END)
    rest = b""
    while end > 0:
        start = max(0, end - _TAIL)
        lines.seek(start)
        rest = lines.read(end - start) + rest
        found = rest.split(b"\n")
        behind = start + len(rest) - len(found[-1])  # what follows the last line end is not whole
        for line in found[-2:0:-1] if start else found[-2::-1]:
            if token := token_of(line.decode(errors="replace")):
                return token, behind
            behind -= len(line) + 1
        rest, end = found[0] + b"\n" * (len(found) > 1), start
    return "", 0


@dataclass
class ImportResult:
    """What became of the conversations of a file.

    Attributes:
        refused: A sentence for each that was not imported.
    """

    created: int = 0
    present: int = 0
    refused: list[str] = field(default_factory=list)


def import_from(channel: grpc.Channel, file: Path, on_conversation: Callable[[], None] = _tell_nobody) -> ImportResult:
    """Imports the conversations in a file, of which a last line that is not whole is passed over.

    Raises:
        OperatorError: A line is not one of an export; conversations before it may be imported.
    """
    return import_records(channel, partial(_records_in, file), on_conversation)


def import_records(
    channel: grpc.Channel,
    records: Callable[[Collection[str]], Iterator[pb.Record]],
    on_conversation: Callable[[], None] = _tell_nobody,
) -> ImportResult:
    """Imports conversations; begins a broken stream again with those that are not answered.

    Args:
        channel: To the service.
        records: Returns the records of all conversations but those with some ids; called again for each stream.
        on_conversation: Called when a conversation is answered.

    Raises:
        OperatorError: As ``records``.
    """
    attempts, result, answered = _Attempts(), ImportResult(), set[str]()
    while True:
        sending = _Sending(records(answered))
        try:
            for answer in TransferServiceStub(channel).ImportConversations(sending.requests()):
                attempts.note_progress()
                if answer.WhichOneof("result") != "stored_sequence":
                    answered.add(answer.conversation_id)
                    _note(answer, result)
                    on_conversation()
        except grpc.RpcError as error:
            sending.raise_error()
            attempts.wait_after(error)
        else:
            sending.raise_error()
            return result


def _note(answer: pb.ImportConversationsResponse, result: ImportResult) -> None:
    if answer.HasField("error"):
        result.refused.append(f"{answer.conversation_id}: {answer.error.message}")
    elif answer.imported.created:
        result.created += 1
    else:
        result.present += 1


class _Sending:
    """The requests of one stream. gRPC takes them in a thread of its own, where an error would be lost."""

    def __init__(self, records: Iterator[pb.Record]) -> None:
        self._records = records
        self._error: Exception | None = None

    def requests(self) -> Iterator[pb.ImportConversationsRequest]:
        """Yields the records, up to the first error."""
        try:
            for record in self._records:
                yield pb.ImportConversationsRequest(record=record)
        except Exception as error:  # noqa: BLE001 - raised again by `raise_error`
            self._error = error

    def raise_error(self) -> None:
        """Raises what was wrong with the records."""
        if self._error:
            raise self._error


def _records_in(file: Path, answered: Collection[str]) -> Iterator[pb.Record]:
    """Yields the records in a file but those of some conversations."""
    passing = False
    for _, record in records_of(_whole_lines(file)):
        if record.HasField("conversation"):
            passing = record.conversation.id in answered
        if not passing:
            yield record


def _whole_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines of a file that are whole and not empty, with their numbers."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.endswith(b"\n") and line.strip():
                yield number, _decoded(number, line)


def _decoded(number: int, line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise OperatorError(f"line {number}: is not UTF-8.") from None


def request_of(conversation_ids: Sequence[str], chosen: str) -> pb.ExportConversationsRequest:
    """Returns the request for some conversations, or for those that a filter leaves."""
    return pb.ExportConversationsRequest(conversation_ids=conversation_ids, filter=chosen)
