"""A request of each method that makes sense, so that a fuzzed call gets further than the rules of requests."""

from collections import deque
from random import Random
from uuid import UUID

from conversations.v1.access_service_pb2 import CheckAccessRequest, ExplainAccessRequest, Permission
from conversations.v1.conversation_pb2 import Conversation
from conversations.v1.conversations_service_pb2 import (
    DeleteConversationRequest,
    ListConversationsRequest,
    WatchConversationsRequest,
    WatchItemsRequest,
)
from conversations.v1.erasure_service_pb2 import EraseSubjectRequest, Erasure, GetErasureRequest
from conversations.v1.transfer_service_pb2 import (
    ExportConversationsRequest,
    ImportConversationsRequest,
    Record,
)
from google.protobuf.message import Message
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthListRequest
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from tests.support.build import (
    ahead,
    append,
    batch_get,
    copy_of,
    create,
    delete,
    delete_item,
    delete_many,
    fork,
    get,
    get_item,
    list_items,
    rewind,
    undelete,
    update,
    user_message,
)

ITEM = "msg_1"  # in every conversation of `Examples`
_MOST_EXPENDABLE = 50


class Examples:
    """Requests of a caller that knows its conversations.

    Args:
        random: Which of them a request is about.
        ids: Conversations of the caller that begin with `ITEM`.

    Attributes:
        ids: Half of them, from which no example takes anything: others find their items until the end.
        expendable: The other half, and those made of late, which examples delete, rewind and take items from.
        deleted: Those that were deleted of late.
        erasures: The ids of those that were asked for of late.
    """

    def __init__(self, random: Random, ids: list[str]) -> None:
        self._random = random
        self.ids = ids[::2]
        self.expendable = deque(ids[1::2], maxlen=_MOST_EXPENDABLE)
        self.deleted = deque(("conv_nothing",), maxlen=_MOST_EXPENDABLE)
        self.erasures = deque((str(UUID(int=0, version=4)),), maxlen=_MOST_EXPENDABLE)

    def note(self, path: str, requests: list[bytes], answer: bytes) -> None:
        """Takes what later requests can be about from the last answer to a call."""
        match path.rpartition("/")[2]:
            case "CreateConversation":
                self.expendable.append(Conversation.FromString(answer).id)
            case "DeleteConversation":
                self.deleted.append(DeleteConversationRequest.FromString(requests[0]).conversation_id)
            case "EraseSubject" if (erasure := Erasure.FromString(answer)).state:
                self.erasures.append(erasure.id)

    def of(self, path: str) -> Message | None:
        """A request of the method at ``path``; None for a method that is not known."""
        id_, other = self._random.choice(self.ids), self._random.choice(self.ids)
        expendable = self._random.choice(self.expendable)
        permission = Permission(resource="conversation", action="read")
        symbol = "conversations.v1.ConversationsService"
        return {
            "CreateConversation": create(user_message("x", id=ITEM), metadata={"a": "b"}),
            "GetConversation": get(id_),
            "UpdateConversation": update(id_, "metadata", metadata={"a": "c"}),
            "DeleteConversation": delete(expendable),
            "UndeleteConversation": undelete(self._random.choice(self.deleted)),
            "ListConversations": ListConversationsRequest(page_size=20, filter='metadata.a = "b"'),
            "CreateItems": append(id_, user_message("y"), *self._random.choice(([], [copy_of(other, ITEM)]))),
            "AppendItems": ahead(id_, user_message("z")),
            "GetItem": get_item(id_, ITEM),
            "BatchGetItems": batch_get(id_, ITEM),
            "ListItems": list_items(id_, page_size=20, after=ITEM),
            "DeleteItem": delete_item(expendable, ITEM),
            "DeleteConversations": delete_many('metadata.a = "d"', validate_only=self._random.random() < 0.5),
            "ForkConversation": fork(id_, through_sequence=self._random.randrange(3), metadata={"a": "d"}),
            "RewindConversation": rewind(expendable, 1, expected_last_sequence=self._random.randrange(3)),
            "WatchItems": WatchItemsRequest(conversation_id=id_, newest=20),
            "WatchConversations": WatchConversationsRequest(include_items=True),
            "ExportConversations": ExportConversationsRequest(conversation_ids=[id_]),
            "ImportConversations": ImportConversationsRequest(record=Record(conversation=Conversation(id=id_))),
            "EraseSubject": EraseSubjectRequest(
                filter='metadata.a = "d"',
                request_id=str(UUID(int=self._random.getrandbits(128), version=4)),
                validate_only=self._random.random() < 0.5,
            ),
            "GetErasure": GetErasureRequest(erasure_id=self._random.choice(self.erasures)),
            "CheckAccess": CheckAccessRequest(conversation_id=id_, permissions=[permission]),
            "ExplainAccess": ExplainAccessRequest(permission=permission, conversation_id=id_),
            "Check": HealthCheckRequest(service="readiness"),
            "Watch": HealthCheckRequest(),
            "List": HealthListRequest(),
            "ServerReflectionInfo": ServerReflectionRequest(file_containing_symbol=symbol),
        }.get(path.rpartition("/")[2])
