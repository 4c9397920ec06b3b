"""Shards of a distributed database, which tests move."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from tests.support.service import Service

_SHARD = "get_shard_id_for_distribution_column('conversations', $1::text)"
_PLACE = f"SELECT nodename, nodeport FROM citus_shards WHERE shardid = {_SHARD}"
_MOVE = f"SELECT citus_move_shard_placement({_SHARD}, $2, $3, $4, $5, 'block_writes')"


@asynccontextmanager
async def connected(url: str, name: str = "") -> AsyncIterator[asyncpg.Connection]:
    """A session with the name of an application."""
    connection = await asyncpg.connect(url, server_settings={"application_name": name})
    try:
        yield connection
    finally:
        await connection.close()


async def other_places(service: Service, conversation_id: str) -> tuple[tuple[str, int], tuple[str, int]]:
    """The node that has a conversation, and another worker."""
    async with connected(service.url) as coordinator:
        here = tuple(await coordinator.fetchrow(_PLACE, conversation_id))
        rows = await coordinator.fetch("SELECT nodename, nodeport FROM pg_dist_node WHERE groupid > 0")
    return here, next(tuple(row) for row in rows if tuple(row) != here)


async def move(service: Service, conversation_id: str, source: tuple[str, int], target: tuple[str, int]) -> None:
    """Moves the shard of a conversation, and removes what is left of it."""
    async with connected(service.url) as coordinator:
        await coordinator.execute("CALL citus_cleanup_orphaned_resources()")
        await coordinator.execute("SET citus.override_table_visibility TO off")
        await coordinator.fetch(_MOVE, conversation_id, *source, *target)
        await coordinator.execute("CALL citus_cleanup_orphaned_resources()")
