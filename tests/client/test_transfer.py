"""The loops of the client package move conversations through everything that ends a stream."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, aclosing
from functools import partial
from typing import Any

import grpc.aio
import pytest
from conversations.v1.conversation_pb2 import Conversation
from conversations.v1.transfer_service_pb2 import ExportConversationsRequest, ImportConversationsResponse, Record
from conversations_client import connect, details_of, export_conversations, import_conversations

from tests.support.build import create, user_message
from tests.support.postgres import fresh_database
from tests.support.service import Service, running_service
from tests.support.transfers import exported, untold, words

COUNT = 3  # conversations
LARGE = "x" * 1024 * 1024  # one record does not fit into what is sent ahead


async def fill(service: Service, text: str = "a") -> None:
    """Creates conversations of two items each."""
    for _ in range(COUNT):
        await service.stub.CreateConversation(create(user_message(text), user_message(text)))


def counting(open_stream: Any, opened: list[Any]) -> Any:
    """The same, which notes each stream."""

    def opens(request: Any) -> Any:
        opened.append(request)
        return open_stream(request)

    return opens


def after_each(
    records: list[Record], then: Callable[[Record], Any]
) -> Callable[[Collection[str]], AsyncIterator[Record]]:
    """The records of a function for imports, which does something after each of them."""

    async def of_others(answered: Collection[str]) -> AsyncIterator[Record]:
        passing = False
        for record in records:
            if record.HasField("conversation"):
                passing = record.conversation.id in answered
            if not passing:
                yield record
                await then(record)

    return of_others


async def nothing(_: Record) -> None:
    """Does nothing."""


async def imported(
    open_stream: Any, records: Callable[[Collection[str]], AsyncIterator[Record]], **more: Any
) -> list[ImportConversationsResponse]:
    """What becomes of the conversations."""
    async with asyncio.timeout(20):
        return [answer async for answer in import_conversations(open_stream, records, **more)]


async def test_an_export_goes_on_where_it_broke(postgres: str, template: str) -> None:
    """A restart after each record is not noticed, and the records are those of a stream that did not break."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(fresh_database(postgres, template))
        running = await stack.enter_async_context(AsyncExitStack())
        served = await running.enter_async_context(running_service(url))
        await fill(served, LARGE)
        expected = untold(await exported(served.channel))
        client = await stack.enter_async_context(connect(served.address))
        opened: list[Any] = []
        open_stream = counting(client.transfers.ExportConversations, opened)
        found = []
        export = export_conversations(open_stream, ExportConversationsRequest())
        async with aclosing(export), asyncio.timeout(60):
            async for record in export:
                found.append(record)
                await running.aclose()
                running = await stack.enter_async_context(AsyncExitStack())
                await running.enter_async_context(running_service(url, listen=served.address))
        assert expected == untold(found)
        assert len(opened) > 1


async def test_an_export_goes_on_behind_a_stored_token(own_service: Service) -> None:
    """What was kept before a crash is not sent again."""
    await fill(own_service)
    records = await exported(own_service.channel)
    async with connect(own_service.address) as client:
        export = export_conversations(
            client.transfers.ExportConversations, ExportConversationsRequest(), resume_token=records[3].resume_token
        )
        assert untold(records[4:]) == untold([record async for record in export])


async def test_the_time_of_a_stream(postgres: str, template: str) -> None:
    """An export that takes longer than a stream may goes on with the next one."""
    async with (
        fresh_database(postgres, template) as url,
        running_service(url, watch_seconds=1) as served,
        connect(served.address) as client,
    ):
        await fill(served, LARGE)
        opened: list[Any] = []
        open_stream = counting(client.transfers.ExportConversations, opened)
        found = []
        async for record in export_conversations(open_stream, ExportConversationsRequest()):
            found.append(record)
            await asyncio.sleep(0.5)
        assert untold(await exported(served.channel)) == untold(found)
        assert len(opened) > 1


