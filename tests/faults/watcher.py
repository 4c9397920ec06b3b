"""A caller that follows a conversation, and goes on where it was when a stream has ended."""

import asyncio
from typing import Any

import grpc
import grpc.aio
from conversations.v1.conversations_service_pb2 import ItemChange, WatchItemsRequest, WatchItemsResponse

from tests.faults.history import Watch, code_of, reason_of
from tests.faults.workload import PATIENCE, Caller

_SETTLED_SECONDS = 1.5  # after the end of the load, in which the other callers have finished
_LONGEST = 4.0  # seconds of a stream


class Watcher(Caller):
    """Follows one of the conversations of its tenant, on streams that end all the time."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._token = ""
        self._has_all = False  # what there was at the last message
        followed = [each for each in self.history.watches if each.tenant == self.tenant.name]
        # The first of a tenant follows the one in which items are deleted.
        conversation_id = (
            self.random.choice((self.tenant.shared, self.tenant.streamed)) if followed else self.tenant.thinned
        )
        self._watch = Watch(self.tenant.name, conversation_id)
        self.history.watches.append(self._watch)

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
        self._watch.last_began = began

    async def _follow(self, seconds: float) -> bool:
        """Reads one stream, which the server ends a second before its deadline; whether it did."""
        start: dict[str, Any] = {"resume_token": self._token} if self._token else {"after_sequence": 0}
        request = WatchItemsRequest(conversation_id=self._watch.conversation_id, **start)
        attempt = self.history.begin("WatchItems", seconds + 1)
        code, reason = "OK", ""
        try:
            async for response in self.stub.WatchItems(request, metadata=self.tenant.metadata, timeout=seconds + 1):
                self._take(response)
        except grpc.aio.AioRpcError as error:
            code, reason = code_of(error), reason_of(error)
        self.history.end(attempt, code, reason)
        return code == "OK"

    def _take(self, response: WatchItemsResponse) -> None:
        self.history.look_for_leaks(self.tenant.name, "WatchItems", response)
        for change in response.changes:
            self._note(change)
        self._token = response.resume_token
        self._has_all = response.HasField("watermark")

    def _note(self, change: ItemChange) -> None:
        match change.WhichOneof("change"):
            case "item":
                self._watch.told.append((change.item.sequence, change.item.id))
            case "deleted_item":
                self._watch.gone.append(change.deleted_item.sequence)
