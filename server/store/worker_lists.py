"""Lists of all conversations of a distributed database: a call for each worker that has some (docs/adr/0042).

Citus would ask each shard for itself, and plan each of these questions anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import asyncpg

from server.errors import Conflict
from server.store.connection.database import Database
from server.store.shard_keys import KEYS
from server.store.sql.routing import route_list
from server.store.sql.statement import Statement

_WORKERS = Statement(
    f"""
    SELECT array_agg(shard ORDER BY shard) AS shards, min(key) AS key
    FROM ({KEYS}) AS keys JOIN pg_catalog.pg_dist_placement ON shardid = shard GROUP BY groupid""",  # noqa: S608 - ours
    (),
    "read",
)


@dataclass(frozen=True)
class Worker:
    """What is known of a worker.

    Attributes:
        key: Stands for a conversation there.
        shards: All that it has.
    """

    key: str
    shards: tuple[int, ...]


class WorkerLists:
    """Reads the first conversations of each worker, one worker after the other: a list holds one connection.

    Args:
        database: That is distributed, when something is read.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._workers: tuple[Worker, ...] = ()

    async def fetch(self, statement: Statement, values: Mapping[str, Any]) -> list[asyncpg.Record]:
        """Returns the rows of ``statement`` from each worker, in no order; all of them from Citus if it has to ask.

        Raises:
            Conflict: Shards move all the time.
            StoreUnavailable, DeadlineExceeded: As `Database.fetch`.
        """
        call = route_list(statement)
        if call == statement:
            return await self._database.fetch(statement, values)
        try:
            return await self._ask_workers(call, values, self._workers or await self._find_workers())
        except Conflict:  # a shard is elsewhere by now
            return await self._ask_workers(call, values, await self._find_workers())

    async def _find_workers(self) -> tuple[Worker, ...]:
        rows = await self._database.fetch(_WORKERS, {})
        self._workers = tuple(Worker(row["key"], tuple(row["shards"])) for row in rows)
        return self._workers

    async def _ask_workers(
        self, call: Statement, values: Mapping[str, Any], workers: tuple[Worker, ...]
    ) -> list[asyncpg.Record]:
        found: list[asyncpg.Record] = []
        for worker in workers:
            there = {"worker_key": worker.key, "worker_shards": worker.shards}
            found += await self._database.fetch(call, {**values, **there})
        return found
