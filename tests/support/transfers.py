"""Exports and imports, over the wire."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import grpc.aio
import pytest
from conversations.v1.item_pb2 import Item
from conversations.v1.transfer_service_pb2 import (
    ExportConversationsRequest,
    ImportConversationsRequest,
    ImportConversationsResponse,
    Record,
)
from conversations.v1.transfer_service_pb2_grpc import TransferServiceStub

from server.services import import_blocks
from server.store.checksum import digest_of_head, kept_head
from tests.support.problems import problem_of


async def exported(channel: grpc.aio.Channel, *conversation_ids: str, **fields: Any) -> list[Record]:
    """The records of some conversations, or of all."""
    call = TransferServiceStub(channel).ExportConversations(
        ExportConversationsRequest(conversation_ids=conversation_ids, **fields)
    )
    return [record async for record in call]


async def imported(channel: grpc.aio.Channel, records: Iterable[Record]) -> list[ImportConversationsResponse]:
    """What becomes of the conversations of some records."""
    requests = [ImportConversationsRequest(record=record) for record in records]
    while True:
        call = TransferServiceStub(channel).ImportConversations(iter(requests))
        try:
            return [response async for response in call]
        except grpc.aio.AioRpcError as error:
            # The client says so when it was writing while the server ended the stream, whose error it then loses.
            if error.details() != "Internal error from Core":
                raise


def words(responses: Iterable[ImportConversationsResponse]) -> list[str]:
    """What became of each conversation, in words."""
    return [_word(response) for response in responses]


def _word(response: ImportConversationsResponse) -> str:
    match response.WhichOneof("result"):
        case "stored_sequence":
            return f"stored {response.stored_sequence}"
        case "imported":
            return "created" if response.imported.created else "present"
    return grpc_code(response.error.code)


def grpc_code(number: int) -> str:
    """The name of a status code."""
    return next(code.name for code in grpc.StatusCode if code.value[0] == number)


def of_its_own(sample: dict[str, Any], number: int) -> dict[str, Any]:
    """A sample with an id that no other has."""
    return {**sample, "id": f"{sample['id']}{number}"} if sample.get("id") else sample


def untold(records: Sequence[Record]) -> list[bytes]:
    """The records without tokens and the times of activity, which differ between services."""
    found = []
    for record in records:
        bare = Record()
        bare.CopyFrom(record)
        bare.resume_token = ""
        bare.conversation.ClearField("active_time") if bare.HasField("conversation") else None
        found.append(bare.SerializeToString(deterministic=True))
    return found


def ended(head: Record, items: Sequence[Item] = ()) -> list[Record]:
    """The records of a conversation with these items, as an export would have them."""
    limits = vars(import_blocks)  # as they are now: tests make them smaller
    digest = digest_of_head(kept_head(head.conversation))
    records = [head]
    sizes = 0
    block: list[Item] = []

    def close() -> None:
        nonlocal digest, block, sizes
        wire = Record.Items(items=block)
        digest = sha256(digest + wire.SerializeToString(deterministic=True)).digest()
        records.append(Record(items=wire))
        block, sizes = [], 0

    for item in items:
        bare = Item()
        bare.CopyFrom(item)
        bare.ClearField("sequence")
        size = bare.ByteSize()
        if block and (len(block) == limits["BLOCK_ITEMS"] or sizes + size > limits["BLOCK_BYTES"]):
            close()
        block.append(item)
        sizes += size
    if block:
        close()
    records.append(Record(end=Record.End(item_count=len(items), digest=digest)))
    return records


class Importing:
    """A stream of an import, record by record."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._call = TransferServiceStub(channel).ImportConversations()

    async def send(self, record: Record) -> None:
        """Sends a record."""
        await self._call.write(ImportConversationsRequest(record=record))

    async def answer(self) -> str:
        """What becomes of the next conversation, in words."""
        async with asyncio.timeout(10):
            answer: Any = await self._call.read()
            return _word(answer)

    async def close(self) -> None:
        """Ends it."""
        self._call.cancel()


@contextmanager
def refused(reason: str) -> Iterator[None]:
    """A call that ends with an error of this reason."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert reason == problem_of(caught.value).reason
