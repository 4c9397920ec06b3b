"""AppendItems: a stream of appends to one conversation.

Requests are read ahead: while one statement runs, the next ones gather for the
statement after it. Responses go out in the order of the requests.

The caller is authenticated again with each request, and once in `CREDENTIALS_SECONDS` while it sends none: a
stream does not outlast its credentials.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime
from typing import TypeAlias

from conversations.v1 import conversations_service_pb2 as pb

from server.authorization.access import Access
from server.authorization.audit_log import CallAudit
from server.errors import (
    ActionDenied,
    ConversationNotFound,
    FieldInvalid,
    IdentityUnavailable,
    OutcomeUnknown,
    ServiceError,
    ShuttingDown,
    Unauthenticated,
    Violation,
    forget_frames,
)
from server.identity.caller import Caller
from server.requests.large import LARGE_BYTES, current_size, run_sized
from server.requests.validation import validate
from server.services.new_items import BatchBuilder
from server.store.appends import Append
from server.store.idempotency import Method, reservation_for
from server.store.items import AppendedIds, ItemStore

CREDENTIALS_SECONDS = 1.0  # between two looks at the credentials of a stream
MAX_PENDING = 128  # requests read and not yet answered; beyond it the caller waits
# They end the stream: no later request can succeed.
_FATAL = (ActionDenied, ConversationNotFound, Unauthenticated, IdentityUnavailable)

# What the queue of responses holds: an append in a batch, one that runs by itself, a finished
# response, or the end of the stream with its error, if there is one.
Pending: TypeAlias = "Append | asyncio.Task[pb.AppendItemsResponse] | pb.AppendItemsResponse | Exception | None"


class AppendStream:
    """One call of AppendItems.

    Args:
        access: What the caller may do; planned again for each request, so that a new policy applies.
        caller: Who that is; authenticated again and again, so that the stream ends with its credentials.
        audit: Of this call; has a line for each request.
        items: The store.
        batches: Makes the batch of each request.
        draining: Set when the drain begins; requests read before are still answered.
    """

    def __init__(
        self,
        access: Access,
        caller: Caller,
        audit: CallAudit,
        items: ItemStore,
        batches: BatchBuilder,
        draining: asyncio.Event,
    ) -> None:
        self._access = access
        self._caller = caller
        self._audit = audit
        self._items = items
        self._batches = batches
        self._draining = draining
        self._conversation_id = ""
        self._queue: asyncio.Queue[Pending] = asyncio.Queue()
        self._slots = asyncio.Semaphore(MAX_PENDING)  # not maxsize: a request that has begun is always queued
        self._latest: Append | None = None  # the last one given to a batch; when it is placed, all are
        self._ending: Exception | None = None  # why no more requests are read, while the caller could send some

    async def respond(self, requests: AsyncIterator[pb.AppendItemsRequest]) -> AsyncIterator[pb.AppendItemsResponse]:
        """Yields a response for each request, in their order.

        Raises:
            FieldInvalid: A request breaks the protocol of the stream.
            ConversationNotFound, ActionDenied: The caller cannot append to the conversation, or no longer.
            Unauthenticated, IdentityUnavailable: The caller's credentials are no longer valid, or cannot be checked.
            ShuttingDown: The server drains.
        """
        reader = asyncio.create_task(self._read(requests))
        stoppers = [asyncio.create_task(each(reader)) for each in (self._stop_on_drain, self._stop_on_refusal)]
        pending: Pending = None
        try:
            while (pending := await self._queue.get()) is not None:
                self._slots.release()
                yield await self._response(pending)
        finally:
            for task in (*stoppers, reader):
                task.cancel()
            self._cancel(pending)

    def _cancel(self, pending: Pending) -> None:
        """Cancels ``pending`` and everything queued; an append whose statement runs already is still made.

        All of them before anything else runs: if one were cancelled and a later one not, the
        conversation would get items out of order.
        """
        while True:
            if isinstance(pending, Append | asyncio.Task):
                pending.cancel()
            if self._queue.empty():
                return
            pending = self._queue.get_nowait()

    async def _stop_on_drain(self, reader: "asyncio.Task[None]") -> None:
        await self._draining.wait()
        self._stop(reader, ShuttingDown())

    async def _stop_on_refusal(self, reader: "asyncio.Task[None]") -> None:
        """Stops the reading of requests when the caller's credentials are not accepted any more."""
        while True:
            await asyncio.sleep(CREDENTIALS_SECONDS)
            try:
                await self._caller.principal()
            except IdentityUnavailable:  # a request would be refused; one that has not come need not be
                continue
            except Exception as error:  # noqa: BLE001 - raised again by `respond`
                self._stop(reader, error)
                return

    def _stop(self, reader: "asyncio.Task[None]", error: Exception) -> None:
        """Ends the stream with ``error`` once the requests that were read are answered."""
        self._ending = self._ending or error
        reader.cancel()

    async def _read(self, requests: AsyncIterator[pb.AppendItemsRequest]) -> None:
        """Reads requests until their end, and queues a response for each."""
        end: Exception | None = None
        try:
            async for request in requests:
                await self._slots.acquire()
                await self._begin(request)
                if current_size.get() > LARGE_BYTES:
                    await self._settled()
                del request
        except asyncio.CancelledError:
            if self._ending is None:
                raise
            end = self._ending
        except Exception as error:  # noqa: BLE001 - raised again by `respond`
            end = error
        self._queue.put_nowait(end)

    async def _settled(self) -> None:
        """Waits for the last append: large requests are not read ahead."""
        if self._latest:
            await asyncio.wait((self._latest.answer,))

    async def _begin(self, request: pb.AppendItemsRequest) -> None:
        """Begins the append of a request, in its turn, and queues its response."""
        self._identify(request)
        access = self._access.renewed(await self._caller.principal())
        try:
            append = await self._append(request, access)
        except ServiceError as error:
            self._record(access, error)
            if isinstance(error, _FATAL) or _is_about_conversation(error):
                raise
            forget_frames(error)
            self._queue.put_nowait(pb.AppendItemsResponse(error=error.status()))
            return
        if append.can_batch:
            self._items.enqueue(append)
            self._queue.put_nowait(append)
            self._latest = append
            return
        # By itself: after all appends before it, and before all that follow.
        await self._settled()
        task = asyncio.create_task(self._await_response(append, self._items.append_ids(append)))
        self._queue.put_nowait(task)
        await asyncio.wait((task,))
        task.result()

    async def _response(
        self, pending: "Append | asyncio.Task[pb.AppendItemsResponse] | pb.AppendItemsResponse | Exception"
    ) -> pb.AppendItemsResponse:
        match pending:
            case Exception():
                raise pending
            case Append():
                return await self._await_response(pending, self._items.result(pending))
            case asyncio.Task():
                return await pending
        return pending

    def _identify(self, request: pb.AppendItemsRequest) -> None:
        """Sets the conversation of ``request``: the one that the first request named.

        Raises:
            FieldInvalid: The first request names none, or a later one names another.
        """
        sent = request.conversation_id
        if not (sent or self._conversation_id):
            raise FieldInvalid(Violation("conversation_id", "is required on the first message", "append.first"))
        if sent and sent != (self._conversation_id or sent):
            raise FieldInvalid(
                Violation("conversation_id", "must be that of the first message, or empty", "append.later")
            )
        # Set on every request, so that its fingerprint does not depend on its place in a stream.
        request.conversation_id = self._conversation_id = sent or self._conversation_id

    async def _append(self, request: pb.AppendItemsRequest, access: Access) -> Append:
        size = current_size.get()
        await run_sized(size, validate, request)
        now = datetime.now(UTC)
        reserved = await run_sized(size, reservation_for, Method.APPEND_ITEMS, request)
        batch = await self._batches.prepare(request.items, self._conversation_id, access.principal.id, now)
        expected = request.expected_last_sequence if request.HasField("expected_last_sequence") else None
        on_stored = self._audit.record_stored
        return Append(access, self._conversation_id, batch, expected, reserved, now, on_stored=on_stored)

    async def _await_response(self, append: Append, result: Awaitable[AppendedIds]) -> pb.AppendItemsResponse:
        """Waits for an append and returns its response; errors that end the stream are raised."""
        try:
            stored = await result
        except asyncio.CancelledError:
            if self._audit.interrupted:
                self._record(append.access, OutcomeUnknown())
            raise
        except ServiceError as error:
            self._record(append.access, error)
            if isinstance(error, _FATAL):
                raise
            forget_frames(error)
            return pb.AppendItemsResponse(error=error.status())
        if not append.stored:  # but by an earlier call with its request id
            self._record(append.access, None)
        return pb.AppendItemsResponse(
            appended=pb.AppendItemsResponse.Appended(item_ids=stored.item_ids, first_sequence=stored.first_sequence)
        )

    def _record(self, access: Access, error: ServiceError | None) -> None:
        self._audit.record(access, "item", "create", error, self._conversation_id)


def _is_about_conversation(error: ServiceError) -> bool:
    """Whether the id of the conversation is invalid, and with it every request of the stream."""
    return isinstance(error, FieldInvalid) and any(each.field == "conversation_id" for each in error.violations)
