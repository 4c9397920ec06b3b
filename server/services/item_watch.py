"""WatchItems: a stream of what happens in one conversation."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from conversations.v1 import conversations_service_pb2 as pb
from google.protobuf.empty_pb2 import Empty

from server.services.messages import conversation_of, item_of, timestamp
from server.services.watch_stream import Watches, WatchStream
from server.store.change_hub import Subscription
from server.store.item_changes import Changes
from server.store.items import StoredItem
from server.store.watch_position import Position

MAX_NEWEST = 100
_METHOD = "WatchItems"  # what a resume token is bound to


class ItemWatch(WatchStream[Changes, pb.WatchItemsResponse, Subscription]):
    """One call of WatchItems; ``request`` is valid."""

    resource = "item"
    _position: Position

    def __init__(self, request: pb.WatchItemsRequest, shared: Watches) -> None:
        super().__init__(shared, shared.hub)
        self._request = request
        self.conversation_id = request.conversation_id

    def subscribe(self) -> AbstractContextManager[Subscription]:
        """As of `WatchStream`."""
        return self.shared.hub.subscribe(self.conversation_id)

    async def start(self) -> None:
        """As of `WatchStream`."""
        request = self._request
        if request.HasField("resume_token"):
            packed = self.verify(request.resume_token, _METHOD, self.conversation_id)
            self._position = Position.unpack(packed)
            return
        after = request.after_sequence if request.HasField("after_sequence") else None
        newest = min(request.newest, MAX_NEWEST)
        self._position = await self.shared.changes.start(
            self.access, self.conversation_id, newest=newest, after_sequence=after
        )

    async def read(self, subscription: Subscription) -> Changes:
        """As of `WatchStream`."""
        changes = await self.shared.changes.read(self.access, self.conversation_id, self._position)
        subscription.note_version(changes.version)
        self._position = changes.position
        return changes

    def response(self, found: Changes) -> pb.WatchItemsResponse:
        """As of `WatchStream`."""
        response = pb.WatchItemsResponse(
            changes=_messages(found), resume_token=self.sign(found.position.pack(), _METHOD, self.conversation_id)
        )
        if found.watermark is not None:
            response.watermark.CopyFrom(timestamp(found.watermark))
        self.count(response.changes)
        return response


def _messages(changes: Changes) -> Iterator[pb.ItemChange]:
    if changes.is_last:
        yield pb.ItemChange(conversation_deleted=Empty())
        return
    if changes.conversation is not None:
        yield pb.ItemChange(conversation=conversation_of(changes.conversation))
    yield from item_changes(changes.items)


def item_changes(rows: Sequence[Any]) -> Iterator[pb.ItemChange]:
    """Yields what happened to items, of rows as `Changes.items` has them."""
    for row in rows:
        if row["body"] is not None:
            yield pb.ItemChange(item=item_of(StoredItem(row["sequence"], row["body"])))
            continue
        place = pb.ItemPlace(item_id=row["item_id"], sequence=row["sequence"])
        yield pb.ItemChange(deleted_item=place) if row["deleted"] else pb.ItemChange(large_item=place)
