"""Gives the conversations of one principal to another, in short steps.

Without identity every conversation belongs to `local` in the tenant `''`. With identity nobody is that
principal, so what it made has to be given to somebody who exists.
"""

from dataclasses import dataclass

import asyncpg

from server.errors import OperatorError
from server.store.connection.opening import direct_connection
from server.store.migrate import require_schema
from server.store.sessions import Session, open_sessions

STEP = 1_000  # conversations of one transaction
SESSION = {"lock_timeout": "5s"}  # appends wait for a step, and a step for appends

_COUNT = "SELECT count(*) FROM conversations WHERE tenant = $1 AND owner = $2 AND delete_time IS NULL"
# By the index conversations_by_owner, from its front: what is moved is no longer there.
_FIND = "SELECT id FROM conversations WHERE tenant = $1 AND owner = $2 AND delete_time IS NULL LIMIT $3"
# Items without an author are of whoever owns the conversation: those of the owner before become the new one's, and
# the new one's own are no longer those of somebody else.
# Locked in the order of ids, as appends lock them, so that nobody waits in a circle.
_MOVE = """
    WITH locked AS MATERIALIZED (
        SELECT id FROM conversations
        WHERE id = ANY($1) AND tenant = $2 AND owner = $3 AND delete_time IS NULL ORDER BY id FOR UPDATE),
    moved AS (
        UPDATE conversations SET tenant = $4, owner = $5, revision = revision + 1, version = version + 1,
            update_time = greatest(now(), update_time)
        FROM locked WHERE conversations.id = locked.id RETURNING conversations.id),
    attributes AS (
        UPDATE conversation_attributes SET tenant = $4
        FROM moved WHERE conversation_attributes.conversation_id = moved.id AND $4 <> $2),
    authors AS (
        UPDATE items SET author = ''
        FROM moved WHERE items.conversation_id = moved.id AND items.author = $5 AND items.author <> '')
    SELECT count(*) FROM moved"""


@dataclass(frozen=True)
class Owner:
    """A principal as conversations name it."""

    tenant: str
    id: str


class ChangeOfOwnerFailed(OperatorError):
    """Some conversations still belong to the owner before; the text is for the operator."""


async def count_conversations(url: str, owner: Owner) -> int:
    """Returns how many conversations belong to ``owner``, without deleted ones.

    Raises:
        SchemaTooOld: As `require_schema`.
        DatabaseConfigError, DatabaseUnreachable: As `direct_connection`.
    """
    await require_schema(url)
    async with direct_connection(url) as connection:
        return int(await connection.fetchval(_COUNT, owner.tenant, owner.id))


async def change_owner(url: str, old: Owner, new: Owner) -> int:
    """Gives all conversations of ``old`` to ``new``, with what both wrote there; returns how many there were.

    The service may run meanwhile. Deleted conversations keep their owner until the purge removes them.

    Raises:
        SchemaTooOld: As `require_schema`.
        ChangeOfOwnerFailed: A conversation stayed locked; steps before it are done.
        DatabaseConfigError, DatabaseUnreachable: As `direct_connection`.
    """
    await require_schema(url)
    total = 0
    async with direct_connection(url, settings=SESSION) as connection:
        for session in await open_sessions(connection):
            while found := [row["id"] for row in await session.fetch(_FIND, old.tenant, old.id, STEP)]:
                total += await _move(session, found, old, new, total)
    return total


async def _move(session: Session, found: list[str], old: Owner, new: Owner, total: int) -> int:
    """Moves the conversations ``found``; ``total`` were moved before them."""
    try:
        row = await session.fetchrow(_MOVE, found, old.tenant, old.id, new.tenant, new.id)
    except asyncpg.LockNotAvailableError:
        raise ChangeOfOwnerFailed(
            f"A conversation is locked by another transaction; {total} have been changed. Run it again."
        ) from None
    return int(row["count"]) if row else 0
