"""Steps about the life of conversations: how they end, come back, branch off and move."""

from collections.abc import AsyncIterator, Collection
from contextlib import aclosing
from functools import partial

from conversations.v1.conversation_pb2 import Conversation, Fork
from conversations.v1.conversations_service_pb2 import (
    CreateConversationRequest,
    DeleteConversationRequest,
    DeleteConversationsRequest,
    ForkConversationRequest,
    ListConversationsRequest,
    RewindConversationRequest,
    UndeleteConversationRequest,
    UpdateConversationRequest,
)
from conversations.v1.erasure_service_pb2 import EraseSubjectRequest, Erasure, GetErasureRequest
from conversations.v1.transfer_service_pb2 import ExportConversationsRequest, Record
from conversations_client import Client, details_of, export_conversations, import_conversations
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import StatusCode

from tests.interop.python.scenario import Scenario, fails, request_id

HOUR, HALF_HOUR, TOO_SHORT = Duration(seconds=3600), Duration(seconds=1800), Duration(seconds=59)
NOBODY = "conv_nobody"


class LifecycleSteps:
    """The steps. Each has conversations of its own."""

    def __init__(self, scenario: Scenario, client: Client) -> None:
        self._scenario = scenario
        self._client = client
        self._stub = client.conversations

    async def retention(self) -> None:
        """A conversation ends when it was told to, until that is taken back."""
        made = await self._create(Conversation(ttl=HOUR, idle_ttl=HALF_HOUR))
        lives = (made.expire_time.ToDatetime() - made.create_time.ToDatetime()).total_seconds()
        assert abs(lives - HOUR.seconds) < 60, lives
        assert made.idle_ttl == HALF_HOUR
        mask = FieldMask(paths=["expire_time", "idle_ttl"])
        request = UpdateConversationRequest(conversation=Conversation(id=made.id), update_mask=mask)
        kept = await self._stub.UpdateConversation(request)
        assert not kept.HasField("expire_time")
        assert not kept.HasField("idle_ttl")
        too_short = self._create(Conversation(ttl=TOO_SHORT))
        error = await fails(too_short, StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
        assert ["conversation.ttl"] == [each.field for each in details_of(error).violations]

    async def _create(self, conversation: Conversation) -> Conversation:
        return await self._stub.CreateConversation(CreateConversationRequest(conversation=conversation))

    async def rewind(self) -> None:
        """What is behind a place goes, unless somebody has appended meanwhile."""
        made = await self._scenario.branch("one", "two", "three")
        before = await made.all_items()
        request = RewindConversationRequest(
            conversation_id=made.conversation.id, sequence=1, expected_last_sequence=3, request_id=request_id()
        )
        assert (await self._stub.RewindConversation(request)).last_sequence == 3  # places are never used again
        assert before[:1] == await made.all_items()
        unseen = RewindConversationRequest(conversation_id=made.conversation.id, sequence=0, expected_last_sequence=2)
        await fails(self._stub.RewindConversation(unseen), StatusCode.ABORTED, "SEQUENCE_MISMATCH")

    async def fork(self) -> None:
        """A fork has the items up to a place, and is found by its source."""
        made = await self._scenario.branch("one", "two")
        fork = await self._fork(made, ForkConversationRequest(through_sequence=1))
        assert fork.conversation.forked_from == Fork(conversation_id=made.conversation.id, sequence=1)
        assert (await made.all_items())[:1] == await fork.all_items()
        forks = await self._stub.ListConversations(ListConversationsRequest(filter=forks_of(made)))
        assert [fork.conversation.id] == [each.id for each in forks.conversations]
        nothing = self._fork(made, ForkConversationRequest(through_item_id="msg_nobody"))
        await fails(nothing, StatusCode.NOT_FOUND, "ITEM_NOT_FOUND")

    async def _fork(self, source: Scenario, through: ForkConversationRequest | None = None) -> Scenario:
        request = ForkConversationRequest(conversation_id=source.conversation.id, request_id=request_id())
        request.MergeFrom(through or ForkConversationRequest())
        return self._scenario.of(await self._stub.ForkConversation(request))

    async def undelete(self) -> None:
        """What was deleted comes back as it was."""
        made = await self._scenario.branch("one")
        before = await made.all_items()
        undelete = UndeleteConversationRequest(conversation_id=made.conversation.id)
        alive = self._stub.UndeleteConversation(undelete)
        await fails(alive, StatusCode.ALREADY_EXISTS, "CONVERSATION_EXISTS")
        await self._stub.DeleteConversation(DeleteConversationRequest(conversation_id=made.conversation.id))
        await fails(made.read(), StatusCode.NOT_FOUND, "CONVERSATION_NOT_FOUND")
        assert made.conversation == await self._stub.UndeleteConversation(undelete)
        assert before == await made.all_items()
        nobody = self._stub.UndeleteConversation(UndeleteConversationRequest(conversation_id=NOBODY))
        await fails(nobody, StatusCode.NOT_FOUND, "CONVERSATION_NOT_FOUND")

    async def delete_many(self) -> None:
        """What matches a filter is counted, then deleted."""
        made = await self._scenario.branch("one")
        for _ in range(2):
            await self._fork(made)
        for validate_only, count in ((True, 2), (False, 2), (False, 0)):
            request = DeleteConversationsRequest(filter=forks_of(made), validate_only=validate_only)
            answer = await self._stub.DeleteConversations(request)
            assert (count, False) == (answer.deleted_count, answer.has_more)
        all_ = self._stub.DeleteConversations(DeleteConversationsRequest(filter="topic"))
        await fails(all_, StatusCode.INVALID_ARGUMENT, "FILTER_INVALID")

    async def transfer(self) -> None:
        """An export goes on behind its first record; what was erased is imported as it was."""
        made = await self._scenario.branch("one", "two")
        fork = await self._fork(made)
        items = await fork.all_items()
        records = await self._export(fork.conversation.id)
        assert ["conversation", "items", "end"] == [each.WhichOneof("record") for each in records]
        await self._erase(made)
        await fails(fork.read(), StatusCode.NOT_FOUND, "CONVERSATION_NOT_FOUND")
        for created in (True, False):
            assert [created] == await self._import(records)
        assert items == await fork.all_items()
        missing = export_conversations(
            self._client.transfers.ExportConversations, ExportConversationsRequest(conversation_ids=[NOBODY])
        )
        await fails(anext(missing), StatusCode.NOT_FOUND, "CONVERSATION_NOT_FOUND")

    async def _export(self, conversation_id: str) -> list[Record]:
        request = ExportConversationsRequest(conversation_ids=[conversation_id])
        export = partial(export_conversations, self._client.transfers.ExportConversations, request)
        async with aclosing(export()) as stream:
            first = await anext(stream)
        return [first, *[record async for record in export(resume_token=first.resume_token)]]

    async def _erase(self, source: Scenario) -> None:
        """Erases the fork of a conversation."""
        request = EraseSubjectRequest(filter=forks_of(source), request_id=request_id())
        told = [each async for each in self._client.erasures.EraseSubject(request)]
        receipt = await self._client.erasures.GetErasure(GetErasureRequest(erasure_id=request.request_id))
        assert told[-1] == receipt
        assert (Erasure.STATE_DONE, 1, 2) == (receipt.state, receipt.conversation_count, receipt.item_count)
        nobody = self._client.erasures.GetErasure(GetErasureRequest(erasure_id=request_id()))
        await fails(nobody, StatusCode.NOT_FOUND, "ERASURE_NOT_FOUND")

    async def _import(self, records: list[Record]) -> list[bool]:
        """Whether each conversation was created."""

        async def unanswered(answered: Collection[str]) -> AsyncIterator[Record]:
            assert not answered  # nothing breaks the stream
            for record in records:
                yield record

        answers = import_conversations(self._client.transfers.ImportConversations, unanswered)
        return [answer.imported.created async for answer in answers]


def forks_of(source: Scenario) -> str:
    """The filter that finds them."""
    return f'forked_from = "{source.conversation.id}"'
