"""Targets that implement this contract: the minimal server, and the service without and with identity."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from conversations.v1 import access_service_pb2 as access
from conversations.v1 import content_pb2, conversation_pb2, item_body_pb2, item_pb2
from conversations.v1 import conversations_service_pb2 as pb
from conversations.v1.access_service_pb2_grpc import AccessServiceStub
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from google.protobuf.field_mask_pb2 import FieldMask

from bench import guarded
from bench.process import started

TEXT = "x" * 200  # the text of every item, here and for the peers
PERMISSIONS = [
    access.Permission(resource=resource, action=action)
    for resource, action in (
        ("conversation", "read"),
        ("conversation", "update"),
        ("conversation", "delete"),
        ("item", "create"),
    )
]


def message() -> item_pb2.NewItem:
    """An item with a text of 200 characters."""
    text = content_pb2.Content(input_text=content_pb2.InputText(text=TEXT))
    body = item_body_pb2.Message(role=content_pb2.ROLE_USER, content=[text])
    return item_pb2.NewItem(item=item_pb2.Item(message=body))


@dataclass(frozen=True)
class GrpcTarget:
    """A client of the contract; an item without an id is known by its sequence."""

    name: str
    pid: int
    stub: Any
    access: Any
    metadata: Sequence[tuple[str, str]] = ()
    lacks: Collection[str] = ()
    peer: bool = False

    async def create(self) -> str:
        """The new id."""
        made = await self.stub.CreateConversation(pb.CreateConversationRequest(), metadata=self.metadata)
        return str(made.id)

    async def append(self, conversation: str, count: int) -> list[str]:
        """One CreateItems."""
        request = pb.CreateItemsRequest(conversation_id=conversation, items=[message()] * count)
        response = await self.stub.CreateItems(request, metadata=self.metadata)
        return [name for _, name in map(_place, response.items)]

    async def stream(self, conversation: str, count: int) -> None:
        """Appends ``count`` items by one AppendItems without waiting for answers; each must be answered, in order."""
        call = self.stub.AppendItems(metadata=self.metadata)

        async def sent() -> None:
            for number in range(count):
                name = "" if number else conversation
                await call.write(pb.AppendItemsRequest(conversation_id=name, items=[message()]))
            await call.done_writing()

        sending = asyncio.create_task(sent())
        answered = [answer.appended.first_sequence async for answer in call]
        await sending
        assert answered == list(range(answered[0], answered[0] + count))

    async def newest(self, conversation: str) -> int:
        """One ListItems in its default order."""
        request = pb.ListItemsRequest(conversation_id=conversation, page_size=20)
        return len((await self.stub.ListItems(request, metadata=self.metadata)).items)

    async def page(self, conversation: str) -> int:
        """ListItems by tokens to the end."""
        return sum([len(items) async for items in self._pages(conversation)])

    async def get(self, conversation: str) -> None:
        """One GetConversation."""
        await self.stub.GetConversation(pb.GetConversationRequest(conversation_id=conversation), metadata=self.metadata)

    async def get_item(self, conversation: str, item: str) -> None:
        """One GetItem."""
        request = pb.GetItemRequest(conversation_id=conversation, item_id=item)
        await self.stub.GetItem(request, metadata=self.metadata)

    async def get_items(self, conversation: str, items: Sequence[str]) -> int:
        """One BatchGetItems."""
        request = pb.BatchGetItemsRequest(conversation_id=conversation, item_ids=items)
        return len((await self.stub.BatchGetItems(request, metadata=self.metadata)).items)

    async def check_access(self, conversation: str) -> bool:
        """One CheckAccess for four permissions."""
        request = access.CheckAccessRequest(conversation_id=conversation, permissions=PERMISSIONS)
        return len((await self.access.CheckAccess(request, metadata=self.metadata)).allowed) == len(PERMISSIONS)

    async def update(self, conversation: str, metadata: Mapping[str, str]) -> None:
        """One UpdateConversation of all metadata."""
        request = pb.UpdateConversationRequest(
            conversation=conversation_pb2.Conversation(id=conversation, metadata=metadata),
            update_mask=FieldMask(paths=["metadata"]),
        )
        await self.stub.UpdateConversation(request, metadata=self.metadata)

    async def delete_item(self, conversation: str, item: str) -> None:
        """One DeleteItem."""
        request = pb.DeleteItemRequest(conversation_id=conversation, item_id=item)
        await self.stub.DeleteItem(request, metadata=self.metadata)

    async def delete(self, conversation: str) -> None:
        """One DeleteConversation."""
        request = pb.DeleteConversationRequest(conversation_id=conversation)
        await self.stub.DeleteConversation(request, metadata=self.metadata)

    async def sequence_ids(self, conversation: str) -> list[tuple[int, str]]:
        """The result of ListItems, oldest first."""
        return [_place(item) async for items in self._pages(conversation) for item in items]

    async def _pages(self, conversation: str) -> AsyncIterator[Sequence[item_pb2.Item]]:
        request = pb.ListItemsRequest(conversation_id=conversation, page_size=100, order=pb.ORDER_ASCENDING)
        while True:
            response = await self.stub.ListItems(request, metadata=self.metadata)
            yield response.items
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token


def _place(item: item_pb2.Item) -> tuple[int, str]:
    return item.sequence, item.id or str(item.sequence)


def target(name: str, pid: int, channel: grpc.aio.Channel, metadata: Sequence[tuple[str, str]] = ()) -> GrpcTarget:
    """Returns the client of a process that serves the contract."""
    return GrpcTarget(name, pid, ConversationsServiceStub(channel), AccessServiceStub(channel), metadata)


@asynccontextmanager
async def serving(
    name: str, module: Sequence[str], settings: Mapping[str, str], folder: Path, bearer: str = ""
) -> AsyncIterator[GrpcTarget]:
    """Runs a module that serves the contract, and yields a client of it; ``bearer``: its token, if it needs one."""
    metadata = [("authorization", f"Bearer {bearer}")] if bearer else []
    async with (
        started(module, settings, folder / f"{name}.log") as process,
        grpc.aio.insecure_channel(process.address) as channel,
    ):
        yield target(name, process.pid, channel, metadata)


@asynccontextmanager
async def limit(url: str, folder: Path) -> AsyncIterator[GrpcTarget]:
    """The minimal server of `bench.limit`."""
    async with serving("limit", ["bench.limit", "--database-url", url], {}, folder) as called:
        yield called


@asynccontextmanager
async def ours(url: str, folder: Path) -> AsyncIterator[GrpcTarget]:
    """The service with default settings: no identity, the default policy."""
    async with serving("ours", ["server"], service_settings(url), folder) as called:
        yield called


@asynccontextmanager
async def ours_jwt(url: str, folder: Path) -> AsyncIterator[GrpcTarget]:
    """The service with a token to verify and a policy of 50 rules."""
    bearer = guarded.token(folder)
    settings = service_settings(url) | guarded.settings(folder)
    async with serving("ours-jwt", ["server"], settings, folder, bearer) as called:
        yield called


def service_settings(url: str) -> dict[str, str]:
    """Returns the settings of our service on a database, as environment variables."""
    return {"CONVERSATIONS_DATABASE_URL": url, "CONVERSATIONS_LISTEN": "127.0.0.1:0"}
