"""ConversationsService: the contract's methods over the store."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

from conversations.v1 import conversation_pb2, item_pb2
from conversations.v1 import conversations_service_pb2 as pb
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceServicer
from google.protobuf.empty_pb2 import Empty

from server.authorization.access import Access, current_access
from server.authorization.audit_log import current_audit
from server.errors import FilterInvalid
from server.identity.caller import current_caller
from server.interceptors.chain import Context
from server.policy.attributes import attribute_pairs
from server.policy.principal import Principal
from server.requests import filters, page_tokens
from server.requests.expiry import expiry_of
from server.requests.field_masks import change_of
from server.requests.large import current_size, run_sized
from server.requests.page_tokens import PageTokens
from server.services.append_stream import AppendStream
from server.services.conversation_watch import ConversationWatch
from server.services.item_watch import ItemWatch
from server.services.messages import conversation_of, item_response, page_of, revision_of, with_items
from server.services.new_items import BatchBuilder
from server.services.watch_stream import Watches
from server.settings.retention import RetentionFile, RetentionRule
from server.store.appends import Append
from server.store.batch import EMPTY_BATCH
from server.store.bulk_deletes import BulkDeleteStore
from server.store.conversations import ConversationStore, new_id
from server.store.creates import Create
from server.store.forks import Fork, ForkStore
from server.store.idempotency import Method, reservation_for
from server.store.items import ItemStore
from server.store.rewinds import Rewind, RewindStore

_DESCENDING = ("", "create_time desc")  # order_by, and the default
_BY_ACTIVITY = "active_time desc"
_CONVERSATIONS, _ITEMS = "ListConversations", "ListItems"  # what a page token is bound to


class ConversationsServicer(ConversationsServiceServicer):
    """One method for each of the contract. Requests are valid; a `ServiceError` becomes the call's status.

    Methods that return items return the bytes of a large response instead of a message.

    Beside what is listed, every method raises StoreUnavailable when the database cannot be
    reached, DeadlineExceeded when a statement takes too long, and Conflict when it lost
    against others more often than it is tried.

    Args:
        conversations: Store of conversations.
        items: Store of items.
        bulk_deletes: Deletes conversations by a filter.
        forks: Copies the beginnings of conversations.
        rewinds: Deletes the items behind a place.
        tokens: Signs and verifies page tokens.
        batches: Checks new items and makes the batch of each request.
        draining: Set when the drain begins; streams of appends end then.
        watches: What watches need.
        retention: For how long conversations of each tenant live.
    """

    def __init__(
        self,
        conversations: ConversationStore,
        items: ItemStore,
        bulk_deletes: BulkDeleteStore,
        forks: ForkStore,
        rewinds: RewindStore,
        tokens: PageTokens,
        batches: BatchBuilder,
        draining: asyncio.Event,
        watches: Watches,
        retention: RetentionFile,
    ) -> None:
        self._retention = retention
        self._watches = watches
        self._conversations = conversations
        self._items = items
        self._bulk_deletes = bulk_deletes
        self._forks = forks
        self._rewinds = rewinds
        self._tokens = tokens
        self._batches = batches
        self._draining = draining

    async def CreateConversation(
        self, request: pb.CreateConversationRequest, context: Context
    ) -> conversation_pb2.Conversation:
        """Creates a conversation, with its first items in the same statement.

        Raises:
            FieldInvalid: An item breaks a rule of its type.
            ActionDenied: The caller may not create one with these attributes.
            ItemNotFound, ConversationNotFound: An item that is referred to does not exist for the caller.
            ItemExists: Two items have one id.
            RequestIdReused: The `request_id` belongs to another request.
        """
        access, now = current_access.get(), datetime.now(UTC)
        if not request.conversation.ByteSize():
            request.ClearField("conversation")  # an empty one is none, so that a repeat over HTTP is the same request
        reserved = await run_sized(current_size.get(), reservation_for, Method.CREATE_CONVERSATION, request)
        conversation_id = new_id(access.principal, reserved)
        batch = EMPTY_BATCH
        if request.items:
            batch = await self._batches.prepare(request.items, conversation_id, access.principal.id, now)
        audit, sent = current_audit.get(), request.conversation
        audit.created = conversation_id
        maps = dict(sent.metadata), _attributes(sent, access.principal)
        expiry = expiry_of(sent, self._rule_of(access), now)
        create = Create(access, conversation_id, *maps, batch, reserved, now, expiry, on_stored=audit.record_created)
        return conversation_of(await self._conversations.create(create))

    async def GetConversation(
        self, request: pb.GetConversationRequest, context: Context
    ) -> conversation_pb2.Conversation:
        """Returns one conversation.

        Raises:
            ConversationNotFound: It is missing, deleted, or not readable for the caller.
        """
        return conversation_of(await self._conversations.get(current_access.get(), request.conversation_id))

    async def UpdateConversation(
        self, request: pb.UpdateConversationRequest, context: Context
    ) -> conversation_pb2.Conversation:
        """Changes what the mask names.

        Raises:
            FieldInvalid: The mask names a field that cannot be changed, or nothing.
            LimitExceeded: It would have too many metadata pairs or attributes.
            ConversationNotFound: It is missing, deleted, or not readable for the caller.
            ActionDenied: The caller may read it but not change it.
            EtagMismatch: It has another etag than the one sent.
            RequestIdReused: The `request_id` belongs to another request.
        """
        sent, access = request.conversation, current_access.get()
        row = await self._conversations.update(
            access,
            sent.id,
            change_of(sent, request.update_mask, self._rule_of(access), datetime.now(UTC)),
            revision_of(sent.etag),
            reservation_for(Method.UPDATE_CONVERSATION, request),
        )
        return conversation_of(row)

    async def DeleteConversation(self, request: pb.DeleteConversationRequest, context: Context) -> Empty:
        """Deletes a conversation; the purge removes its row later.

        Raises:
            ConversationNotFound: It is missing, deleted, or not readable for the caller.
            ActionDenied: The caller may read it but not delete it.
            EtagMismatch: It has another etag than the one sent.
            RequestIdReused: The `request_id` belongs to another request.
        """
        await self._conversations.delete(
            current_access.get(),
            request.conversation_id,
            revision_of(request.etag),
            reservation_for(Method.DELETE_CONVERSATION, request),
        )
        return Empty()

    async def UndeleteConversation(
        self, request: pb.UndeleteConversationRequest, context: Context
    ) -> conversation_pb2.Conversation:
        """Takes a delete back, while the rows are there.

        Raises:
            ConversationNotFound: It is missing, expired, not readable, or was deleted too long ago.
            ConversationExists: It is not deleted.
            ActionDenied: The caller could read it but not delete it.
            RequestIdReused: The `request_id` belongs to another request.
        """
        row = await self._conversations.undelete(
            current_access.get(),
            request.conversation_id,
            reservation_for(Method.UNDELETE_CONVERSATION, request),
        )
        return conversation_of(row)

    async def ListConversations(
        self, request: pb.ListConversationsRequest, context: Context
    ) -> pb.ListConversationsResponse:
        """Returns a page of the conversations that the caller may read.

        Raises:
            PageTokenInvalid: The token belongs to another query, or is none.
            FilterInvalid: The filter cannot be parsed.
            NotEnabled, NotSupported: There is no order by activity.
        """
        return await self.list_conversations(request)

    async def list_conversations(
        self, request: pb.ListConversationsRequest, after: str = ""
    ) -> pb.ListConversationsResponse:
        """Returns what `ListConversations` does; a page that follows the conversation ``after``, if one is named.

        Raises:
            ConversationNotFound: ``after`` is missing, deleted, or not readable for the caller.
        """
        access, size = current_access.get(), page_tokens.page_size(request.page_size)
        descending, by_activity = request.order_by in _DESCENDING, request.order_by == _BY_ACTIVITY
        if by_activity:
            self._conversations.require_order_by_activity()
        order = _BY_ACTIVITY if by_activity else str(descending)
        query = (_CONVERSATIONS, access.principal.tenant, access.principal.id, request.filter, order)
        position = None
        if request.page_token:
            position = page_tokens.unpack_time(self._tokens.verify(request.page_token, *query))
        elif after:
            position = (await self._conversations.get(access, after))["create_time"], after
        comparisons = filters.parse(request.filter, filters.CONVERSATION_FIELDS)
        rows, more = await self._conversations.page(
            access, comparisons, position, size, descending=descending, by_activity=by_activity
        )
        response = pb.ListConversationsResponse(conversations=map(conversation_of, rows))
        if more:
            last, time = rows[-1], "active_time" if by_activity else "create_time"
            response.next_page_token = self._tokens.sign(page_tokens.pack_time(last[time], last["id"]), *query)
        return response

    async def DeleteConversations(
        self, request: pb.DeleteConversationsRequest, context: Context
    ) -> pb.DeleteConversationsResponse:
        """Deletes the conversations that match a filter, as far as the caller may read and delete them.

        Raises:
            FilterInvalid: The filter cannot be parsed, or has no comparison.
        """
        access, comparisons = current_access.get(), filters.parse(request.filter, filters.CONVERSATION_FIELDS)
        if not comparisons:
            raise FilterInvalid("expected a comparison", 0)
        if request.validate_only:
            done = await self._bulk_deletes.count(access, comparisons)
        else:
            done = await self._bulk_deletes.delete(access, comparisons)
            current_audit.get().record_deleted(access, done.ids)
        return pb.DeleteConversationsResponse(deleted_count=done.count, has_more=done.has_more)

    async def CreateItems(self, request: pb.CreateItemsRequest, context: Context) -> pb.CreateItemsResponse:
        """Appends items, all or none.

        Raises:
            FieldInvalid: An item breaks a rule of its type, or they are too large together.
            ConversationNotFound: It is missing, deleted, or not readable for the caller.
            ActionDenied: The caller may read it but not append.
            ItemNotFound: An item that is referred to does not exist for the caller.
            ItemExists: An id is taken.
            SequenceMismatch: `expected_last_sequence` is not the last one.
            RequestIdReused: The `request_id` belongs to another request.
        """
        access, now = current_access.get(), datetime.now(UTC)
        reserved = await run_sized(current_size.get(), reservation_for, Method.CREATE_ITEMS, request)
        batch = await self._batches.prepare(request.items, request.conversation_id, access.principal.id, now)
        expected = request.expected_last_sequence if request.HasField("expected_last_sequence") else None
        on_stored = current_audit.get().record_stored
        append = Append(access, request.conversation_id, batch, expected, reserved, now, on_stored=on_stored)
        response: pb.CreateItemsResponse = await with_items(pb.CreateItemsResponse(), await self._items.append(append))
        return response

    def AppendItems(
        self, requests: AsyncIterator[pb.AppendItemsRequest], context: Context
    ) -> AsyncIterator[pb.AppendItemsResponse]:
        """Appends the items of each request, and responds in the same order; see `AppendStream.respond`."""
        stream = AppendStream(
            current_access.get(), current_caller.get(), current_audit.get(), self._items, self._batches, self._draining
        )
        return stream.respond(requests)

    async def GetItem(self, request: pb.GetItemRequest, context: Context) -> item_pb2.Item:
        """Returns one item.

        Raises:
            ConversationNotFound: It is missing, deleted, or not readable for the caller.
            ItemNotFound: It has no such item.
        """
        stored = await self._items.get(current_access.get(), request.conversation_id, request.item_id)
        response: item_pb2.Item = await item_response(stored)
        return response

    async def BatchGetItems(self, request: pb.BatchGetItemsRequest, context: Context) -> pb.BatchGetItemsResponse:
        """Returns items by id, in request order.

        Raises:
            ConversationNotFound: It is missing, deleted, or not readable for the caller.
            ItemNotFound: It has no such item; the first one that is missing.
            ResponseTooLarge: Together they do not fit into a message.
        """
        stored = await self._items.get_batch(current_access.get(), request.conversation_id, list(request.item_ids))
        response: pb.BatchGetItemsResponse = await with_items(pb.BatchGetItemsResponse(), stored)
        return response

    async def ListItems(self, request: pb.ListItemsRequest, context: Context) -> pb.ListItemsResponse:
        """Returns a page of the items of a conversation, by sequence.

        Raises:
            ConversationNotFound: It is missing, deleted, or not readable for the caller.
            ItemNotFound: `after` names no item of it.
            PageTokenInvalid: The token belongs to another query, or is none.
            FilterInvalid: The filter cannot be parsed.
        """
        return await self.list_items(request)

    async def list_items(self, request: pb.ListItemsRequest, *, live_cursor: bool = False) -> pb.ListItemsResponse:
        """Returns what `ListItems` does.

        With ``live_cursor``, a deleted item in `after` is one that the conversation never had.
        """
        access, size = current_access.get(), page_tokens.page_size(request.page_size)
        descending = request.order != pb.ORDER_ASCENDING
        query = (
            _ITEMS,
            access.principal.tenant,
            access.principal.id,
            request.conversation_id,
            request.filter,
            str(descending),
        )
        cursor: int | str | None = request.after or None
        if request.page_token:
            cursor = page_tokens.unpack_sequence(self._tokens.verify(request.page_token, *query))
        comparisons = filters.parse(request.filter, filters.ITEM_FIELDS)
        stored, more = await self._items.page(
            access,
            request.conversation_id,
            comparisons,
            cursor,
            size,
            descending=descending,
            live_cursor=live_cursor,
        )
        response = pb.ListItemsResponse(has_more=more)
        if more:
            response.next_page_token = self._tokens.sign(page_tokens.pack_sequence(stored[-1].sequence), *query)
        page: pb.ListItemsResponse = await page_of(response, stored)
        return page

    async def locate_items(self, item_ids: Sequence[str]) -> dict[str, str]:
        """Returns the conversation of each item that the caller may read, by the item's id; see `ItemStore.locate`."""
        return await self._items.locate(current_access.get(), item_ids)

    def WatchItems(self, request: pb.WatchItemsRequest, context: Context) -> AsyncIterator[pb.WatchItemsResponse]:
        """Streams what happens in a conversation; see `WatchStream.respond`."""
        return ItemWatch(request, self._watches).respond(context)

    def WatchConversations(
        self, request: pb.WatchConversationsRequest, context: Context
    ) -> AsyncIterator[pb.WatchConversationsResponse]:
        """Streams what happens to all conversations that the caller may read; see `WatchStream.respond`.

        Raises:
            ActionDenied: The caller may read none.
        """
        return ConversationWatch(request, self._watches).respond(context)

    async def DeleteItem(self, request: pb.DeleteItemRequest, context: Context) -> conversation_pb2.Conversation:
        """Deletes the content of an item, whose sequence stays taken, and returns its conversation.

        Raises:
            ConversationNotFound: It is missing, deleted, or not readable for the caller.
            ItemNotFound: It has no such item.
            ActionDenied: The caller may read it but not delete items.
            RequestIdReused: The `request_id` belongs to another request.
        """
        row = await self._items.delete(
            current_access.get(),
            request.conversation_id,
            request.item_id,
            reservation_for(Method.DELETE_ITEM, request),
        )
        return conversation_of(row)

    async def ForkConversation(
        self, request: pb.ForkConversationRequest, context: Context
    ) -> conversation_pb2.Conversation:
        """Makes a conversation with a copy of the beginning of another one.

        Raises:
            FieldInvalid: `expire_time` does not lie ahead, or too far.
            ConversationNotFound: The source is missing, deleted, or not readable for the caller.
            ItemNotFound: The source has no item `through_item_id`.
            ActionDenied: The caller may not create it, or not give it these attributes.
            LimitExceeded: It would have too many items, bytes, metadata pairs or attributes.
            RequestIdReused: The `request_id` belongs to another request.
        """
        access, sent = current_access.get(), request.conversation
        if not sent.ByteSize():
            request.ClearField("conversation")  # an empty one is none, as in CreateConversation
        reserved = reservation_for(Method.FORK_CONVERSATION, request)
        conversation_id = new_id(access.principal, reserved)
        current_audit.get().created = conversation_id
        through = getattr(request, request.WhichOneof("through") or "", None)
        attributes = attribute_pairs({name: list(values.values) for name, values in sent.attributes.items()})
        maps, now = (dict(sent.metadata), attributes, list(sent.attributes)), datetime.now(UTC)
        expiry = expiry_of(sent, self._rule_of(access), now)
        fork = Fork(access, request.conversation_id, conversation_id, through, *maps, expiry, reserved, now)
        return conversation_of(await self._forks.fork(fork))

    async def RewindConversation(
        self, request: pb.RewindConversationRequest, context: Context
    ) -> conversation_pb2.Conversation:
        """Deletes the items behind a place, all or none, and returns the conversation.

        Raises:
            ConversationNotFound: It is missing, deleted, or not readable for the caller.
            ActionDenied: The caller may not read or not delete one of the items.
            SequenceMismatch: `expected_last_sequence` is not the last one.
            LimitExceeded: There are more items than one call deletes.
            RequestIdReused: The `request_id` belongs to another request.
        """
        expected = request.expected_last_sequence if request.HasField("expected_last_sequence") else None
        reserved = reservation_for(Method.REWIND_CONVERSATION, request)
        rewind = Rewind(current_access.get(), request.conversation_id, request.sequence, expected, reserved)
        return conversation_of(await self._rewinds.rewind(rewind))

    def _rule_of(self, access: Access) -> RetentionRule:
        return self._retention.rules().rule_of(access.principal.tenant)


def _attributes(conversation: conversation_pb2.Conversation, principal: Principal) -> list[str]:
    """Returns the attributes of a new conversation: the caller's, replaced by those that were sent, name by name."""
    own = {name: sorted(values) for name, values in principal.attributes.items()}
    sent = {name: list(values.values) for name, values in conversation.attributes.items()}
    return attribute_pairs(own | sent)
