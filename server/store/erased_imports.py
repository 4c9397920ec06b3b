"""Erases what imports hold of a subject that have not ended: nobody sees it yet, and it would come back with their end.

An import is found by its head, or by an item of the principal that it has stored. It is removed as a whole, whoever
brings it: its stream is told of a conflict, and can begin again. Nothing of it is counted, for nobody had it.
"""

from collections.abc import Sequence
from datetime import UTC
from uuid import uuid4

import asyncpg
from conversations.v1.conversation_pb2 import Conversation

from server.store.comparison import Comparison, time_range
from server.store.erasures import Subject
from server.store.remover import CONVERSATIONS, remove_conversations

_FIND = """
    SELECT conversation_id, head, EXISTS (
        SELECT FROM items WHERE author = $2 AND author <> '' AND items.conversation_id = imports.conversation_id
    ) AS has_items
    FROM imports WHERE tenant = $1 AND conversation_id > $3 ORDER BY conversation_id LIMIT $4"""
# No stream goes on with an import without a head. It is found again, so that an interrupted erasure leaves nothing.
_ABANDON = """
    WITH locked AS (
        SELECT conversation_id FROM imports WHERE conversation_id = ANY($1) ORDER BY conversation_id
        FOR UPDATE SKIP LOCKED
    )
    UPDATE imports SET head = '', stream = $2 FROM locked WHERE imports.conversation_id = locked.conversation_id
    RETURNING imports.conversation_id"""


async def erase_imports(connection: asyncpg.Connection, tenant: str, subject: Subject) -> int:
    """Removes the imports that hold something of a subject; returns how many there were, locked ones included."""
    found, after = 0, ""
    while rows := await connection.fetch(_FIND, tenant, subject.principal, after, CONVERSATIONS):
        ids = [row["conversation_id"] for row in rows if _holds(row, subject)]
        abandoned = await connection.fetch(_ABANDON, ids, str(uuid4()))
        await remove_conversations(connection, [row["conversation_id"] for row in abandoned], _count_nothing)
        found, after = found + len(ids), rows[-1]["conversation_id"]
    return found


async def _count_nothing(_table: str, _count: int) -> None:
    pass


def _holds(row: asyncpg.Record, subject: Subject) -> bool:
    """Whether an import holds something of a subject, or may: one that was abandoned has no head."""
    head: bytes = row["head"]
    return row["has_items"] or not head or matches(Conversation.FromString(head), subject.comparisons)


def matches(head: Conversation, comparisons: Sequence[Comparison]) -> bool:
    """Whether every comparison of a filter holds for a head, as `filter_conditions` says it of a row."""
    start, end = time_range(comparisons)
    return start <= head.create_time.ToDatetime(UTC) < end and all(_compares(head, each) for each in comparisons)


def _compares(head: Conversation, comparison: Comparison) -> bool:
    match comparison.name:
        case "owner":
            same = head.owner == comparison.value
        case "forked_from":
            same = head.forked_from.conversation_id == comparison.value
        case "metadata":
            same = comparison.key in head.metadata and head.metadata[comparison.key] == comparison.value
        case "attributes":
            same = comparison.key in head.attributes and comparison.value in head.attributes[comparison.key].values
        case _:
            return True  # a time
    return same == (comparison.operator == "=")
