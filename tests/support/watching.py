"""Watches that a test reads."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import grpc.aio
import pytest
from conversations.v1.conversations_service_pb2 import ItemChange, WatchItemsRequest, WatchItemsResponse

from tests.support.problems import Problem, problem_of
from tests.support.service import Service

KEEP = timedelta(hours=1)  # of changes in the log


class Watch(ABC):
    """A stream of WatchItems or WatchConversations.

    Attributes:
        call: The call.
        token: Of the last message.
    """

    def __init__(self, call: Any) -> None:
        self.call = call
        self.token = ""
        self._pending: asyncio.Task[Any] | None = None

    @abstractmethod
    async def next(self) -> list[str]:
        """The changes of the next message, in words."""

    async def read(self) -> Any:
        """The next message, which comes within seconds; None at the end."""
        pending, self._pending = self._pending or asyncio.ensure_future(self.call.read()), None
        async with asyncio.timeout(5):
            response = await pending
        if response is grpc.aio.EOF:
            return None
        self.token = response.resume_token
        return response

    async def changes(self, count: int) -> list[str]:
        """So many changes, of as many messages as it takes."""
        found: list[str] = []
        while len(found) < count:
            found += await self.next()
        return found

    async def end(self) -> str:
        """How it ends, without a message before that."""
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            raise AssertionError(f"told: {await self.read()}")
        problem = problem_of(ended.value)
        return f"{problem.code} {problem.reason}"

    async def is_quiet(self, seconds: float = 0.6) -> bool:
        """Whether nothing comes for a while."""
        self._pending = asyncio.ensure_future(self.call.read())
        await asyncio.wait([self._pending], timeout=seconds)
        return not self._pending.done()


class ItemWatch(Watch):
    """A call of WatchItems."""

    def __init__(self, stub: Any, conversation_id: str, metadata: Sequence[tuple[str, str]] = (), **start: Any) -> None:
        """``start``: the field of the request that says where to begin."""
        request = WatchItemsRequest(conversation_id=conversation_id, **start)
        super().__init__(stub.WatchItems(request, metadata=metadata, timeout=60))


class TextWatch(ItemWatch):
    """A watch, in words.

    Attributes:
        last: The last message.
    """

    last: WatchItemsResponse | None = None

    async def next(self) -> list[str]:
        """The changes of the next message."""
        self.last = await self.read()
        return ["the end"] if self.last is None else [_words(change) for change in self.last.changes]

    async def problem(self) -> Problem:
        """Why the stream ends."""
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async with asyncio.timeout(5):
                while True:
                    assert await self.call.read() is not grpc.aio.EOF
        return problem_of(ended.value)


def _words(change: ItemChange) -> str:
    match change.WhichOneof("change"):
        case "item":
            return f"{change.item.sequence} {change.item.message.content[0].input_text.text[:10]}"
        case "large_item":
            return f"{change.large_item.sequence} is large"
        case "deleted_item":
            return f"{change.deleted_item.sequence} is gone"
        case "conversation":
            return f"metadata {dict(change.conversation.metadata)}"
    return "the conversation is gone"


@asynccontextmanager
async def watching(service: Service, conversation_id: str, **start: Any) -> AsyncIterator[TextWatch]:
    """A watch that is cancelled at the end."""
    watch = TextWatch(service.stub, conversation_id, **start)
    try:
        yield watch
    finally:
        watch.call.cancel()
