"""The service and a model of lists and dictionaries answer alike, whatever is asked of them."""

import asyncio
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import grpc
import pytest
from conversations.v1.conversation_pb2 import Conversation
from conversations.v1.conversations_service_pb2 import (
    ORDER_ASCENDING,
    ORDER_DESCENDING,
    CreateConversationRequest,
    CreateItemsRequest,
    DeleteItemRequest,
    ForkConversationRequest,
    ListItemsResponse,
    RewindConversationRequest,
    UndeleteConversationRequest,
)
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from conversations.v1.item_pb2 import Item, NewItem
from google.protobuf.message import Message
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from server.settings.addresses import Address
from tests.support import build
from tests.support.http import edge_service
from tests.support.http_turns import HttpConversation, HttpItem, HttpItems, HttpTurns
from tests.support.model import CODES, Entry, Log, Model, New, Page, Refused
from tests.support.problems import problem, problem_of
from tests.support.service import Service

EXAMPLES, STEPS = 60, 50
UNKNOWN_ITEM = "msg_nobody"
SOON = 0.3  # seconds until a conversation ends
T = TypeVar("T")

ids = st.sampled_from([""] * 8 + [f"msg_{letter}" for letter in "abcdefgh"])
batches = st.lists(st.builds(New, st.text("ab ☃", max_size=5), ids), min_size=1, max_size=5)
maps = st.dictionaries(st.sampled_from(["a", "b", "a-b"]), st.sampled_from(["", "1", "2"]), max_size=3)
sizes = st.sampled_from([0, 1, 2, 3, 5, 100, 1000])
picks = st.integers(0, 60)  # counted round what there is
offsets = st.sampled_from([None, None, None, 0, 0, 1, -1])  # from the right etag or last_sequence


class Cursor(NamedTuple):
    """Where somebody stopped reading."""

    conversation_id: str
    token: str
    place: int
    descending: bool


