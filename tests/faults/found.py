"""What is there after a run, as callers and as the database see it."""

from dataclasses import dataclass, field
from typing import Any

import asyncpg
import grpc.aio
from conversations.v1.conversation_pb2 import Conversation
from conversations.v1.conversations_service_pb2 import (
    ORDER_ASCENDING,
    ORDER_DESCENDING,
    GetConversationRequest,
    ListConversationsRequest,
    ListItemsRequest,
)
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from conversations.v1.item_pb2 import Item

from tests.support.build import text_of

LIFE = "life"  # in the metadata of conversations that are deleted and brought back
_SECONDS = 20  # for each call; nothing is broken any more
_ROWS = (
    "SELECT sequence, item_id, delete_time IS NOT NULL AS deleted FROM items"
    " WHERE conversation_id = $1 ORDER BY sequence, item_id"
)


@dataclass(frozen=True, slots=True)
class FoundItem:
    """An item of a list."""

    sequence: int
    item_id: str
    marker: str

    @classmethod
    def of(cls, item: Item) -> "FoundItem":
        """As a list holds it."""
        return cls(item.sequence, item.id, text_of(item))


@dataclass(frozen=True, slots=True)
class FoundRow:
    """A row of the database, which stays when its item is deleted."""

    sequence: int
    item_id: str
    deleted: bool


@dataclass
class FoundConversation:
    """A conversation and its items, read in every way there is."""

    tenant: str
    conversation_id: str
    last_sequence: int
    metadata: dict[str, str]
    ascending: list[FoundItem] = field(default_factory=list)  # page by page, by token
    descending: list[FoundItem] = field(default_factory=list)  # likewise
    behind: list[FoundItem] = field(default_factory=list)  # ascending, page by page, by `after`
    rows: list[FoundRow] = field(default_factory=list)


@dataclass(frozen=True)
class FoundFork:
    """A fork, and the place up to which it was copied."""

    conversation_id: str
    source_id: str
    through: int
    items: list[FoundItem]


@dataclass
class Found:
    """All of it."""

    conversations: list[FoundConversation]
    markers: dict[str, list[tuple[str, str]]]  # tenant and id of each conversation by the marker in its metadata
    forks: list[FoundFork] = field(default_factory=list)
    lives: dict[str, list[str]] = field(default_factory=dict)  # markers of the items, by that of the conversation


async def find(
    channel: grpc.aio.Channel, database: asyncpg.Connection, tokens: dict[str, str], used: list[tuple[str, str]]
) -> Found:
    """Reads back the conversations ``used`` (tenant and id of each), and all that the lists of each tenant hold.

    ``tokens``: the credentials of each tenant.
    """
    stub = ConversationsServiceStub(channel)
    readers = {
        tenant: _Reader(stub, tenant, [("authorization", f"Bearer {token}")]) for tenant, token in tokens.items()
    }
    found = [await readers[tenant].conversation(conversation_id, database) for tenant, conversation_id in used]
    markers: dict[str, list[tuple[str, str]]] = {}
    forks: list[FoundFork] = []
    lives: dict[str, list[str]] = {}
    for tenant, reader in readers.items():
        for made in await reader.marked():
            markers.setdefault(made.metadata["marker"], []).append((tenant, made.id))
            if made.HasField("forked_from"):
                forks.append(await reader.fork(made))
            if LIFE in made.metadata:
                lives[made.metadata["marker"]] = await reader.markers(made.id)
    return Found(found, markers, forks, lives)


class _Reader:
    def __init__(self, stub: Any, tenant: str, metadata: list[tuple[str, str]]) -> None:
        self._stub = stub
        self._tenant = tenant
        self._metadata = metadata

    async def _ask(self, method: str, request: Any) -> Any:
        return await getattr(self._stub, method)(request, metadata=self._metadata, timeout=_SECONDS)

    async def conversation(self, conversation_id: str, database: asyncpg.Connection) -> FoundConversation:
        made = await self._ask("GetConversation", GetConversationRequest(conversation_id=conversation_id))
        found = FoundConversation(self._tenant, conversation_id, made.last_sequence, dict(made.metadata))
        found.ascending = await self._pages(conversation_id, ORDER_ASCENDING, 100)
        found.descending = await self._pages(conversation_id, ORDER_DESCENDING, 77)
        found.behind = await self._pages_behind(conversation_id)
        rows = await database.fetch(_ROWS, conversation_id)
        found.rows = [FoundRow(row["sequence"], row["item_id"], row["deleted"]) for row in rows]
        return found

    async def _pages(self, conversation_id: str, order: Any, size: int) -> list[FoundItem]:
        found: list[FoundItem] = []
        request = ListItemsRequest(conversation_id=conversation_id, order=order, page_size=size)
        while True:
            page = await self._ask("ListItems", request)
            found += map(FoundItem.of, page.items)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def _pages_behind(self, conversation_id: str) -> list[FoundItem]:
        found: list[FoundItem] = []
        request = ListItemsRequest(conversation_id=conversation_id, order=ORDER_ASCENDING, page_size=91)
        while True:
            page = await self._ask("ListItems", request)
            found += map(FoundItem.of, page.items)
            if not page.has_more:
                return found
            request.after = page.last_id

    async def fork(self, made: Conversation) -> FoundFork:
        source = made.forked_from
        items = await self._pages(made.id, ORDER_ASCENDING, 100)
        return FoundFork(made.id, source.conversation_id, source.sequence, items)

    async def markers(self, conversation_id: str) -> list[str]:
        """Of the items of a conversation, in order."""
        return [item.marker for item in await self._pages(conversation_id, ORDER_ASCENDING, 100)]

    async def marked(self) -> list[Conversation]:
        """The conversations that have a marker in their metadata."""
        found: list[Conversation] = []
        request = ListConversationsRequest(page_size=100)
        while True:
            page = await self._ask("ListConversations", request)
            found += [each for each in page.conversations if "marker" in each.metadata]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token
