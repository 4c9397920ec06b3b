"""ExportConversations: a stream of whole conversations, oldest first.

Nothing is read ahead: the next block is read when the caller has taken the last one.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from conversations.v1 import transfer_service_pb2 as pb

from server.authorization.access import Access, current_access
from server.authorization.audit_log import current_audit
from server.errors import (
    ActionDenied,
    Conflict,
    ConversationNotFound,
    DeadlineExceeded,
    FieldInvalid,
    ShuttingDown,
    Violation,
)
from server.identity.caller import current_caller
from server.interceptors.chain import Context
from server.observability.stats import TransferStats, WatchStats
from server.requests import filters
from server.requests.large import run_sized
from server.requests.page_tokens import PageTokens
from server.services.export_blocks import are_small, block_of, record_of
from server.services.export_position import ExportPosition
from server.services.messages import conversation_of
from server.services.watch_stream import lifetime
from server.store.checksum import add_block, digest_of_head, kept_head
from server.store.conversations import ConversationStore
from server.store.exports import Exports, Head, Reader
from server.store.items import StoredItem
from server.store.response_budget import release_room

_METHOD = "ExportConversations"  # what a resume token is bound to
_PAGE = 100  # conversations that one look finds
_ATTEMPTS = 10  # at a conversation that loses items while it is sent


@dataclass(frozen=True)
class ExportParts:
    """What the exports of this process share.

    Attributes:
        conversations: Finds the conversations that a caller may read.
        exports: Reads them.
        tokens: Signs and verifies resume tokens.
        seconds: How long a stream lasts.
        refusing: Set when connections have been told to go away; streams end then.
        waiting: Counts the callers who take their time.
        stats: What was sent.
        reads: Lets so many streams read and build a message at a time.
    """

    conversations: ConversationStore
    exports: Exports
    tokens: PageTokens
    seconds: float
    refusing: asyncio.Event
    waiting: WatchStats
    stats: TransferStats
    reads: asyncio.Semaphore


class ExportStream:
    """One call of ExportConversations; ``request`` keeps the rules of the contract."""

    def __init__(self, request: pb.ExportConversationsRequest, parts: ExportParts) -> None:
        self._parts = parts
        self._ids = list(request.conversation_ids)
        self._filter = request.filter
        self._token = request.resume_token
        self._access: Access = current_access.get()
        self._caller = current_caller.get()
        self._audit = current_audit.get()
        self._small = True  # whether the last block had small items only

    async def respond(self, context: Context) -> AsyncGenerator[bytes, None]:
        """Yields records, serialized, until all conversations were sent.

        Raises:
            FieldInvalid: A conversation is named twice, or together with a filter.
            FilterInvalid: The filter cannot be parsed.
            ResumeTokenInvalid: The token belongs to another request or caller.
            ConversationNotFound, ActionDenied: The caller cannot read it, or not any more.
            Unauthenticated, IdentityUnavailable: Its credentials are no longer valid, or cannot be checked.
            Conflict: A conversation loses items again and again while it is sent.
            DeadlineExceeded: The time of a stream has passed, or that of the caller nearly.
            ShuttingDown: The server drains.
        """
        self._check_request()
        ends_at = time.monotonic() + lifetime(context, self._parts.seconds)
        async with aclosing(self._records()) as records:
            try:
                async for record in records:
                    with self._parts.waiting.writing(self):
                        yield record
                    del record
                    release_room()
                    self._check_can_go_on(ends_at)
            except (ActionDenied, ConversationNotFound) as error:
                self._audit.record(self._access, "item", "read", error)
                raise
            finally:
                release_room()

    def _check_request(self) -> None:
        wrong = []
        if len(set(self._ids)) < len(self._ids):
            wrong.append(Violation("conversation_ids", "must not name a conversation twice", "export.unique"))
        if self._ids and self._filter:
            wrong.append(Violation("filter", "must be empty with conversation_ids", "export.filter"))
        if wrong:
            raise FieldInvalid(*wrong)

    def _check_can_go_on(self, ends_at: float) -> None:
        if self._parts.refusing.is_set():
            raise ShuttingDown
        if time.monotonic() >= ends_at:
            raise DeadlineExceeded

    async def _records(self) -> AsyncGenerator[bytes, None]:
        position = self._start()
        if position and not position.is_complete:
            async for record in self._conversation(position.conversation_id, position):
                yield record
        named = self._named(position) if self._ids else self._found(position)
        async with aclosing(named) as conversation_ids:
            async for conversation_id in conversation_ids:
                async for record in self._conversation(conversation_id):
                    yield record

    def _start(self) -> ExportPosition | None:
        """Returns the position in the token, if there is one."""
        if not self._token:
            return None
        return ExportPosition.unpack(self._parts.tokens.verify_resume(self._token, *self._query()))

    def _query(self) -> tuple[str, ...]:
        principal = self._access.principal
        return _METHOD, principal.tenant, principal.id, self._filter, *self._ids

    async def _named(self, position: ExportPosition | None) -> AsyncGenerator[str, None]:
        """Yields the ids of the request behind a position."""
        behind = self._ids.index(position.conversation_id) + 1 if position else 0
        for conversation_id in self._ids[behind:]:
            yield conversation_id

    async def _found(self, position: ExportPosition | None) -> AsyncGenerator[str, None]:
        """Yields the ids of all conversations that the caller may read, behind a position."""
        comparisons = filters.parse(self._filter, filters.CONVERSATION_FIELDS)
        place = (position.create_time, position.conversation_id) if position else None
        more = True
        while more:
            await self._renew()
            async with self._parts.reads:
                rows, more = await self._parts.conversations.page(
                    self._access, comparisons, place, _PAGE, descending=False
                )
            for row in rows:
                place = row["create_time"], row["id"]
                yield row["id"]

    async def _renew(self) -> Reader:
        """Asks again who the caller is, and what it may do."""
        self._access = self._access.renewed(await self._caller.principal())
        return Reader.of(self._access)

    async def _conversation(
        self, conversation_id: str, position: ExportPosition | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yields the records of a conversation, from a position on; again from its head if it loses items meanwhile."""
        for _ in range(_ATTEMPTS):
            try:
                async for record in self._attempt(conversation_id, position):
                    yield record
            except ConversationNotFound:
                if self._ids:
                    raise
                return  # as if it had not been listed; its end is not sent
            except _Spoilt:
                position = None
            else:
                return
        raise Conflict

    async def _attempt(self, conversation_id: str, position: ExportPosition | None) -> AsyncGenerator[bytes, None]:
        """Yields the records of a conversation.

        Raises:
            ConversationNotFound: It cannot be read, or not any more.
            _Spoilt: It is not any more what it was when its head was read.
        """
        head = None
        if position is None:
            head = await self._head(conversation_id)
            position = _position_of(head)
            self._audit_permit(conversation_id)
            yield self._record(pb.Record(conversation=conversation_of(head.row)), position)
        async for block, position in self._blocks(head, position):  # noqa: B020 - it goes on from the last one
            yield record_of(block, self._sign(position))
            del block
        if head is None or head.items is None:
            await self._require_intact(position)
        self._parts.stats.exported += 1
        self._parts.stats.exported_items += position.count
        end = pb.Record.End(item_count=position.count, digest=position.digest)
        yield self._record(pb.Record(end=end), ExportPosition(position.create_time, position.conversation_id))

    async def _head(self, conversation_id: str) -> Head:
        reader = await self._renew()
        async with self._parts.reads:
            return await self._parts.exports.head(reader, conversation_id)

    async def _blocks(
        self, head: Head | None, position: ExportPosition
    ) -> AsyncGenerator[tuple[bytes, ExportPosition], None]:
        """Yields the blocks of a conversation, each with the position behind it."""
        while position.sequence < position.last:
            stored = head.items if head and head.items is not None else await self._read(position)
            if not stored:
                return
            async with self._parts.reads:
                block = await run_sized(sum([len(body) for _, body in stored]), block_of, stored)
            last = stored[-1].sequence
            count = position.count + len(stored)
            position = replace(position, sequence=last, count=count, digest=add_block(position.digest, block))
            del stored
            yield block, position
            del block
            if head and head.items is not None:
                return

    async def _read(self, position: ExportPosition) -> Sequence[StoredItem]:
        reader = await self._renew()
        async with self._parts.reads:
            stored = await self._parts.exports.block(
                reader, position.conversation_id, position.sequence, position.last, small=self._small
            )
        self._small = are_small(stored)
        return stored

    async def _require_intact(self, position: ExportPosition) -> None:
        reader = await self._renew()
        if not await self._parts.exports.is_intact(
            reader, position.conversation_id, position.version, position.last, position.view
        ):
            raise _Spoilt

    def _audit_permit(self, conversation_id: str) -> None:
        self._audit.record(self._access, "item", "read", None, conversation_id)
        self._audit.has_permit = True

    def _record(self, record: pb.Record, position: ExportPosition) -> bytes:
        record.resume_token = self._sign(position)
        return record.SerializeToString(deterministic=True)

    def _sign(self, position: ExportPosition) -> str:
        return self._parts.tokens.sign(position.pack(), *self._query())


class _Spoilt(Exception):
    """A conversation is not any more what it was when its head was sent."""


def _position_of(head: Head) -> ExportPosition:
    row = head.row
    digest = digest_of_head(kept_head(conversation_of(row)))
    last = row["last_sequence"]
    return ExportPosition(
        row["create_time"], row["id"], version=row["version"], last=last, digest=digest, view=head.view
    )
