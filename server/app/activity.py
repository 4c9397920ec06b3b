"""Keeps the order of lists by activity, beside the calls: one process at a time, on a connection of its own."""

import asyncio
import random
from collections.abc import Callable

import asyncpg
import structlog

from server.errors import OperatorError
from server.observability.stats import ActivityStats
from server.store import activity
from server.store.connection.failures import DRIVER_ERRORS
from server.store.connection.layout import find_layout
from server.store.connection.opening import direct_connection

log = structlog.get_logger(__name__)

_PASS_SECONDS = 1.0  # from one pass over the queue to the next: so old the times of lists are
_COMPARE_SECONDS = 0.5  # of each pass, while times have to be compared
_RETRY_SECONDS = (5.0, 10.0)  # least and most, after a failure, or while another process is at it
_FAILURES = (OperatorError, *DRIVER_ERRORS)


class ActivityKeeper:
    """Moves the times of lists in this process, unless another one does.

    Args:
        url: Of PostgreSQL itself, not of PgBouncer.
        stats: Where the queue is counted.
        is_usable: Whether calls can use the database. While they cannot, nothing is logged here: an outage has a line
            of its own.
    """

    def __init__(self, url: str, stats: ActivityStats, is_usable: Callable[[], bool] = lambda: True) -> None:
        self._url = url
        self._stats = stats
        self._is_usable = is_usable
        self._failures = 0  # in a row
        self._is_logged = False

    async def run(self) -> None:
        """Works whenever no other process does, until it is cancelled."""
        while True:
            await self._try(self._work)
            await asyncio.sleep(random.uniform(*_RETRY_SECONDS))  # noqa: S311 - jitter

    async def note_off(self) -> None:
        """Notes once that appends leave nothing in the queue, so that all times are compared when they do again."""
        is_noted = False
        while True:
            is_noted = is_noted or await self._try(activity.begin_comparison)
            await asyncio.sleep(random.uniform(*_RETRY_SECONDS))  # noqa: S311 - jitter

    async def _try(self, work: activity.Work) -> bool:
        """Does some work on a connection; returns whether it did not fail. A failure that lasts is logged once."""
        try:
            async with direct_connection(self._url, settings=activity.SESSION) as connection:
                await work(connection)
        except _FAILURES as error:
            self._note_failure(error)
            return False
        self._note_success()
        return True

    def _note_failure(self, error: Exception) -> None:
        self._failures += 1  # the first one may be the begin of an outage that nobody else has noticed yet
        if self._failures > 1 and not self._is_logged and self._is_usable():
            log.warning("keeping the order by activity failed", error=type(error).__name__)
            self._is_logged = True

    def _note_success(self) -> None:
        self._failures, self._is_logged = 0, False

    async def _work(self, connection: asyncpg.Connection) -> None:
        """Passes over the queue again and again; returns if another process does."""
        if not (await find_layout(connection)).orders_by_activity:
            return
        has_lock, is_compared = await activity.acquire_lock(connection), False
        while has_lock:
            await activity.settle(connection)
            is_compared = is_compared or await activity.compare(connection, _COMPARE_SECONDS)
            await self._count(connection)
            self._note_success()
            await asyncio.sleep(_PASS_SECONDS)
        await self._count(connection)

    async def _count(self, connection: asyncpg.Connection) -> None:
        self._stats.pending, self._stats.oldest_seconds = await activity.queue_state(connection)
