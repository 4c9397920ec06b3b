"""Callers that follow conversations, and go on where they were when a stream has ended."""

import asyncio
from abc import abstractmethod
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from conversations.v1.conversations_service_pb2 import (
    ORDER_ASCENDING,
    ConversationChange,
    ItemChange,
    WatchConversationsRequest,
    WatchItemsRequest,
)

from tests.faults.history import Watch, code_of, reason_of
from tests.faults.workload import PATIENCE, Caller
from tests.support.service import list_all_items

_SETTLED_SECONDS = 1.5  # after the end of the load, in which the other callers have finished
_LONGEST = 4.0  # seconds of a stream


class Follower(Caller):
    """Follows something on streams that end all the time."""

    method: str

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.token = ""
        self._has_all = False  # what there was at the last message

    async def run(self) -> None:
        """Opens one stream after the other, until one that began when everything was written has told all of it."""
        while not self.workload.ending.is_set():
            await self._follow(self.random.uniform(0.2, _LONGEST))
            await asyncio.sleep(self.random.uniform(0.02, 0.1))
        await asyncio.sleep(_SETTLED_SECONDS)
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(PATIENCE):
            while not (await self._follow(1.0) and self._has_all):  # noqa: ASYNC110 - a stream each time
                await asyncio.sleep(0.1)
        for watch in self.watches():
            watch.last_began = began

    async def _follow(self, seconds: float) -> bool:
        """Reads one stream, which the server ends a second before its deadline; whether it did."""
        attempt = self.history.begin(self.method, seconds + 1)
        code, reason = "OK", ""
        try:
            async for response in self.open_stream(seconds + 1):
                self.history.look_for_leaks(self.tenant.name, self.method, response.SerializeToString())
                await self.take(response)
                self.token = response.resume_token
                self._has_all = response.HasField("watermark")
        except grpc.aio.AioRpcError as error:
            code, reason = code_of(error), reason_of(error)
        self.history.end(attempt, code, reason)
        return code == "OK"

    @abstractmethod
    def watches(self) -> list[Watch]:
        """What it was told."""

    @abstractmethod
    def open_stream(self, timeout: float) -> AsyncIterator[Any]:
        """Opens a stream behind the token, or from the beginning."""

    @abstractmethod
    async def take(self, response: Any) -> None:
        """Notes a message."""


class Watcher(Follower):
    """Follows one of the conversations of its tenant."""

    method = "WatchItems"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        followed = [each for each in self.history.watches if each.tenant == self.tenant.name]
        # The first of a tenant follows the one in which items are deleted.
        conversation_id = (
            self.random.choice((self.tenant.shared, self.tenant.streamed)) if followed else self.tenant.thinned
        )
        self._watch = Watch(self.tenant.name, conversation_id)
        self.history.watches.append(self._watch)

    def watches(self) -> list[Watch]:
        """The conversation."""
        return [self._watch]

    def open_stream(self, timeout: float) -> AsyncIterator[Any]:
        """As of `Follower`."""
        start: dict[str, Any] = {"resume_token": self.token} if self.token else {"after_sequence": 0}
        request = WatchItemsRequest(conversation_id=self._watch.conversation_id, **start)
        return self.stub.WatchItems(request, metadata=self.tenant.metadata, timeout=timeout)  # type: ignore[no-any-return]

    async def take(self, response: Any) -> None:
        """As of `Follower`."""
        for change in response.changes:
            _note(self._watch, change)


class LogWatcher(Follower):
    """Follows all conversations of its tenant; what there was before, it lists after the first message."""

    method = "WatchConversations"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._watches = {name: Watch(tenant, name) for tenant, name in self.tenant.conversations}
        self._listed: dict[str, int] = defaultdict(int)  # the sequence up to which items were listed
        self.history.watches += self._watches.values()

    def watches(self) -> list[Watch]:
        """All conversations."""
        return list(self._watches.values())

    def open_stream(self, timeout: float) -> AsyncIterator[Any]:
        """As of `Follower`."""
        request = WatchConversationsRequest(resume_token=self.token, include_items=True)
        return self.stub.WatchConversations(request, metadata=self.tenant.metadata, timeout=timeout)  # type: ignore[no-any-return]

    async def take(self, response: Any) -> None:
        """As of `Follower`."""
        if not self.token:
            for watch in self._watches.values():
                await self._list(watch)
        for change in response.changes:
            if followed := self._watches.get(change.conversation.id):
                self._note_new(followed, change)

    async def _list(self, watch: Watch) -> None:
        stub = _Authenticated(self.stub, self.tenant.metadata)
        items = await list_all_items(stub, watch.conversation_id, ORDER_ASCENDING)
        last = items[-1].sequence if items else 0
        there = {item.sequence for item in items}
        watch.told = [(item.sequence, item.id) for item in items]
        watch.gone = [sequence for sequence in range(1, last + 1) if sequence not in there]
        self._listed[watch.conversation_id] = last

    def _note_new(self, watch: Watch, change: ConversationChange) -> None:
        """Notes what happened to items that were not listed, or were there then."""
        listed = self._listed[watch.conversation_id]
        gone = set(watch.gone)
        for each in change.items:
            if each.item.sequence > listed or (
                each.HasField("deleted_item") and each.deleted_item.sequence not in gone
            ):
                _note(watch, each)


class _Authenticated:
    """A stub whose calls have credentials."""

    def __init__(self, stub: Any, metadata: Any) -> None:
        self._stub = stub
        self._metadata = metadata

    def __getattr__(self, name: str) -> Any:
        return lambda request: getattr(self._stub, name)(request, metadata=self._metadata, timeout=10)


def _note(watch: Watch, change: ItemChange) -> None:
    match change.WhichOneof("change"):
        case "item":
            watch.told.append((change.item.sequence, change.item.id))
        case "deleted_item":
            watch.gone.append(change.deleted_item.sequence)
