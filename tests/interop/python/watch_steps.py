"""Steps that follow a conversation."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

from conversations.v1.conversation_pb2 import Conversation
from conversations.v1.conversations_service_pb2 import (
    DeleteConversationRequest,
    DeleteItemRequest,
    ItemChange,
    UpdateConversationRequest,
    WatchItemsRequest,
    WatchItemsResponse,
)
from conversations_client import Reset, watch_items
from grpc import StatusCode

from tests.interop.python.restart import work_through
from tests.interop.python.scenario import Scenario, fails, ids

if TYPE_CHECKING:
    from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceAsyncStub

END = "the end"
SHORT_SILENCE_SECONDS = 0.5  # an idle stream is silent for 30


class WatchSteps:
    """The steps. Those that write have a conversation of their own."""

    def __init__(
        self, scenario: Scenario, stub: "ConversationsServiceAsyncStub", scripted: "ConversationsServiceAsyncStub"
    ) -> None:
        """``stub``: on a connection for watches. ``scripted``: of a service whose streams end as a script says."""
        self._scenario = scenario
        self._stub = stub
        self._scripted = scripted

    async def watch(self) -> None:
        """All that happens is told in order, each once, also to one that goes on with the token of another."""
        made = await self._scenario.branch("one", "two")
        request = WatchItemsRequest(conversation_id=made.conversation.id, after_sequence=0)
        async with aclosing(watch_items(self._stub.WatchItems, request)) as watch:
            words, token = await told(watch, 3)
            assert ["topic branch", "1 one", "2 two"] == words
        third = await made.append_one("three")
        async with aclosing(watch_items(self._stub.WatchItems, request, resume_token=token)) as watch:
            assert ["3 three"] == (await told(watch, 1))[0]
            await made.stub.DeleteItem(DeleteItemRequest(conversation_id=made.conversation.id, item_id=third.id))
            assert ["3 deleted"] == (await told(watch, 1))[0]
            changed = Conversation(id=made.conversation.id, metadata={"topic": "leaf"})
            await made.stub.UpdateConversation(UpdateConversationRequest(conversation=changed))
            assert ["topic leaf"] == (await told(watch, 1))[0]
            await made.stub.DeleteConversation(DeleteConversationRequest(conversation_id=made.conversation.id))
            assert ["conversation deleted"] == (await told(watch, 1))[0]
            assert [] == [event async for event in watch]

    async def watch_reset(self) -> None:
        """The token of another conversation is refused: the watch says so, and begins anew."""
        _, other = await self._first(self._scenario.conversation.id)
        made = await self._scenario.branch("one")
        request = WatchItemsRequest(conversation_id=made.conversation.id, after_sequence=0)
        async with aclosing(watch_items(self._stub.WatchItems, request, resume_token=other)) as watch:
            assert Reset() == await anext(watch)
            assert ["topic branch", "1 one"] == (await told(watch, 2))[0]

    async def watch_refused(self) -> None:
        """Credentials that are refused are renewed once, and what is missing ends the watch."""
        metadata = [("authorization", "Bearer expired")]  # refused, since this server checks none
        renewals = []

        async def renew_in_vain() -> None:
            renewals.append("in vain")

        async def renew() -> None:
            metadata.clear()

        refused = partial(self._stub.WatchItems, metadata=metadata)
        request = WatchItemsRequest(conversation_id=self._scenario.conversation.id)
        in_vain = watch_items(refused, request, renew=renew_in_vain)
        await fails(anext(in_vain), StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID")
        assert ["in vain"] == renewals
        async with aclosing(watch_items(refused, request, renew=renew)) as watch:
            assert ["topic first"] == (await told(watch, 1))[0]
        nobody = WatchItemsRequest(conversation_id="conv_nobody")
        await fails(anext(watch_items(self._stub.WatchItems, nobody)), StatusCode.NOT_FOUND, "CONVERSATION_NOT_FOUND")

    async def watch_silence(self) -> None:
        """A stream that is silent for too long is opened again: each begins with a message, here without changes."""
        request = WatchItemsRequest(conversation_id=self._scenario.conversation.id)
        events = watch_items(self._stub.WatchItems, request, silence_seconds=SHORT_SILENCE_SECONDS)
        async with aclosing(events) as watch, asyncio.timeout(10):
            assert ["topic first"] == (await told(watch, 1))[0]
            for _ in range(3):
                event = await anext(watch)
                assert isinstance(event, WatchItemsResponse)
                assert not event.changes

    async def watch_ends(self) -> None:
        """At each end of a stream it does what docs/watch.md says; the script also looks at what arrives there."""
        metadata = [("authorization", "Bearer old")]

        async def renew() -> None:
            metadata[:] = [("authorization", "Bearer new")]

        open_stream = partial(self._scripted.WatchItems, metadata=metadata)
        request = WatchItemsRequest(conversation_id="conv_scripted", after_sequence=0)
        events = [event async for event in watch_items(open_stream, request, renew=renew)]
        tokens = ["reset" if isinstance(event, Reset) else event.resume_token for event in events]
        assert ["one", "two", "reset", "three", "reset", "four"] == tokens

    async def watch_restart(self) -> None:
        """Through restarts of the server, one of them without a warning, every item is told once and in order."""
        watch = asyncio.create_task(self._ids_until_the_end())
        await work_through("restart?", self._scenario)
        await work_through("kill?", self._scenario)
        await self._scenario.append_one(END)
        assert ids(await self._scenario.all_items()) == await watch

    async def _ids_until_the_end(self) -> list[str]:
        request = WatchItemsRequest(conversation_id=self._scenario.conversation.id, after_sequence=0)
        found: list[str] = []
        async with aclosing(watch_items(self._stub.WatchItems, request)) as watch:
            async for event in watch:
                assert isinstance(event, WatchItemsResponse)
                found += [change.item.id for change in event.changes if change.HasField("item")]
                if any(in_words(change).endswith(END) for change in event.changes):
                    break
        return found

    async def _first(self, conversation_id: str) -> tuple[list[str], str]:
        async with aclosing(
            watch_items(self._stub.WatchItems, WatchItemsRequest(conversation_id=conversation_id))
        ) as watch:
            return await told(watch, 1)


async def told(watch: AsyncGenerator[WatchItemsResponse | Reset, None], count: int) -> tuple[list[str], str]:
    """So many changes in words, and the token of the last message that had some."""
    words: list[str] = []
    token = ""
    async for event in watch:
        assert isinstance(event, WatchItemsResponse)
        words += map(in_words, event.changes)
        token = event.resume_token
        if len(words) >= count:
            break
    return words, token


def in_words(change: ItemChange) -> str:
    """A change in a few words."""
    match change.WhichOneof("change"):
        case "item":
            return " ".join(
                (str(change.item.sequence), *(part.input_text.text for part in change.item.message.content))
            )
        case "deleted_item":
            return f"{change.deleted_item.sequence} deleted"
        case "conversation":
            return f"topic {change.conversation.metadata['topic']}"
        case "conversation_deleted":
            return "conversation deleted"
    return f"unexpected: {change}"