class Machine(RuleBasedStateMachine):
    """Does everything twice, with the service and with the model."""

    conversations: Bundle[str] = Bundle("conversations")
    creations: Bundle[CreateConversationRequest] = Bundle("creations")
    appends: Bundle[CreateItemsRequest] = Bundle("appends")
    deletions: Bundle[DeleteItemRequest] = Bundle("deletions")
    rewinds: Bundle[RewindConversationRequest] = Bundle("rewinds")
    forks: Bundle[ForkConversationRequest] = Bundle("forks")
    undeletions: Bundle[UndeleteConversationRequest] = Bundle("undeletions")
    cursors: Bundle[Cursor] = Bundle("cursors")

    def __init__(self, stub: Any, http_address: Address | None = None) -> None:
        super().__init__()
        self.stub = stub
        self.http = HttpTurns(http_address) if http_address else None
        self.is_turn_of_http = False
        self.model = Model()
        self.touched: set[str] = set()

    def both(self, method: str, request: Message, model: Callable[[], T]) -> tuple[Any, T] | None:
        """Both answers; None when both refuse, for the same reason."""
        answer, reason, result, expected = None, "", None, ""
        try:
            answer = self.ask(method, request)
        except Refused as refusal:
            reason = refusal.reason
        except grpc.RpcError as error:
            told = problem_of(error)  # type: ignore[arg-type] # has the same methods
            reason = told.reason
            assert CODES.get(reason) == told.code, told
        try:
            result = model()
        except Refused as refused:
            expected = refused.reason
        assert expected == reason, (method, request)
        return None if expected else (answer, result)  # type: ignore[return-value] # a result when nothing is refused

    def ask(self, method: str, request: Any) -> Any:
        """The service's answer, over HTTP each second time, if there is a client of it and such a request."""
        self.is_turn_of_http = not self.is_turn_of_http
        if self.http and self.is_turn_of_http and not self.continues_after_deleted(method, request):
            answer = self.http.ask(method, request)
            if answer is not None:
                return answer
        return getattr(self.stub, method)(request, timeout=20)

    def continues_after_deleted(self, method: str, request: Any) -> bool:
        """Whether it is a list behind an item that was deleted: over HTTP there is none, as in the OpenAI API."""
        log = self.model.logs.get(request.conversation_id) if method == "ListItems" else None
        if log is None:
            return False
        living = {entry.item_id for entry in log.living()}
        return request.after not in living and request.after in {entry.item_id for entry in log.entries}

    @initialize(target=conversations, new=batches)
    def begin(self, new: list[New]) -> str | MultipleResults[str]:
        """There is a conversation."""
        return self.send_create(build.create(*map(new_item, new)))

    @initialize(target=conversations)
    def begin_with_none(self) -> str:
        """There is a name of no conversation."""
        return "conv_nobody"

    @rule(target=creations, metadata=maps, new=batches | st.just([]), retries=st.booleans())
    def create(self, metadata: dict[str, str], new: list[New], *, retries: bool) -> CreateConversationRequest:
        """A conversation with its first items."""
        request_id = str(uuid4()) if retries else ""
        return build.create(*map(new_item, new), metadata=metadata, request_id=request_id)

    @rule(target=conversations, request=creations)
    def send_create(self, request: CreateConversationRequest) -> str | MultipleResults[str]:
        """Sends a creation, perhaps again."""
        body, request_id = request.SerializeToString(deterministic=True), request.request_id
        new = [New(build.text_of(each.item), each.item.id) for each in request.items]
        metadata = dict(request.conversation.metadata)
        both = self.both("CreateConversation", request, lambda: self.model.create(metadata, new, request_id, body))
        if both is None:
            return multiple()
        answer, (log, is_new) = both
        if is_new:
            self.model.name(answer.id, log, request_id, body)
        self.same_conversation(answer, answer.id, log)
        return str(answer.id)

    @rule(request=creations, metadata=maps)
    def reuse_create(self, request: CreateConversationRequest, metadata: dict[str, str]) -> None:
        """Sends another creation under a request id that was used."""
        other = CreateConversationRequest()
        other.CopyFrom(request)
        other.conversation.metadata["other"] = str(metadata)
        if request.request_id and request.request_id in self.model._created:
            self.both("CreateConversation", other, partial(_refuse, "REQUEST_ID_REUSED"))

    @rule(target=appends, conversation_id=conversations, new=batches, offset=offsets, retries=st.booleans())
    def append(self, conversation_id: str, new: list[New], offset: int | None, *, retries: bool) -> CreateItemsRequest:
        """Appends, at times expecting a last sequence, at times the wrong one."""
        fields: dict[str, Any] = {"request_id": str(uuid4()) if retries else ""}
        log = self.model.logs.get(conversation_id)
        if log and offset is not None:
            fields["expected_last_sequence"] = max(0, log.last_sequence + offset)
        request = build.append(conversation_id, *map(new_item, new), **fields)
        self.send_append(request)
        return request

    @rule(request=appends)
    def send_append(self, request: CreateItemsRequest) -> None:
        """Sends an append, perhaps again."""
        body = request.SerializeToString(deterministic=True)
        new = [New(build.text_of(each.item), each.item.id) for each in request.items]
        expected = request.expected_last_sequence if request.HasField("expected_last_sequence") else None
        self.touched.add(request.conversation_id)
        both = self.both(
            "CreateItems",
            request,
            lambda: self.model.append(request.conversation_id, new, expected, request.request_id, body),
        )
        if both:
            answer, entries = both
            self.same_items(answer.items, entries)

    @rule(request=appends, text=st.text("ab", max_size=2))
    def reuse_append(self, request: CreateItemsRequest, text: str) -> None:
        """Sends another append under a request id that was used."""
        log = self.model.logs.get(request.conversation_id)
        if log and not (log.deleted or log.expired) and request.request_id in log.requests:
            other = CreateItemsRequest()
            other.CopyFrom(request)
            other.items.append(build.user_message(f"other {text}"))
            self.send_append(other)

    @rule(
        conversation_id=conversations,
        metadata=maps,
        key=st.sampled_from(["", "", "a", "b", "a-b"]),
        offset=offsets,
    )
    def update(self, conversation_id: str, metadata: dict[str, str], key: str, offset: int | None) -> None:
        """Changes all metadata or one pair."""
        path = f"metadata.`{key}`" if key else "metadata"
        revision = self.revision(conversation_id, offset)
        request = build.update(conversation_id, path, metadata=metadata, etag=etag(revision))
        both = self.both(
            "UpdateConversation", request, lambda: self.model.update(conversation_id, metadata, key, revision)
        )
        if both:
            self.same_conversation(both[0], conversation_id, both[1])

    @rule(conversation_id=conversations, offset=offsets, really=st.integers(0, 3))
    def delete(self, conversation_id: str, offset: int | None, really: int) -> None:
        """Deletes a conversation; not too often, for nothing but an undelete happens to it afterwards."""
        if really == 3:
            revision = self.revision(conversation_id, offset)
            request = build.delete(conversation_id, etag=etag(revision))
            self.both("DeleteConversation", request, lambda: self.model.delete(conversation_id, revision))

    @rule(target=deletions, conversation_id=conversations, pick=picks, retries=st.booleans())
    def delete_item(self, conversation_id: str, pick: int, *, retries: bool) -> DeleteItemRequest:
        """Deletes an item that is there, or not any more, or never was."""
        request_id = str(uuid4()) if retries else ""
        request = build.delete_item(conversation_id, self.item_id(conversation_id, pick), request_id=request_id)
        self.send_delete_item(request)
        return request

    @rule(request=deletions)
    def send_delete_item(self, request: DeleteItemRequest) -> None:
        """Sends a deletion, perhaps again."""
        body = request.SerializeToString(deterministic=True)
        self.touched.add(request.conversation_id)
        both = self.both(
            "DeleteItem",
            request,
            lambda: self.model.delete_item(request.conversation_id, request.item_id, request.request_id, body),
        )
        if both:
            self.same_conversation(both[0], request.conversation_id, both[1])

    @rule(target=rewinds, conversation_id=conversations, pick=picks, offset=offsets, retries=st.booleans())
    def rewind(
        self, conversation_id: str, pick: int, offset: int | None, *, retries: bool
    ) -> RewindConversationRequest:
        """Rewinds to a place that is there or not, at times expecting a last sequence, at times the wrong one."""
        log = self.model.logs.get(conversation_id)
        last = log.last_sequence if log else 0
        fields: dict[str, Any] = {"request_id": str(uuid4()) if retries else ""}
        if offset is not None:
            fields["expected_last_sequence"] = max(0, last + offset)
        request = build.rewind(conversation_id, max(0, last - pick % 8) if pick % 2 else pick % (last + 2), **fields)
        self.send_rewind(request)
        return request

    @rule(request=rewinds)
    def send_rewind(self, request: RewindConversationRequest) -> None:
        """Sends a rewind, perhaps again."""
        body = request.SerializeToString(deterministic=True)
        expected = request.expected_last_sequence if request.HasField("expected_last_sequence") else None
        name = request.conversation_id
        self.touched.add(name)
        both = self.both(
            "RewindConversation",
            request,
            lambda: self.model.rewind(name, request.sequence, expected, request.request_id, body),
        )
        if both:
            self.same_conversation(both[0], name, both[1])

    @rule(
        target=forks,
        conversation_id=conversations,
        pick=picks,
        by_item=st.booleans(),
        metadata=maps,
        retries=st.booleans(),
    )
    def fork(
        self, conversation_id: str, pick: int, *, by_item: bool, metadata: dict[str, str], retries: bool
    ) -> ForkConversationRequest:
        """A fork up to an item, which may be deleted or never was, or up to a place, which may be behind the last."""
        log = self.model.logs.get(conversation_id)
        last = {"through_sequence": pick % ((log.last_sequence if log else 0) + 2)}
        through: dict[str, Any] = {"through_item_id": self.item_id(conversation_id, pick)} if by_item else last
        request = build.fork(conversation_id, str(uuid4()) if retries else "", metadata=metadata, **through)
        self.send_fork(request)
        return request

    @rule(target=conversations, request=forks)
    def send_fork(self, request: ForkConversationRequest) -> str | MultipleResults[str]:
        """Sends a fork, perhaps again."""
        body, request_id = request.SerializeToString(deterministic=True), request.request_id
        through = request.through_item_id or request.through_sequence
        metadata = dict(request.conversation.metadata)
        source = request.conversation_id
        both = self.both(
            "ForkConversation", request, lambda: self.model.fork(source, through, metadata, request_id, body)
        )
        if both is None:
            return multiple()
        answer, (log, is_new) = both
        if is_new:
            self.model.name(answer.id, log, request_id, body)
        assert source == answer.forked_from.conversation_id
        self.same_conversation(answer, answer.id, log)
        return str(answer.id)

    @rule(target=undeletions, conversation_id=conversations, retries=st.booleans())
    def undelete(self, conversation_id: str, *, retries: bool) -> UndeleteConversationRequest:
        """Takes the delete of a conversation back, which is deleted, or not, or never was."""
        request = build.undelete(conversation_id, request_id=str(uuid4()) if retries else "")
        self.send_undelete(request)
        return request

    @rule(request=undeletions)
    def send_undelete(self, request: UndeleteConversationRequest) -> None:
        """Sends an undelete, perhaps again."""
        body, name = request.SerializeToString(deterministic=True), request.conversation_id
        both = self.both("UndeleteConversation", request, lambda: self.model.undelete(name, request.request_id, body))
        if both:
            self.same_conversation(both[0], name, both[1])

    @rule(fork=forks, validate_only=st.booleans())
    def delete_forks(self, fork: ForkConversationRequest, *, validate_only: bool) -> None:
        """Deletes all forks of a conversation, whether that is there or not, or counts them."""
        conversation_id = fork.conversation_id
        request = build.delete_many(f'forked_from = "{conversation_id}"', validate_only=validate_only)
        both = self.both(
            "DeleteConversations",
            request,
            lambda: self.model.delete_forks(conversation_id, validate_only=validate_only),
        )
        assert both
        assert (both[1], False) == (both[0].deleted_count, both[0].has_more)

    @rule(conversation_id=conversations, hours=st.sampled_from([None, 1, 1000]))
    def end_later(self, conversation_id: str, hours: int | None) -> None:
        """Says that a conversation ends later, or never."""
        self.send_end(conversation_id, datetime.now(UTC) + timedelta(hours=hours) if hours else None)

    @rule(conversation_id=conversations, really=st.integers(0, 9))
    def end_soon(self, conversation_id: str, really: int) -> None:
        """A conversation ends; not too often, for nothing happens to it afterwards."""
        log = self.model.logs.get(conversation_id)
        if really == 9 and log and not log.deleted and not log.expired:
            self.send_end(conversation_id, datetime.now(UTC) + timedelta(seconds=SOON))
            time.sleep(SOON + 0.05)
            log.expired = True

    def send_end(self, conversation_id: str, when: datetime | None) -> None:
        """Says when a conversation ends."""
        fields: dict[str, Any] = {"expire_time": when} if when else {}
        request = build.update(conversation_id, "expire_time", **fields)
        both = self.both("UpdateConversation", request, lambda: self.model.end_at(conversation_id, when))
        if both:
            self.same_conversation(both[0], conversation_id, both[1])

    @rule(conversation_id=conversations, some=st.lists(picks, min_size=1, max_size=6))
    def batch_get(self, conversation_id: str, some: list[int]) -> None:
        """Gets items that are there, or not any more, or never were, at times one of them twice."""
        wanted = [self.item_id(conversation_id, pick) for pick in some]
        request = build.batch_get(conversation_id, *wanted)
        both = self.both(
            "BatchGetItems", request, lambda: [self.model.log(conversation_id).find(item_id) for item_id in wanted]
        )
        if both:
            self.same_items(both[0].items, both[1])
        request_of_one = build.get_item(conversation_id, wanted[0])
        both_of_one = self.both("GetItem", request_of_one, lambda: self.model.log(conversation_id).find(wanted[0]))
        if both_of_one:
            self.same_items([both_of_one[0]], [both_of_one[1]])

    @rule(target=cursors, cursor=cursors, size=sizes)
    def next_page(self, cursor: Cursor, size: int) -> Cursor | MultipleResults[Cursor]:
        """Reads on from a token, whatever has happened since."""
        name, token, place, descending = cursor
        return self.read(name, place, token, size, descending=descending)

    @rule(
        target=cursors,
        conversation_id=conversations,
        pick=st.none() | picks,
        size=sizes,
        descending=st.booleans(),
    )
    def page(
        self, conversation_id: str, pick: int | None, size: int, *, descending: bool
    ) -> Cursor | MultipleResults[Cursor]:
        """Begins to read at the start, or behind an item, deleted ones too."""
        after = None if pick is None else self.item_id(conversation_id, pick)
        return self.read(conversation_id, after, "", size, descending=descending)

    @rule(conversation_id=conversations, each=st.lists(sizes.filter(bool), min_size=1), descending=st.booleans())
    def walk(self, conversation_id: str, each: list[int], *, descending: bool) -> None:
        """Reads all there is, by `after`, in pages of several sizes."""
        read, after, turn = 0, None, 0
        while True:
            page = self.same_page(conversation_id, after, "", each[turn % len(each)], descending=descending)
            if page is None:
                return
            read, turn = read + len(page.items), turn + 1
            if not page.has_more:
                break
            after = page.last_id
        assert len(self.model.log(conversation_id).living()) == read

    @invariant()
    def touched_are_the_same(self) -> None:
        """What was written last reads the same in both orders, without a gap in the numbers."""
        for name in self.touched & set(self.model.logs):
            both = self.both("GetConversation", build.get(name), partial(self.model.log, name))
            if both:
                self.same_conversation(both[0], name, both[1])
            for descending in (False, True):
                self.same_page(name, None, "", 100, descending=descending)
        self.touched.clear()

    def teardown(self) -> None:
        """Looks at every conversation once more."""
        self.touched.update(self.model.logs)
        self.touched_are_the_same()
        if self.http:
            self.http.close()

    def read(
        self, conversation_id: str, start: int | str | None, token: str, size: int, *, descending: bool
    ) -> Cursor | MultipleResults[Cursor]:
        """Reads a page; where it ends, when there is more."""
        page = self.same_page(conversation_id, start, token, size, descending=descending)
        if page is None or isinstance(page, HttpItems) or not page.has_more:
            return multiple()  # over HTTP there are no tokens
        return Cursor(conversation_id, page.next_page_token, page.items[-1].sequence, descending)

    def same_page(
        self, conversation_id: str, start: int | str | None, token: str, size: int, *, descending: bool
    ) -> ListItemsResponse | HttpItems | None:
        """A page that is the same in both."""
        fields: dict[str, Any] = {"page_size": size, "order": ORDER_DESCENDING if descending else ORDER_ASCENDING}
        if token:
            fields["page_token"] = token
        elif isinstance(start, str):
            fields["after"] = start
        request = build.list_items(conversation_id, **fields)
        both = self.both(
            "ListItems", request, lambda: self.model.page(conversation_id, start, size, descending=descending)
        )
        if both is None:
            return None
        answer: ListItemsResponse | HttpItems = both[0]
        expected: Page = both[1]
        self.same_items(answer.items, expected.entries)
        assert expected.has_more == answer.has_more
        if isinstance(answer, ListItemsResponse):
            assert expected.has_more == bool(answer.next_page_token)
        ends = (expected.entries[0].item_id, expected.entries[-1].item_id) if expected.entries else ("", "")
        assert ends == (answer.first_id, answer.last_id)
        return answer

    def same_items(self, items: Iterable[Item | HttpItem], entries: list[Entry]) -> None:
        """The items are those of the entries; an id made by the server is learnt once."""
        for entry, item in zip(entries, items, strict=True):
            entry.item_id = entry.item_id or item.id
            assert entry.item_id == item.id
            if isinstance(item, HttpItem):
                assert json_of(entry) == item.json
                continue
            assert (entry.sequence, entry.text) == (item.sequence, build.text_of(item))
            entry.item = entry.item or item
            assert entry.item == item

    def same_conversation(self, answer: Conversation | HttpConversation, conversation_id: str, log: Log) -> None:
        """The conversation is that of the model."""
        self.touched.add(conversation_id)
        told = (answer.id, dict(answer.metadata), answer.etag)
        assert (conversation_id, log.metadata, etag(log.revision)) == told
        if isinstance(answer, Conversation):
            assert log.last_sequence == answer.last_sequence
            ends = answer.expire_time.ToDatetime(UTC) if answer.HasField("expire_time") else None
            assert log.ends == ends

    def item_id(self, conversation_id: str, pick: int) -> str:
        """Some id of the conversation, of a deleted item too, or one that it never had."""
        log = self.model.logs.get(conversation_id)
        known = [entry.item_id for entry in log.entries if entry.item_id] if log else []
        found = [*known, UNKNOWN_ITEM]
        return found[pick % len(found)]

    def revision(self, conversation_id: str, offset: int | None) -> int | None:
        """The revision to expect: none, the right one or a wrong one."""
        log = self.model.logs.get(conversation_id)
        return None if offset is None or log is None else log.revision + offset


