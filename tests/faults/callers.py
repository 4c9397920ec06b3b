"""The kinds of callers: each does one thing again and again, whatever is broken meanwhile."""

import asyncio
import uuid
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import grpc.aio
from conversations.v1.conversation_pb2 import Conversation
from conversations.v1.conversations_service_pb2 import (
    AppendItemsRequest,
    CreateConversationRequest,
    DeleteItemRequest,
    GetConversationRequest,
    ListItemsRequest,
    UpdateConversationRequest,
)
from google.protobuf.field_mask_pb2 import FieldMask

from tests.faults.found import LIFE
from tests.faults.history import (
    ABANDONED,
    Append,
    Attempt,
    Creation,
    Deletion,
    End,
    Increment,
    Life,
    Outcome,
    Placement,
    Read,
    Rewinding,
    code_of,
    reason_of,
)
from tests.faults.workload import DEADLINE, Caller, RepeatingCaller, Tenant
from tests.support.build import (
    append,
    batch_get,
    copy_of,
    create,
    delete,
    delete_item,
    fork,
    get,
    get_item,
    list_items,
    rewind,
    text_of,
    undelete,
    update,
    user_message,
)

_STREAM_DEADLINE = 60.0
_SOON = DEADLINE + 0.5  # seconds after which a conversation ends: no call that says so is answered later
_CLOCKS = 0.1  # seconds between our clock and that of the database, at most
_FORKED_PLACES = 60  # at most
_AHEAD = 4  # messages that a stream sends before their answers
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


class Appender(RepeatingCaller):
    """Appends under request ids until it is told that it has, and sometimes asks once more."""

    async def _step(self) -> None:
        append = self.append_to(self.tenant.shared, request_id=True)
        await self.insist(append.attempts, lambda: self.send(append))
        if self.random.random() < 0.1:
            append.attempts.append(await self.send(append))


class Twin(RepeatingCaller):
    """Sends the same append four times at once, to all servers there are."""

    async def _step(self) -> None:
        append = self.append_to(self.tenant.shared, request_id=True)
        append.attempts += await asyncio.gather(*(self.send(append) for _ in range(4)))
        if append.acknowledged == float("inf"):
            await self.insist(append.attempts, lambda: self.send(append))


class BareAppender(RepeatingCaller):
    """Appends without request ids, each time something new."""

    async def _step(self) -> None:
        append = self.append_to(self.tenant.shared, request_id=False)
        append.attempts.append(await self.send(append))


class Racer(RepeatingCaller):
    """Appends behind the last sequence that it has read, as others do too."""

    async def _step(self) -> None:
        _, made = await self.ask("GetConversation", GetConversationRequest(conversation_id=self.tenant.raced))
        if made is not None:
            append = self.append_to(self.tenant.raced, request_id=False, expected=made.last_sequence)
            append.attempts.append(await self.send(append))


