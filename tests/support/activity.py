"""Lists by activity, and whether the tables that they read are what one would make of the conversations."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from conversations.v1 import conversations_service_pb2 as pb

from server.store import activity
from server.store.connection.opening import direct_connection
from tests.support.interruptions import FailingConnection
from tests.support.postgres import fetch

BY_ACTIVITY = "active_time desc"

# Of each row that differs from a table made anew: which one it is.
_DIFFERENCES = """
    WITH fresh AS (
        SELECT id, tenant, owner, coalesce(active_time, create_time) AS active_time FROM conversations
        WHERE delete_time IS NULL
    ), fresh_attributes AS (
        SELECT id, unnest(attributes) AS attribute, tenant, coalesce(active_time, create_time) AS active_time
        FROM conversations WHERE delete_time IS NULL
    ), attributes AS (
        SELECT conversation_id, attribute, held.tenant, coalesce(held.active_time, held.create_time)
        FROM conversation_attributes AS held JOIN conversations ON id = conversation_id WHERE delete_time IS NULL
    )
    (SELECT 'missing' AS kind, id FROM (SELECT * FROM fresh EXCEPT SELECT * FROM activity) AS a)
    UNION ALL (SELECT 'left', conversation_id FROM (SELECT * FROM activity EXCEPT SELECT * FROM fresh) AS b)
    UNION ALL (SELECT 'missing attribute', id FROM (
        SELECT * FROM fresh_attributes EXCEPT SELECT * FROM attributes) AS c)
    UNION ALL (SELECT 'left attribute', conversation_id FROM (
        SELECT * FROM attributes EXCEPT SELECT * FROM fresh_attributes) AS d)"""


async def differences(url: str) -> list[tuple[str, str]]:
    """What a table made anew would not have, or would have otherwise; nothing once all is settled."""
    return [tuple(row) for row in await fetch(url, _DIFFERENCES)]


async def queue(url: str) -> list[str]:
    """The conversations in the queue."""
    return [row["conversation_id"] for row in await fetch(url, "SELECT conversation_id FROM pending ORDER BY 1")]


async def settled(url: str) -> int:
    """Goes through the queue once, as the service does every second; how many conversations were taken out."""
    async with direct_connection(url, settings=activity.SESSION) as connection:
        return await activity.settle(connection)


@asynccontextmanager
async def session(url: str, fail_at: int = 0, *, behind: bool = False) -> AsyncIterator[Any]:
    """A connection as the service has it, which may be lost at its n-th statement."""
    async with direct_connection(url, settings=activity.SESSION) as connection:
        yield FailingConnection(connection, fail_at, behind=behind) if fail_at else connection


async def compared(url: str) -> bool:
    """Compares all times."""
    async with session(url) as connection:
        return await activity.compare(connection, 60.0)


async def listed(stub: Any, size: int = 100, **fields: Any) -> list[Any]:
    """All conversations by activity, page by page."""
    found: list[Any] = []
    token = ""
    while True:
        request = pb.ListConversationsRequest(order_by=BY_ACTIVITY, page_size=size, page_token=token, **fields)
        page = await stub.ListConversations(request)
        found += page.conversations
        token = page.next_page_token
        if not token:
            return found


async def ids(stub: Any, size: int = 100, **fields: Any) -> list[str]:
    """Their ids."""
    return [each.id for each in await listed(stub, size, **fields)]


async def until(url: str, statement: str, expected: Any) -> None:
    """Returns once the database says so."""
    async with asyncio.timeout(20):
        while [expected] != [row[0] for row in await fetch(url, statement)]:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.02)