def _refuse(reason: str) -> None:
    raise Refused(reason)


def new_item(new: New) -> NewItem:
    """A message to append."""
    return build.user_message(new.text, id=new.item_id)


def json_of(entry: Entry) -> dict[str, Any]:
    """A message as HTTP shows it."""
    content = [{"type": "input_text", "text": entry.text}]
    return {"type": "message", "id": entry.item_id, "status": "completed", "role": "user", "content": content}


def etag(revision: int | None) -> str:
    """The etag of a revision."""
    return "" if revision is None else f'"{revision}"'


async def run_machine(grpc_address: str, http_address: Address | None = None) -> None:
    """Runs the machine against a service."""
    modest = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    with grpc.insecure_channel(grpc_address) as channel:
        machine: Any = partial(Machine, ConversationsServiceStub(channel), http_address)
        # The service runs on this loop: the machine, which blocks, has a thread.
        await asyncio.to_thread(run_state_machine_as_test, machine, settings=modest)


async def test_service_is_its_model(service: Service) -> None:
    """Sequences, orders, pages, `has_more` and refusals are those of the model after every step."""
    await run_machine(service.address)


@pytest.mark.slow
async def test_both_protocols_are_one_model(service: Service) -> None:
    """The same with each second request over HTTP: what one protocol writes or repeats, the other reads and knows."""
    async with edge_service(service.url) as served:
        await run_machine(served.served.address, served.address)


async def test_a_reused_request_id_does_not_tell_of_a_deleted_conversation(stub: Any) -> None:
    """Whatever is sent to a deleted conversation, the answer is that there is none."""
    made, request_id = await stub.CreateConversation(build.create()), str(uuid4())
    await stub.CreateItems(build.append(made.id, build.user_message("a"), request_id=request_id))
    await stub.DeleteConversation(build.delete(made.id))
    again = stub.CreateItems(build.append(made.id, build.user_message("b"), request_id=request_id))
    assert "CONVERSATION_NOT_FOUND" == (await problem(again)).reason
