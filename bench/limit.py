"""A minimal server to compare with: the contract, one bare statement a call, and nothing else.

``python -m bench.limit --database-url URL --listen 127.0.0.1:0`` shows what a
straightforward handler can do with the same protocol, the same driver and the same
database: no identity, no policy, no validation, no ids of items, no interceptors.
"""

import argparse
import asyncio
import json
import os
import signal
from typing import Any

import asyncpg
import grpc
import grpc.aio
import uvloop
from conversations.v1 import access_service_pb2, conversation_pb2, item_pb2
from conversations.v1 import conversations_service_pb2 as pb
from conversations.v1.access_service_pb2_grpc import AccessServiceServicer, add_AccessServiceServicer_to_server
from conversations.v1.conversations_service_pb2_grpc import (
    ConversationsServiceServicer,
    add_ConversationsServiceServicer_to_server,
)
from google.protobuf.empty_pb2 import Empty

Context = grpc.aio.ServicerContext[Any, Any]

SCHEMA = """
    CREATE TABLE IF NOT EXISTS conversations (
        id text COLLATE "C" PRIMARY KEY,
        last_sequence bigint NOT NULL,
        metadata jsonb NOT NULL,
        create_time timestamptz NOT NULL
    ) WITH (fillfactor = 70);
    CREATE TABLE IF NOT EXISTS items (
        conversation_id text COLLATE "C" NOT NULL,
        sequence bigint NOT NULL,
        body bytea NOT NULL,
        PRIMARY KEY (conversation_id, sequence)
    )"""
CREATE = "INSERT INTO conversations VALUES ($1, 0, $2, now()) RETURNING create_time"
GET = "SELECT last_sequence, metadata, create_time FROM conversations WHERE id = $1"
APPEND = """
    WITH bumped AS (
        UPDATE conversations SET last_sequence = last_sequence + $2 WHERE id = $1
        RETURNING last_sequence - $2 AS base
    ), placed AS (
        INSERT INTO items
        SELECT $1, base + ordinal, body FROM bumped, unnest($3::bytea[]) WITH ORDINALITY AS sent (body, ordinal)
    )
    SELECT base FROM bumped"""
NEWEST = """
    SELECT sequence, body FROM items WHERE conversation_id = $1 AND sequence < $2
    ORDER BY sequence DESC LIMIT $3"""
OLDEST = """
    SELECT sequence, body FROM items WHERE conversation_id = $1 AND sequence > $2
    ORDER BY sequence LIMIT $3"""
ONE = "SELECT sequence, body FROM items WHERE conversation_id = $1 AND sequence = $2"
SOME = "SELECT sequence, body FROM items WHERE conversation_id = $1 AND sequence = ANY($2::bigint[])"
UPDATE = """
    UPDATE conversations SET metadata = $2 WHERE id = $1
    RETURNING last_sequence, metadata, create_time"""
DELETE_ITEM = """
    WITH gone AS (DELETE FROM items WHERE conversation_id = $1 AND sequence = $2 RETURNING sequence)
    SELECT last_sequence, metadata, create_time FROM conversations, gone WHERE id = $1"""
DELETE = """
    WITH gone AS (DELETE FROM items WHERE conversation_id = $1)
    DELETE FROM conversations WHERE id = $1"""
_BEHIND_ALL = 2**63 - 1
_SETTINGS = {"jit": "off", "plan_cache_mode": "force_generic_plan"}  # as in the service


