"""WatchConversations: a stream of what happens to all conversations that a caller may read."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from hashlib import blake2b

from conversations.v1 import conversations_service_pb2 as pb

from server.authorization.access import Access
from server.errors import ResumeTokenExpired
from server.services.item_watch import item_changes
from server.services.messages import conversation_of, timestamp
from server.services.watch_stream import Watches, WatchStream
from server.store.change_log_poller import LogSubscription
from server.store.conversation_changes import LoggedChange, LoggedChanges
from server.store.log_position import DIGEST_BYTES, LogPosition

_METHOD = "WatchConversations"  # what a resume token is bound to


class ConversationWatch(WatchStream[LoggedChanges, pb.WatchConversationsResponse, LogSubscription]):
    """One call of WatchConversations; ``request`` is valid."""

    resource = "conversation"
    _position: LogPosition
    _plan: bytes

    def __init__(self, request: pb.WatchConversationsRequest, shared: Watches) -> None:
        super().__init__(shared, shared.poller)
        self._token = request.resume_token
        self._include_items = request.include_items
        self._planned = self.access

    def subscribe(self) -> AbstractContextManager[LogSubscription]:
        """As of `WatchStream`."""
        return self.shared.poller.subscribe(self.access)

    async def start(self) -> None:
        """As of `WatchStream`."""
        self._plan = self._digest(self.access)
        if not self._token:
            self._position = await self.shared.logged.start()
            return
        self._position, plan = LogPosition.unpack(self.verify(self._token, _METHOD, str(self._include_items)))
        if plan != self._plan:
            raise ResumeTokenExpired

    async def read(self, subscription: LogSubscription) -> LoggedChanges:
        """As of `WatchStream`.

        Raises:
            ResumeTokenExpired: The caller may read others than at the start, of which the log does not tell.
        """
        self._check_plan()
        subscription.access = self.access
        if subscription.passed is not None:
            self._position = replace(self._position, scanned=max(self._position.scanned, subscription.passed))
        found = await self.shared.logged.read(self.access, self._position, include_items=self._include_items)
        self._position = found.position
        subscription.note_read(found.position.start)
        return found

    def response(self, found: LoggedChanges) -> pb.WatchConversationsResponse:
        """As of `WatchStream`."""
        token = self.sign(found.position.pack(self._plan), _METHOD, str(self._include_items))
        response = pb.WatchConversationsResponse(changes=_messages(found.changes), resume_token=token)
        if found.watermark is not None:
            response.watermark.CopyFrom(timestamp(found.watermark))
        for change in response.changes:
            self.shared.stats.changes["conversation_removed" if change.removed_id else "conversation"] += 1
            self.count(change.items)
        return response

    def _check_plan(self) -> None:
        if self.access is self._planned:
            return
        if self._digest(self.access) != self._plan:
            raise ResumeTokenExpired
        self._planned = self.access

    def _digest(self, access: Access) -> bytes:
        """A digest of what decides which conversations and items the caller may read.

        Raises:
            ActionDenied: It may read none.
        """
        permissions = [access.demand("conversation", "read")]
        if self._include_items:
            permissions.append(access.demand("item", "read"))
        plan = repr([(permission.shape, sorted(permission.values.items())) for permission in permissions])
        return blake2b(plan.encode(), digest_size=DIGEST_BYTES).digest()


def _messages(changes: Sequence[LoggedChange]) -> Sequence[pb.ConversationChange]:
    """One message of each conversation, in the order in which they first changed."""
    found: dict[str, pb.ConversationChange] = {}
    for change in changes:
        message = found.setdefault(change.key.conversation_id, pb.ConversationChange())
        if change.conversation is None:
            message.removed_id = change.key.conversation_id
        elif not message.WhichOneof("change"):
            message.conversation.CopyFrom(conversation_of(change.conversation))
        message.items.extend(item_changes(change.items))
    return list(found.values())