class Streamer(Caller):
    """Sends ahead on a stream, and what had no answer again on the next one."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._unanswered: deque[Append] = deque()

    async def run(self) -> None:
        """Opens one stream after the other until everything has been answered."""
        while self._unanswered or not self.workload.ending.is_set():
            await self._stream()
            await asyncio.sleep(self.random.uniform(0.02, 0.1))

    async def _stream(self) -> None:
        call = self.stub.AppendItems(metadata=self.tenant.metadata, timeout=_STREAM_DEADLINE)
        sent: deque[tuple[Append, Attempt]] = deque()
        code, reason = ABANDONED, ""
        try:
            for append in tuple(self._unanswered):
                await self._write(call, append, sent)
            while sent or not self.workload.ending.is_set():
                while len(sent) < _AHEAD and not self.workload.ending.is_set():
                    append = self.append_to(self.tenant.streamed, request_id=True)
                    self._unanswered.append(append)
                    await self._write(call, append, sent)
                await self._answer(call, sent)
                await self.rest()
            await call.done_writing()
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            if isinstance(error, grpc.aio.AioRpcError):
                code, reason = code_of(error), reason_of(error)
        except asyncio.InvalidStateError:  # written to after its end
            code = "UNAVAILABLE"
        finally:
            call.cancel()
            for _, attempt in sent:
                self.history.end(attempt, code, reason)

    async def _write(self, call: Any, append: Append, sent: deque[tuple[Append, Attempt]]) -> None:
        attempt = self.history.begin("AppendItems", DEADLINE)
        append.attempts.append(attempt)
        sent.append((append, attempt))
        request = AppendItemsRequest(
            conversation_id=append.conversation_id,
            items=map(user_message, append.markers),
            request_id=append.request_id,
        )
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + DEADLINE):
            await call.write(request)

    async def _answer(self, call: Any, sent: deque[tuple[Append, Attempt]]) -> None:
        append, attempt = sent[0]
        async with asyncio.timeout(max(0.0, attempt.began + DEADLINE - asyncio.get_running_loop().time())):
            answer = await call.read()
        if answer is grpc.aio.EOF:
            raise grpc.aio.AioRpcError(await call.code(), await call.initial_metadata(), await call.trailing_metadata())
        sent.popleft()
        if answer.HasField("error"):
            self.history.end(attempt, _CODES[answer.error.code])
            await asyncio.sleep(self.random.uniform(0.02, 0.1))
            raise TimeoutError  # the next stream sends it again, and in order
        self.history.end(attempt, "OK")
        self.history.look_for_leaks(self.tenant.name, "AppendItems", answer.SerializeToString())
        placed = answer.appended
        where = Placement(placed.first_sequence, tuple(placed.item_ids), answer.SerializeToString())
        append.placements.append(where)
        self._unanswered.remove(append)


class Creator(RepeatingCaller):
    """Creates conversations under request ids until it is told that it has."""

    async def _step(self) -> None:
        request_id = str(uuid.UUID(int=self.random.getrandbits(128), version=4))
        creation = Creation(self.tenant.name, self.marker(), request_id)
        self.history.creations.append(creation)
        request = CreateConversationRequest(
            conversation=Conversation(metadata={"marker": creation.marker}), request_id=request_id
        )

        async def once() -> Attempt:
            attempt, answer = await self.ask("CreateConversation", request)
            if answer is not None:
                creation.ids.append(answer.id)
            return attempt

        await self.insist(creation.attempts, once)
        await asyncio.sleep(5 * self.workload.pause)


class Counter(RepeatingCaller):
    """Raises a number under the etag with which it read it."""

    async def _step(self) -> None:
        _, made = await self.ask("GetConversation", GetConversationRequest(conversation_id=self.tenant.counted))
        if made is None:
            return
        increment = Increment(self.tenant.name, made.id, int(made.metadata["number"]) + 1)
        self.history.increments.append(increment)
        changed = Conversation(id=made.id, etag=made.etag, metadata={"number": str(increment.to)})
        request = UpdateConversationRequest(conversation=changed, update_mask=FieldMask(paths=["metadata"]))
        attempt, _ = await self.ask("UpdateConversation", request)
        increment.attempts.append(attempt)


class Deleter(RepeatingCaller):
    """Appends, and deletes half of it."""

    async def _step(self) -> None:
        append = self.append_to(self.tenant.thinned, request_id=True)
        await self.insist(append.attempts, lambda: self.send(append))
        if self.random.random() < 0.5:
            item_id = append.placements[0].item_ids[0]
            deletion = Deletion(self.tenant.name, append.conversation_id, item_id)
            self.history.deletions.append(deletion)
            request_id = str(uuid.UUID(int=self.random.getrandbits(128), version=4))
            request = DeleteItemRequest(conversation_id=append.conversation_id, item_id=item_id, request_id=request_id)

            async def once() -> Attempt:
                return (await self.ask("DeleteItem", request))[0]

            await self.insist(deletion.attempts, once)


class Rewinder(RepeatingCaller):
    """Appends, and rewinds a few places now and then, while somebody else appends."""

    async def _step(self) -> None:
        append = self.append_to(self.tenant.rewound, request_id=True)
        await self.insist(append.attempts, lambda: self.send(append))
        last = append.placements[0].first_sequence or 0
        if self.random.random() < 0.4:
            bare = self.append_to(self.tenant.rewound, request_id=False)
            place = max(0, last - self.random.randint(0, 4))
            _, attempt = await asyncio.gather(self._rewind(place), self.send(bare))
            bare.attempts.append(attempt)

    async def _rewind(self, sequence: int) -> None:
        rewinding = Rewinding(self.tenant.name, self.tenant.rewound, sequence)
        self.history.rewindings.append(rewinding)
        request_id = str(uuid.UUID(int=self.random.getrandbits(128), version=4))
        request = rewind(rewinding.conversation_id, sequence, request_id=request_id)

        async def once() -> Attempt:
            return (await self.ask("RewindConversation", request))[0]

        await self.insist(rewinding.attempts, once)


class Forker(RepeatingCaller):
    """Forks a conversation that others append to, under request ids until it is told that it has."""

    async def _step(self) -> None:
        request_id = str(uuid.UUID(int=self.random.getrandbits(128), version=4))
        creation = Creation(self.tenant.name, self.marker(), request_id)
        self.history.creations.append(creation)
        place = self.random.randint(0, _FORKED_PLACES)
        request = fork(self.tenant.shared, request_id, through_sequence=place, metadata={"marker": creation.marker})

        async def once() -> Attempt:
            attempt, answer = await self.ask("ForkConversation", request)
            if answer is not None:
                creation.ids.append(answer.id)
            return attempt

        await self.insist(creation.attempts, once)
        await asyncio.sleep(5 * self.workload.pause)


class Reviver(RepeatingCaller):
    """Creates conversations, deletes them, brings them back, and says when they end."""

    async def _step(self) -> None:
        life = Life(self.tenant.name, self.marker(), tuple(self.marker() for _ in range(self.random.randint(1, 3))))
        self.history.lives.append(life)
        made = create(
            *map(user_message, life.markers), metadata={"marker": life.marker, LIFE: "yes"}, request_id=self._new_id()
        )
        conversation_id = (await self._insist("CreateConversation", made, life.created)).id
        for _ in range(self.random.randint(0, 3)):
            await self._turn(
                life, End.DELETED, "DeleteConversation", delete(conversation_id, request_id=self._new_id())
            )
            await self.rest()
            if self.random.random() < 0.3:
                return
            back = undelete(conversation_id, request_id=self._new_id())
            await self._turn(life, End.BACK, "UndeleteConversation", back)
        if self.random.random() < 0.5:
            await self._end(life, conversation_id)
        await asyncio.sleep(5 * self.workload.pause)

    async def _end(self, life: Life, conversation_id: str) -> None:
        """Says once when it ends: a repeated call would not find what has ended meanwhile."""
        end = self.random.choice((End.EXPIRED, End.LATER))
        when = datetime.now(UTC) + timedelta(seconds=_SOON if end is End.EXPIRED else 3600)
        attempts: list[Attempt] = []
        life.turns.append((end, attempts))
        attempt, _ = await self.ask("UpdateConversation", update(conversation_id, "expire_time", expire_time=when))
        attempts.append(attempt)
        await asyncio.sleep(max(0.0, (when - datetime.now(UTC)).total_seconds() + _CLOCKS) * (end is End.EXPIRED))

    async def _turn(self, life: Life, end: End, method: str, request: Any) -> None:
        attempts: list[Attempt] = []
        life.turns.append((end, attempts))
        await self._insist(method, request, attempts)

    async def _insist(self, method: str, request: Any, attempts: list[Attempt]) -> Any:
        """The answer, once there is one."""
        answers: list[Any] = []

        async def once() -> Attempt:
            attempt, answer = await self.ask(method, request)
            answers.append(answer)
            return attempt

        await self.insist(attempts, once)
        return answers[-1]

    def _new_id(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))


class Reader(RepeatingCaller):
    """Reads the newest items."""

    async def _step(self) -> None:
        conversation_id = self.random.choice((self.tenant.shared, self.tenant.raced, self.tenant.streamed))
        request = ListItemsRequest(conversation_id=conversation_id, page_size=self.random.choice((1, 20, 100)))
        attempt, page = await self.ask("ListItems", request)
        if page is not None:
            if conversation_id == self.tenant.shared and request.page_size == 1:
                self.tenant.page_token = page.next_page_token
            sequences = tuple(item.sequence for item in page.items)
            markers = tuple(map(text_of, page.items))
            self.history.reads.append(Read(self.tenant.name, conversation_id, attempt, sequences, markers))


class Trespasser(RepeatingCaller):
    """Asks for what another tenant has, by ids and page tokens that it should not know."""

    async def _step(self) -> None:
        other = next(each for each in self.workload.tenants if each is not self.tenant)
        conversation_id = self.random.choice(other.conversations)[1]
        item_id = self._item_of(conversation_id)
        method, request = self.random.choice(_requests_about(conversation_id, item_id, self.marker()))
        attempt, _ = await self.ask(method, request)
        if attempt.outcome is Outcome.OK:
            self.history.leaks.append(f"{method} of {self.tenant.name} was done to a conversation of {other.name}")
        await self._use_page_token(other)

    def _item_of(self, conversation_id: str) -> str:
        """An item that is there, if one is known."""
        ids = (
            placement.item_ids[0]
            for append in reversed(self.history.appends)
            if append.conversation_id == conversation_id
            for placement in append.placements
        )
        return next(ids, "msg_x")

    async def _use_page_token(self, other: Tenant) -> None:
        """A token of the other's list, in a list of one's own."""
        if token := other.page_token:
            request = ListItemsRequest(conversation_id=self.tenant.shared, page_size=1, page_token=token)
            attempt, _ = await self.ask("ListItems", request)
            if attempt.outcome is Outcome.OK:
                self.history.leaks.append(f"{self.tenant.name} used a page token of {other.name}")


def _requests_about(conversation_id: str, item_id: str, marker: str) -> list[tuple[str, Any]]:
    return [
        ("GetConversation", get(conversation_id)),
        ("ListItems", list_items(conversation_id)),
        ("ListItems", list_items(conversation_id, after=item_id)),
        ("GetItem", get_item(conversation_id, item_id)),
        ("BatchGetItems", batch_get(conversation_id, item_id)),
        ("CreateItems", append(conversation_id, user_message(marker))),
        ("CreateConversation", create(copy_of(conversation_id, item_id))),
        ("UpdateConversation", update(conversation_id, "metadata", metadata={"marker": marker})),
        ("DeleteItem", delete_item(conversation_id, item_id)),
        ("DeleteConversation", delete(conversation_id)),
        ("UndeleteConversation", undelete(conversation_id)),
        ("ForkConversation", fork(conversation_id)),
        ("RewindConversation", rewind(conversation_id, 0)),
    ]


CALLERS = (
    Appender,
    Appender,
    BareAppender,
    BareAppender,
    Racer,
    Racer,
    Streamer,
    Creator,
    Counter,
    Counter,
    Deleter,
    Rewinder,
    Forker,
    Reviver,
    Reader,
)
