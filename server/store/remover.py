"""Removes conversations with all rows that belong to them: what the purge, expiry and erasure share.

It works in steps of at most `STEP` rows, each committed, so that no lock is held for long, no statement meets its
timeout, and whoever is interrupted goes on where it was. Rows are found by their keys, which a sharded database can
route, and not by their place in a table.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from server.store.sessions import Session
from server.store.steps import count_of

STEP = 5_000  # rows of one statement
CONVERSATIONS = 500  # of one call, about
# Is told how many rows of which table a step has removed, in the transaction of that step.
Note: TypeAlias = Callable[[str, int], Awaitable[None]]

# The next items of conversations, in the order of $1, behind the sequence $2 of the first of them: a range of each
# conversation, which costs less than each row by its key.
_REMOVE_ITEMS = """
    WITH ranges AS (
        SELECT given.number, given.id, min(given.sequence) AS first, max(given.sequence) AS last, count(*) AS size
        FROM (
            SELECT given.number, given.id, found.sequence
            FROM unnest($1::text[]) WITH ORDINALITY AS given (id, number)
            JOIN conversations ON conversations.id = given.id AND delete_time IS NOT NULL, LATERAL (
                SELECT sequence FROM items
                WHERE conversation_id = given.id AND sequence > CASE given.number WHEN 1 THEN $2::bigint ELSE 0 END
                ORDER BY sequence LIMIT $3) AS found
            LIMIT $3) AS given (number, id, sequence)
        GROUP BY number, id
    ), removed AS (
        DELETE FROM items USING ranges
        WHERE items.conversation_id = ranges.id AND items.sequence BETWEEN ranges.first AND ranges.last
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM removed) AS removed, (SELECT sum(size) FROM ranges) AS found, number, last AS sequence
    FROM ranges ORDER BY number DESC LIMIT 1"""
_REMOVE_REQUESTS = """
    DELETE FROM requests WHERE (conversation_id, principal, method, request_id) IN (
        SELECT conversation_id, principal, method, request_id FROM requests
        WHERE conversation_id = ANY($1) LIMIT $2)"""
_REMOVE_ATTRIBUTES = """
    DELETE FROM conversation_attributes WHERE (conversation_id, attribute) IN (
        SELECT conversation_id, attribute FROM conversation_attributes
        WHERE conversation_id = ANY($1) LIMIT $2)"""
_REMOVE_EXPIRATIONS = """
    DELETE FROM expirations WHERE conversation_id IN (
        SELECT conversation_id FROM expirations WHERE conversation_id = ANY($1) LIMIT $2)"""
_REMOVE_PENDING = "DELETE FROM pending WHERE conversation_id = ANY($1)"  # one row of each at most, so in one step
_REMOVE_IMPORTS = """
    DELETE FROM imports WHERE conversation_id IN (
        SELECT conversation_id FROM imports WHERE conversation_id = ANY($1) LIMIT $2)"""
_REMOVE_CONVERSATIONS = """
    DELETE FROM conversations WHERE id = ANY($1) AND delete_time IS NOT NULL
    AND NOT EXISTS (SELECT FROM items WHERE items.conversation_id = conversations.id)"""


async def remove_conversations(session: Session, ids: Sequence[str], note: Note, *, requests: bool = False) -> None:
    """Removes tombstones with items, request ids, attributes, timers and places in the queue.

    Their rows in `activity` went when they became tombstones.
    A conversation that lives again, or that got an item meanwhile, stays.

    Args:
        session: With the settings `LOOKUPS`, and not in a transaction.
        ids: Of conversations that nobody appends to any more, some `CONVERSATIONS` of them.
        note: Is told of each step.
        requests: Whether their request ids go now. Otherwise these go when they are old, so that a create that is
            repeated until then does not make the conversation anew.
    """
    await _remove_all(session, "imports", _REMOVE_IMPORTS, ids, note)  # no stream stores more items then
    await _remove_items(session, ids, note)
    if requests:
        await _remove_all(session, "requests", _REMOVE_REQUESTS, ids, note)
    await _remove_all(session, "attributes", _REMOVE_ATTRIBUTES, ids, note)
    await _remove_all(session, "expirations", _REMOVE_EXPIRATIONS, ids, note)
    await session.execute(_REMOVE_PENDING, ids)
    async with session.transaction():
        await note("conversations", count_of(await session.execute(_REMOVE_CONVERSATIONS, ids)))


async def _remove_items(session: Session, ids: Sequence[str], note: Note) -> None:
    sequence = 0
    while ids:
        async with session.transaction():
            last = await session.fetchrow(_REMOVE_ITEMS, ids, sequence, STEP)
            if last is None:
                return
            await note("items", last["removed"])
        if last["found"] < STEP:
            return
        ids, sequence = ids[last["number"] - 1 :], last["sequence"]


async def _remove_all(session: Session, table: str, statement: str, ids: Sequence[str], note: Note) -> None:
    """Runs a statement that removes at most `STEP` rows until it finds no more."""
    count = STEP
    while count == STEP:
        async with session.transaction():
            count = count_of(await session.execute(statement, ids, STEP))
            await note(table, count)