class Limit(ConversationsServiceServicer):
    """The methods that the workloads call; the id of an item is its sequence."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def CreateConversation(  # noqa: N802
        self, request: pb.CreateConversationRequest, _context: Context
    ) -> conversation_pb2.Conversation:
        """One row."""
        conversation, metadata = f"conv_{os.urandom(24).hex()}", dict(request.conversation.metadata)
        made = await self._pool.fetchval(CREATE, conversation, json.dumps(metadata))
        return conversation_pb2.Conversation(id=conversation, metadata=metadata, create_time=made)

    async def GetConversation(  # noqa: N802
        self, request: pb.GetConversationRequest, context: Context
    ) -> conversation_pb2.Conversation:
        """One row by its key."""
        row = await self._pool.fetchrow(GET, request.conversation_id)
        return _conversation(request.conversation_id, await _found(row, context))

    async def UpdateConversation(  # noqa: N802
        self, request: pb.UpdateConversationRequest, context: Context
    ) -> conversation_pb2.Conversation:
        """One row by its key."""
        changed = request.conversation
        row = await self._pool.fetchrow(UPDATE, changed.id, json.dumps(dict(changed.metadata)))
        return _conversation(changed.id, await _found(row, context))

    async def CreateItems(  # noqa: N802
        self, request: pb.CreateItemsRequest, context: Context
    ) -> pb.CreateItemsResponse:
        """The counter and the rows in one statement."""
        items = [new.item for new in request.items]
        bodies = [item.SerializeToString() for item in items]
        base = await self._pool.fetchval(APPEND, request.conversation_id, len(bodies), bodies)
        if base is None:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        for sequence, item in enumerate(items, base + 1):
            item.sequence = sequence
        return pb.CreateItemsResponse(items=items)

    async def ListItems(  # noqa: N802
        self, request: pb.ListItemsRequest, _context: Context
    ) -> pb.ListItemsResponse:
        """One range of the primary key; the token is the last sequence."""
        size = request.page_size or 20
        statement, start = (OLDEST, 0) if request.order == pb.ORDER_ASCENDING else (NEWEST, _BEHIND_ALL)
        cursor = int(request.page_token or start)
        rows = await self._pool.fetch(statement, request.conversation_id, cursor, size + 1)
        response = pb.ListItemsResponse(items=map(_item, rows[:size]), has_more=len(rows) > size)
        if response.has_more:
            response.next_page_token = str(rows[size - 1]["sequence"])
        return response

    async def GetItem(  # noqa: N802
        self, request: pb.GetItemRequest, context: Context
    ) -> item_pb2.Item:
        """One row by its key."""
        row = await self._pool.fetchrow(ONE, request.conversation_id, int(request.item_id))
        return _item(await _found(row, context))

    async def BatchGetItems(  # noqa: N802
        self, request: pb.BatchGetItemsRequest, _context: Context
    ) -> pb.BatchGetItemsResponse:
        """Rows by their keys, in the order of the request."""
        wanted = list(map(int, request.item_ids))
        rows = {row["sequence"]: row for row in await self._pool.fetch(SOME, request.conversation_id, wanted)}
        return pb.BatchGetItemsResponse(items=[_item(rows[sequence]) for sequence in wanted if sequence in rows])

    async def DeleteItem(  # noqa: N802
        self, request: pb.DeleteItemRequest, context: Context
    ) -> conversation_pb2.Conversation:
        """Removes the row and returns the conversation in one statement."""
        row = await self._pool.fetchrow(DELETE_ITEM, request.conversation_id, int(request.item_id))
        return _conversation(request.conversation_id, await _found(row, context))

    async def DeleteConversation(  # noqa: N802
        self, request: pb.DeleteConversationRequest, _context: Context
    ) -> Empty:
        """Removes the rows in one statement."""
        await self._pool.execute(DELETE, request.conversation_id)
        return Empty()


class LimitAccess(AccessServiceServicer):
    """The method that the workloads call."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def CheckAccess(  # noqa: N802
        self, request: access_service_pb2.CheckAccessRequest, _context: Context
    ) -> access_service_pb2.CheckAccessResponse:
        """Everything is allowed on a row that exists."""
        row = await self._pool.fetchrow(GET, request.conversation_id)
        return access_service_pb2.CheckAccessResponse(allowed=request.permissions if row else ())


async def _found(row: asyncpg.Record | None, context: Context) -> asyncpg.Record:
    """Returns ``row``, or ends the call if there is none."""
    if row is None:
        await context.abort(grpc.StatusCode.NOT_FOUND)
    return row


def _conversation(name: str, row: asyncpg.Record) -> conversation_pb2.Conversation:
    return conversation_pb2.Conversation(
        id=name,
        last_sequence=row["last_sequence"],
        metadata=json.loads(row["metadata"]),
        create_time=row["create_time"],
    )


def _item(row: asyncpg.Record) -> item_pb2.Item:
    item = item_pb2.Item.FromString(row["body"])
    item.sequence = row["sequence"]
    return item


async def _keep(_connection: asyncpg.Connection) -> None:
    """Replaces asyncpg's reset query, as in the service."""


async def serve(url: str, listen: str) -> None:
    """Serves until SIGTERM; the first line printed says where."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with asyncpg.create_pool(url, min_size=1, max_size=10, reset=_keep, server_settings=_SETTINGS) as pool:
        await pool.execute(SCHEMA)
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_ConversationsServiceServicer_to_server(Limit(pool), server)  # type: ignore[abstract]
        add_AccessServiceServicer_to_server(LimitAccess(pool), server)  # type: ignore[abstract]
        port = server.add_insecure_port(listen)
        await server.start()
        print(f"Limit on {listen.rpartition(':')[0]}:{port}, ready", flush=True)
        await stop.wait()
        await server.stop(None)


def main() -> None:
    """Reads the flags and serves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--listen", default="127.0.0.1:0")
    flags = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(flags.database_url, flags.listen))


if __name__ == "__main__":
    main()
