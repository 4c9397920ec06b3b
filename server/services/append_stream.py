"""AppendItems: a stream of appends to one conversation.

Requests are taken ahead: while one statement is under way the next ones gather
for the statement after it. Answers go out in the order of the requests.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime
from typing import TypeAlias

from conversations.v1 import conversations_service_pb2 as pb

from server.authorization.access import Access
from server.authorization.audit_log import current_request, decided
from server.errors import ActionDenied, ConversationNotFound, FieldInvalid, ServiceError, ShuttingDown, Violation
from server.requests.validation import validate
from server.services.messages import item_of
from server.services.new_items import BatchBuilder
from server.store.append_batching import Append
from server.store.idempotency import Method, reservation
from server.store.items import ItemStore, StoredItem

AHEAD = 128  # requests taken and not yet answered; then the caller has to wait
_ENDING = (ActionDenied, ConversationNotFound)  # access was lost, or never was

# What waits to be answered: an append, one under way by itself, an answer, or the end and why.
Taken: TypeAlias = "Append | asyncio.Task[pb.AppendItemsResponse] | pb.AppendItemsResponse | Exception | None"


class AppendStream:
    """One call of AppendItems.

    Args:
        access: The caller's; asked for again with each request.
        items: The store.
        admission: Of new items.
        draining: Set when the server ends; requests taken before are answered.
    """

    def __init__(self, access: Access, items: ItemStore, batches: BatchBuilder, draining: asyncio.Event) -> None:
        self._access = access
        self._items = items
        self._batches = batches
        self._draining = draining
        self._conversation_id = ""
        self._first: pb.AppendItemsRequest | None = None
        self._line: asyncio.Queue[Taken] = asyncio.Queue()
        self._room = asyncio.Semaphore(AHEAD)  # in line: what has begun must get there whatever happens
        self._latest: Append | None = None  # of those that were queued; when it is placed, all are

    async def answers(self, requests: AsyncIterator[pb.AppendItemsRequest]) -> AsyncIterator[pb.AppendItemsResponse]:
        """An answer for each request, as they are placed.

        Raises:
            FieldInvalid: A request breaks the protocol.
            ConversationNotFound, ActionDenied: Nothing more can be appended.
            ShuttingDown: The server ends.
        """
        reader = asyncio.create_task(self._read(requests))
        stopper = asyncio.create_task(self._stopped(reader))
        taken: Taken = None
        try:
            while (taken := await self._line.get()) is not None:
                self._room.release()
                yield await self._answer(taken)
        finally:
            current_request.set(self._first)  # the audit tells the conversation
            stopper.cancel()
            reader.cancel()
            self._abandon(taken)

    def _abandon(self, taken: Taken) -> None:
        """Appends that nobody waits for any more are left out, unless their statement is under way.

        All at once, the one that was to be answered too: one that is left out and another
        behind it that is not would change the order.
        """
        while True:
            if isinstance(taken, Append):
                taken.placed.cancel()
            elif isinstance(taken, asyncio.Task):
                taken.cancel()
            if self._line.empty():
                return
            taken = self._line.get_nowait()

    async def _stopped(self, reader: "asyncio.Task[None]") -> None:
        await self._draining.wait()
        reader.cancel()

    async def _read(self, requests: AsyncIterator[pb.AppendItemsRequest]) -> None:
        """Takes requests, and puts them in line for their answers."""
        end: Exception | None = None
        try:
            async for request in requests:
                self._first = self._first or request
                await self._room.acquire()
                await self._take(request)
        except asyncio.CancelledError:
            if not self._draining.is_set():
                raise
            end = ShuttingDown()
        except Exception as error:  # noqa: BLE001 - it is how the stream ends
            end = error
        self._line.put_nowait(end)

    async def _take(self, request: pb.AppendItemsRequest) -> None:
        """Settles the turn of a request among the appends, and puts it in line."""
        self._identify(request)
        try:
            append = self._append(request)
        except _ENDING:
            raise
        except ServiceError as failure:
            if _about_conversation(failure):
                raise
            self._line.put_nowait(pb.AppendItemsResponse(error=failure.status()))
            return
        if append.can_batch:
            self._items.queue(append)
            self._line.put_nowait(append)
            self._latest = append
            return
        # It cannot be queued: all before it are placed first, and it before all others.
        if self._latest:
            await asyncio.wait((self._latest.placed,))
        alone = asyncio.create_task(self._answered(self._items.append(append)))
        self._line.put_nowait(alone)
        await asyncio.wait((alone,))
        alone.result()

    async def _answer(
        self, taken: "Append | asyncio.Task[pb.AppendItemsResponse] | pb.AppendItemsResponse | Exception"
    ) -> pb.AppendItemsResponse:
        match taken:
            case Exception():
                raise taken
            case Append():
                return await self._answered(self._items.result(taken))
            case asyncio.Task():
                return await taken
        return taken

    def _identify(self, request: pb.AppendItemsRequest) -> None:
        """The conversation is said once.

        Raises:
            FieldInvalid: It is missing, or another than before.
        """
        sent = request.conversation_id
        if not (sent or self._conversation_id):
            raise FieldInvalid(Violation("conversation_id", "is required on the first message", "append.first"))
        if sent and sent != (self._conversation_id or sent):
            raise FieldInvalid(
                Violation("conversation_id", "must be that of the first message, or empty", "append.later")
            )
        # The same request is the same whichever place in a stream it has.
        request.conversation_id = self._conversation_id = sent or self._conversation_id

    def _append(self, request: pb.AppendItemsRequest) -> Append:
        validate(request)
        access, now = self._access.now, datetime.now(UTC)
        reserved = reservation(Method.APPEND_ITEMS, request)
        batch = self._batches.build(request.items, self._conversation_id, access.principal.id, now)
        expected = request.expected_last_sequence if request.HasField("expected_last_sequence") else None
        return Append(access, self._conversation_id, batch, expected, reserved, now)

    async def _answered(self, appended: Awaitable[list[StoredItem]]) -> pb.AppendItemsResponse:
        """What became of an append, unless that ends the stream."""
        try:
            stored = await appended
        except _ENDING:
            raise
        except ServiceError as failure:
            decided(self._access, "item", "create", failure, permits=False)
            return pb.AppendItemsResponse(error=failure.status())
        ids = [item_of(each).id for each in stored]
        return pb.AppendItemsResponse(
            appended=pb.AppendItemsResponse.Appended(item_ids=ids, first_sequence=stored[0].sequence)
        )


def _about_conversation(failure: ServiceError) -> bool:
    """Whether no request of the stream can be valid."""
    return isinstance(failure, FieldInvalid) and any(each.field == "conversation_id" for each in failure.violations)
