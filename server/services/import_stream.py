"""ImportConversations: a stream of the records of an export, each conversation of which is written as it was.

Records are taken one after the other, and none is read ahead. A broken stream leaves what it has stored, seen by
nobody, for the next one that brings the same conversation.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from conversations.v1 import conversation_pb2
from conversations.v1 import transfer_service_pb2 as pb

from server.authorization.access import Access, current_access
from server.authorization.audit_log import current_audit
from server.authorization.permission import Permission
from server.errors import (
    Conflict,
    ConversationExists,
    ConversationNotFound,
    FieldInvalid,
    IdentityUnavailable,
    ServiceError,
    ShuttingDown,
    Violation,
    forget_frames,
)
from server.identity.caller import current_caller
from server.observability.stats import TransferStats
from server.policy.plan import Always
from server.requests.large import current_size, run_sized
from server.requests.validation import validate
from server.services.append_stream import CREDENTIALS_SECONDS
from server.services.export_blocks import digest_of_stored
from server.services.import_blocks import Block, BlockCutter, head_of
from server.settings.retention import RetentionFile
from server.store.checksum import add_block, digest_of_head, kept_head
from server.store.connection.failures import KeyTaken
from server.store.exports import Exports, Reader
from server.store.imports import ImportedHead, ImportKey, Imports, Progress

Request = pb.ImportConversationsRequest
Response = pb.ImportConversationsResponse
_REFUSALS = (FieldInvalid, ConversationExists, Conflict)  # they are about one conversation


@dataclass(frozen=True)
class ImportParts:
    """What the imports of this process share.

    Attributes:
        imports: Writes the conversations.
        exports: Reads those that are there already.
        max_item_bytes: Largest item, serialized.
        draining: Set when the drain begins; streams end then.
        stats: What was imported.
        retention: For how long conversations of each tenant live.
        writes: Lets so many streams store a block at a time, so that calls find a free connection.
    """

    imports: Imports
    exports: Exports
    max_item_bytes: int
    draining: asyncio.Event
    stats: TransferStats
    retention: RetentionFile
    writes: asyncio.Semaphore


@dataclass
class _Running:
    """The conversation whose records come.

    Attributes:
        head: None once it is refused; its records are passed over then.
        cutter: None if a conversation of the id is there, with which it is compared at the end.
    """

    key: ImportKey
    owner: str
    head: ImportedHead | None = None
    cutter: BlockCutter | None = None
    progress: Progress = field(default_factory=lambda: Progress(0, 0, b""))


class ImportStream:
    """One call of ImportConversations."""

    def __init__(self, parts: ImportParts) -> None:
        self._parts = parts
        self._access: Access = current_access.get()
        self._caller = current_caller.get()
        self._audit = current_audit.get()
        self._stream = str(uuid.uuid4())
        self._running: _Running | None = None

    async def respond(self, requests: AsyncIterator[Request]) -> AsyncIterator[Response]:
        """Yields what becomes of each conversation.

        Raises:
            FieldInvalid: A record belongs to no conversation.
            ActionDenied: The caller may not import, or not any more.
            Unauthenticated, IdentityUnavailable: Its credentials are no longer valid, or cannot be checked.
            ShuttingDown: The server drains.
        """
        while (request := await self._next(requests)) is not None:
            self._access = self._access.renewed(await self._caller.principal())
            self._access.demand("tenant", "import")
            for response in await self._take(request):
                yield response
            del request
        for response in self._leave():
            yield response

    async def _next(self, requests: AsyncIterator[Request]) -> Request | None:
        """The next request, None at the end; the caller's credentials are checked while it does not come."""
        read = asyncio.ensure_future(anext(requests, None))
        drain = asyncio.create_task(self._parts.draining.wait())
        try:
            while not read.done():
                await asyncio.wait((read, drain), timeout=CREDENTIALS_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if drain.done() and not read.done():
                    raise ShuttingDown
                if not read.done():
                    await self._check_credentials()
            return read.result()
        finally:
            read.cancel()
            drain.cancel()

    async def _check_credentials(self) -> None:
        try:
            await self._caller.principal()
        except IdentityUnavailable:  # a record would be refused; one that has not come need not be
            return

    async def _take(self, request: Request) -> list[Response]:
        """Returns the answers to a record: none, or one, or two when the conversation before it has no end."""
        record = request.record
        kind = record.WhichOneof("record")
        if kind == "conversation":
            return await self._take_head(request)
        running = self._running
        if running is None:
            raise FieldInvalid(Violation("record", "must be a conversation first", "import.first"))
        if running.head is None:  # it was refused
            return []
        try:
            await run_sized(current_size.get(), validate, request)
            if kind == "end":
                return [await self._end(record.end, running, running.head)]
            await self._take_items(record.items, running)
        except _REFUSALS as error:
            return [await self._refuse(running, error)]
        return []

    async def _take_head(self, request: Request) -> list[Response]:
        message = request.record.conversation
        key = ImportKey(self._access.principal.tenant, message.id, self._stream)
        before, self._running = self._running, _Running(key, message.owner)
        answers = []
        if before and before.head:
            if before.key == key:  # this head replaces that one, and all that came of it
                await self._parts.imports.abandon(key)
            else:
                answers.append(self._refusal(before.key, _no_end()))
        try:
            await run_sized(current_size.get(), validate, request)
            answers.append(await self._begin(message, self._running))
        except _REFUSALS as error:
            answers.append(await self._refuse(self._running, error))
        return answers

    async def _begin(self, message: conversation_pb2.Conversation, running: _Running) -> Response:
        rule = self._parts.retention.rules().rule_of(running.key.tenant)
        head, kept = head_of(message, rule, datetime.now(UTC)), kept_head(message)
        try:
            running.progress = await self._parts.imports.begin(running.key, kept, digest_of_head(kept))
            stored = running.progress.stored_sequence
            running.cutter = BlockCutter(stored, head.last_sequence, self._parts.max_item_bytes)
        except ConversationExists:
            stored = await self._last_of_present(running.key)
        running.head = head
        return Response(conversation_id=message.id, stored_sequence=stored)

    async def _last_of_present(self, key: ImportKey) -> int:
        """Returns the last sequence of the conversation that has the id.

        Raises:
            ConversationExists: It is not one of the caller's tenant, or deleted.
        """
        try:
            head = await self._parts.exports.head(_reader_of(key), key.conversation_id)
        except ConversationNotFound:
            raise ConversationExists(key.conversation_id) from None
        last: int = head.row["last_sequence"]
        return last

    async def _take_items(self, items: pb.Record.Items, running: _Running) -> None:
        if running.cutter:
            for block in await run_sized(current_size.get(), running.cutter.add, items.items):
                await self._store(block, running)

    async def _store(self, block: Block, running: _Running) -> None:
        before = running.progress
        digest = await run_sized(len(block.wire), add_block, before.digest, block.wire)
        progress = Progress(block.rows[-1][0], before.item_count + len(block.rows), digest)
        try:
            async with self._parts.writes:
                await self._parts.imports.store(running.key, running.owner, block.rows, progress)
        except KeyTaken:
            rule = "has the id of another item of the conversation"
            raise FieldInvalid(Violation("record.items", rule, "import.item_id")) from None
        running.progress = progress
        self._parts.stats.imported_items += len(block.rows)

    async def _end(self, end: pb.Record.End, running: _Running, head: ImportedHead) -> Response:
        created = await self._finish(end, running, head) if running.cutter else False
        if not created:
            await self._require_same(end, running.key)
        self._parts.stats.imported["created" if created else "present"] += 1
        self._audit.record(self._access, "tenant", "import", None, running.key.conversation_id)
        self._running = None
        imported = Response.Imported(created=created)
        return Response(conversation_id=running.key.conversation_id, imported=imported)

    async def _finish(self, end: pb.Record.End, running: _Running, head: ImportedHead) -> bool:
        """Lets everybody see a conversation; whether it did so, or an earlier statement whose answer was lost."""
        for block in running.cutter.rest() if running.cutter else ():
            await self._store(block, running)
        _check_end(end, running.progress)
        try:
            await self._parts.imports.finish(running.key, head)
        except Conflict:
            return False
        return True

    async def _require_same(self, end: pb.Record.End, key: ImportKey) -> None:
        """Raises ConversationExists unless the conversation that is there has the digest of the end."""
        try:
            digest = await digest_of_stored(self._parts.exports, _reader_of(key), key.conversation_id)
        except ConversationNotFound:
            raise Conflict from None  # it was deleted meanwhile, or another stream imports it
        if digest != end.digest:
            raise ConversationExists(key.conversation_id)

    def _leave(self) -> list[Response]:
        """Says of a conversation whose end did not come that it is not imported; another stream can go on with it."""
        running, self._running = self._running, None
        return [self._refusal(running.key, _no_end())] if running and running.head else []

    async def _refuse(self, running: _Running, error: ServiceError) -> Response:
        """Passes over what else comes of a conversation; what was stored of one that is wrong is of no use."""
        forget_frames(error)
        if isinstance(error, FieldInvalid) and running.cutter:
            await self._parts.imports.abandon(running.key)
        running.head = running.cutter = None
        return self._refusal(running.key, error)

    def _refusal(self, key: ImportKey, error: ServiceError) -> Response:
        self._parts.stats.imported["refused"] += 1
        return Response(conversation_id=key.conversation_id, error=error.status())


def _reader_of(key: ImportKey) -> Reader:
    """Returns a reader of all that the tenant has: who may import may do so whatever the rules about single rows."""
    read, item_read = (Permission(each, "read", Always()) for each in ("conversation", "item"))
    return Reader(read, item_read, {"tenant": key.tenant})


def _check_end(end: pb.Record.End, progress: Progress) -> None:
    """Raises FieldInvalid if the records that came are not those of the export."""
    wrong = []
    if end.item_count != progress.item_count:
        rule = f"must be the number of items that came, {progress.item_count}"
        wrong.append(Violation("record.end.item_count", rule, "import.item_count"))
    if end.digest != progress.digest:
        rule = "must be the digest of head and items, which are not as they were exported"
        wrong.append(Violation("record.end.digest", rule, "import.digest"))
    if wrong:
        raise FieldInvalid(*wrong)


def _no_end() -> FieldInvalid:
    return FieldInvalid(Violation("record.end", "is required before the next conversation", "import.end"))
