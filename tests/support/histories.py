"""Conversations of many items, written to the tables directly, and what is stored of one."""

from typing import Any

import asyncpg

from tests.support.build import user_message

_INSERT_MANY = """
    INSERT INTO items (conversation_id, sequence, item_id, version, type, role, status, create_time, body)
    SELECT $1, number, 'msg_' || number, 1, 'message', 'user', 'completed', now(), $3
    FROM generate_series((SELECT last_sequence FROM conversations WHERE id = $1) + 1, $2) AS number"""


async def grow(pool: asyncpg.Pool, conversation_id: str, last: int) -> None:
    """Fills a conversation up to the sequence ``last``, with items whose ids are `msg_` and their sequence."""
    body = user_message("hi", id="msg_1").item.SerializeToString()
    await pool.execute(_INSERT_MANY, conversation_id, last, body)
    await pool.execute("UPDATE conversations SET last_sequence = $2 WHERE id = $1", conversation_id, last)


async def stored_items(pool: asyncpg.Pool, conversation_id: str) -> dict[int, tuple[Any, ...]]:
    """All that is stored of the living items of a conversation but their version, by their sequences."""
    rows = await pool.fetch(
        """SELECT sequence, item_id, type, role, status, create_time, body FROM items
           WHERE conversation_id = $1 AND delete_time IS NULL ORDER BY sequence""",
        conversation_id,
    )
    return {row["sequence"]: tuple(row)[1:] for row in rows}
