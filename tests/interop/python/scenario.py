"""The steps. Each continues with the conversation of the first one."""

import time
from collections.abc import AsyncIterator, Awaitable, Iterable
from typing import TYPE_CHECKING
from uuid import uuid4

import grpc.aio
from conversations.v1.content_pb2 import ROLE_USER, Content, InputText, ToolOutput
from conversations.v1.conversation_pb2 import AttributeValues, Conversation
from conversations.v1.conversations_service_pb2 import (
    ORDER_ASCENDING,
    ORDER_DESCENDING,
    AppendItemsRequest,
    CreateConversationRequest,
    CreateItemsRequest,
    GetConversationRequest,
    ListItemsRequest,
    Order,
    UpdateConversationRequest,
)
from conversations.v1.item_body_pb2 import FunctionCall, FunctionCallOutput, Message
from conversations.v1.item_pb2 import Item, NewItem
from conversations.v1.item_status_pb2 import ITEM_STATUS_COMPLETED
from conversations_client import details_of
from grpc import StatusCode

if TYPE_CHECKING:
    from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceAsyncStub

LARGEST_PAGE = 100


class Scenario:
    """The state that the steps share.

    Attributes:
        stub: Of the service.
        conversation: That of the first step.
    """

    def __init__(self, stub: "ConversationsServiceAsyncStub", locked: str) -> None:
        """``locked``: a conversation whose row is locked, so that appends wait."""
        self.stub = stub
        self._locked = locked
        self.conversation = Conversation()

    async def create(self) -> None:
        """A conversation with three items comes back as it was sent."""
        sent = [
            text("What is gRPC?"),
            item(function_call=FunctionCall(call_id="call_1", name="search", arguments='{"q": "gRPC"}')),
            item(function_call_output=FunctionCallOutput(call_id="call_1", output=ToolOutput(text="found"))),
        ]
        self.conversation = await self.stub.CreateConversation(
            CreateConversationRequest(
                conversation=Conversation(metadata={"topic": "interop"}), items=sent, request_id=request_id()
            )
        )
        assert self.conversation.last_sequence == 3
        assert self.conversation.metadata == {"topic": "interop"}
        assert self.conversation.etag
        await self._came_back(sent)

    async def _came_back(self, sent: list[NewItem]) -> None:
        """Set fields are as sent, unset ones stay unset, and the server has filled in its own."""
        items = await self.all_items()
        assert ["msg", "fc", "fc"] == [each.id.partition("_")[0] for each in items]
        for each in items:
            assert each.status == ITEM_STATUS_COMPLETED  # the default
            assert each.HasField("create_time")
            for field in ("id", "sequence", "status", "create_time", "created_by"):
                each.ClearField(field)
        assert [each.item for each in sent] == items

    async def append(self) -> None:
        """A request that is sent twice, as by a client that lost the first answer, appends once."""
        request = self.append_request("And", "REST?")
        first, second = await self.stub.CreateItems(request), await self.stub.CreateItems(request)
        assert len(first.items) == 2
        assert ids(first.items) == ids(second.items)
        assert (await self.read()).last_sequence == 5

    async def pages(self) -> None:
        """Pages go forwards and backwards."""
        for order, expected in ((ORDER_ASCENDING, [1, 2, 3, 4, 5]), (ORDER_DESCENDING, [5, 4, 3, 2, 1])):
            assert expected == [each.sequence for each in await self._list(order, page_size=2)]

    async def etag(self) -> None:
        """The second update with the original etag is refused."""
        await self._update("first")
        await fails(self._update("second"), StatusCode.ABORTED, "ETAG_MISMATCH")

    async def _update(self, topic: str) -> None:
        changed = Conversation(id=self.conversation.id, etag=self.conversation.etag, metadata={"topic": topic})
        await self.stub.UpdateConversation(UpdateConversationRequest(conversation=changed))

    async def not_found(self) -> None:
        """What is missing is not found, and what is invalid is listed by field."""
        nobody = self.stub.GetConversation(GetConversationRequest(conversation_id="conv_nobody"))
        await fails(nobody, StatusCode.NOT_FOUND, "CONVERSATION_NOT_FOUND")
        wrong = self.stub.ListItems(ListItemsRequest(conversation_id="x", page_size=-1))
        error = await fails(wrong, StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
        assert {"conversation_id", "page_size"} == {each.field for each in details_of(error).violations}

    async def denied(self) -> None:
        """The policy permits nobody to share."""
        shared = Conversation(id=self.conversation.id, attributes={"teams": AttributeValues(values=["search"])})
        update = self.stub.UpdateConversation(UpdateConversationRequest(conversation=shared))
        await fails(update, StatusCode.PERMISSION_DENIED, "ACTION_DENIED")

    async def deadline(self) -> None:
        """A call that waits in the server ends at its deadline."""
        began = time.monotonic()
        request = CreateItemsRequest(conversation_id=self._locked, items=[text("too late")])
        error = await failure(self.stub.CreateItems(request, timeout=0.3))
        assert error.code() is StatusCode.DEADLINE_EXCEEDED, error
        assert time.monotonic() - began < 1.0

    async def stream(self) -> None:
        """Messages that are sent ahead are answered in order."""
        answers = self.stub.AppendItems(self._messages("one", "two", "three"))
        assert [6, 7, 8] == [answer.appended.first_sequence async for answer in answers]

    async def _messages(self, *words: str) -> AsyncIterator[AppendItemsRequest]:
        for each in words:
            yield AppendItemsRequest(conversation_id=self.conversation.id, items=[text(each)])

    async def branch(self, *words: str) -> "Scenario":
        """The same with a conversation of its own, which begins with messages of the user."""
        return self.of(
            await self.stub.CreateConversation(
                CreateConversationRequest(
                    conversation=Conversation(metadata={"topic": "branch"}), items=[text(each) for each in words]
                )
            )
        )

    def of(self, conversation: Conversation) -> "Scenario":
        """The same with another conversation."""
        made = Scenario(self.stub, self._locked)
        made.conversation = conversation
        return made

    async def read(self) -> Conversation:
        """The conversation as it is."""
        return await self.stub.GetConversation(GetConversationRequest(conversation_id=self.conversation.id))

    async def append_one(self, words: str) -> Item:
        """Appends one item. The request id makes the call safe to retry."""
        return (await self.stub.CreateItems(self.append_request(words))).items[0]

    async def all_items(self) -> list[Item]:
        """All items, in order."""
        return await self._list(ORDER_ASCENDING, LARGEST_PAGE)

    async def _list(self, order: "Order.ValueType", page_size: int) -> list[Item]:
        request = ListItemsRequest(conversation_id=self.conversation.id, page_size=page_size, order=order)
        items: list[Item] = []
        while True:
            page = await self.stub.ListItems(request)
            items += page.items
            if not page.has_more:
                return items
            request.page_token = page.next_page_token

    def append_request(self, *words: str) -> CreateItemsRequest:
        """A request for messages of the user, with an id of its own."""
        return CreateItemsRequest(
            conversation_id=self.conversation.id, items=[text(each) for each in words], request_id=request_id()
        )


async def fails(call: Awaitable[object], code: StatusCode, reason: str) -> grpc.aio.AioRpcError:
    """The error of a call that has to fail, with this code and this reason."""
    error = await failure(call)
    assert (code, reason) == (error.code(), details_of(error).reason), error
    return error


async def failure(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    """The error of a call that has to fail."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError(f"want an error, got {answer}")


def text(words: str) -> NewItem:
    """A message of the user."""
    return item(message=Message(role=ROLE_USER, content=[Content(input_text=InputText(text=words))]))


def item(
    *,
    message: Message | None = None,
    function_call: FunctionCall | None = None,
    function_call_output: FunctionCallOutput | None = None,
) -> NewItem:
    """An item with this body, to append."""
    return NewItem(item=Item(message=message, function_call=function_call, function_call_output=function_call_output))


def ids(items: Iterable[Item]) -> list[str]:
    """Of items, in order."""
    return [each.id for each in items]


def request_id() -> str:
    """A new one, for one intended write."""
    return str(uuid4())