async def test_an_export_that_cannot_go_on(service: Service) -> None:
    """What is missing ends the loop."""
    async with connect(service.address) as client:
        request = ExportConversationsRequest(conversation_ids=["conv_nobody"])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(export_conversations(client.transfers.ExportConversations, request))
    assert "CONVERSATION_NOT_FOUND" == details_of(caught.value).reason


async def test_an_import_is_begun_again(postgres: str, template: str, own_service: Service) -> None:
    """Restarts between records are not noticed: each conversation is answered once, and all are as they were."""
    await fill(own_service)
    records = await exported(own_service.channel)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(fresh_database(postgres, template))
        running = await stack.enter_async_context(AsyncExitStack())
        served = await running.enter_async_context(running_service(url))
        client = await stack.enter_async_context(connect(served.address))
        restarts = ["conversation", "items", "end", "conversation", "end"]  # after which records

        async def restart(record: Record) -> None:
            nonlocal running
            if restarts and restarts[0] == record.WhichOneof("record"):
                await asyncio.sleep(0.2)  # it is answered
                restarts.pop(0)
                await running.aclose()
                running = await stack.enter_async_context(AsyncExitStack())
                await running.enter_async_context(running_service(url, listen=served.address))

        answers = await imported(client.transfers.ImportConversations, after_each(records, restart))
        assert [each.conversation.id for each in records if each.HasField("conversation")] == [
            each.conversation_id for each in answers
        ]
        assert {"created", "present"} >= set(words(answers))
        async with grpc.aio.insecure_channel(served.address) as channel:
            assert untold(records) == untold(await exported(channel))


async def test_refused_conversations_are_told(own_service: Service) -> None:
    """The others are imported."""
    await fill(own_service)
    records = await exported(own_service.channel)
    async with connect(own_service.address) as client:
        open_stream = client.transfers.ImportConversations
        assert ["ALREADY_EXISTS", "present", "present"] == words(
            await imported(open_stream, after_each([*records[:2], wrong_end(records[2]), *records[3:]], nothing))
        )


def wrong_end(record: Record) -> Record:
    """The end with another digest."""
    wrong = Record()
    wrong.CopyFrom(record)
    wrong.end.digest = bytes(32)
    return wrong


async def test_an_import_that_cannot_go_on(own_service: Service) -> None:
    """The loop ends with the error of the server, which is not lost: the first record is sent alone."""
    await fill(own_service)
    records = (await exported(own_service.channel))[1:]  # without the first head
    sent = []

    async def note(record: Record) -> None:
        sent.append(record)

    async with connect(own_service.address) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await imported(client.transfers.ImportConversations, after_each(records, note))
    assert "FIELD_INVALID" == details_of(caught.value).reason
    assert [] == sent


async def test_records_that_cannot_be_read(own_service: Service) -> None:
    """What the function raises ends the import, at whichever record."""

    async def records(_: Collection[str]) -> AsyncIterator[Record]:
        yield Record(conversation=Conversation(id="conv_a"))
        raise OSError("no disk")

    async with connect(own_service.address) as client:
        with pytest.raises(OSError, match="no disk"):
            await imported(client.transfers.ImportConversations, records)


async def test_refused_credentials_are_renewed(own_service: Service) -> None:
    """Exports and imports go on with the new ones."""
    await fill(own_service)
    records = await exported(own_service.channel)
    async with connect(own_service.address) as client:
        metadata = [("authorization", "Bearer expired")]  # refused, since this server checks none

        async def renew() -> None:
            metadata.clear()

        export: Any = partial(client.transfers.ExportConversations, metadata=metadata)
        found = [each async for each in export_conversations(export, ExportConversationsRequest(), renew=renew)]
        assert untold(records) == untold(found)
        metadata.append(("authorization", "Bearer expired"))
        import_: Any = partial(client.transfers.ImportConversations, metadata=metadata)
        answers = await imported(import_, after_each(records, nothing), renew=renew)
        assert ["present"] * COUNT == words(answers)
