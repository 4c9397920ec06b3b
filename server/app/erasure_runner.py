"""Carries erasures on, beside the calls that ask for them: an erasure does not end with its caller."""

import asyncio
import random
from collections import Counter
from functools import partial

import asyncpg
import structlog

from server.authorization.audit_log import record_erasure
from server.errors import OperatorError, ServiceError, StoreUnavailable
from server.observability.stats import ErasureStats
from server.requests import filters
from server.store.connection.failures import DRIVER_ERRORS
from server.store.erasing import count_rows, erase_next, unfinished_tenants
from server.store.erasures import Subject, rows_of

log = structlog.get_logger(__name__)

_AT_ONCE = 2  # erasures, and counts, each with a connection of its own
_RETRY_SECONDS = (5.0, 10.0)  # least and most, after one that failed
_FAILURES = (ServiceError, OperatorError, *DRIVER_ERRORS)

parse_filter = partial(filters.parse, fields=filters.CONVERSATION_FIELDS)


class ErasureRunner:
    """The erasures that this process carries on, one of a tenant at a time.

    Args:
        url: Of PostgreSQL itself, not of PgBouncer.
        writers_seconds: As of `erase_next`.
        stats: Where erasures are counted.
    """

    def __init__(self, url: str, writers_seconds: float, stats: ErasureStats) -> None:
        self._url = url
        self._writers_seconds = writers_seconds
        self._stats = stats
        self._woken = asyncio.Event()
        self._tenants: set[str] = set()  # whose erasures this process carries on now
        self._again: set[str] = set()  # those of them that may have another one since
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._counts = asyncio.Semaphore(_AT_ONCE)

    def wake(self) -> None:
        """Looks soon whether there is an erasure that nobody carries on."""
        self._woken.set()

    async def run(self) -> None:
        """Carries erasures on whenever it is woken, until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._woken.wait()
                self._woken.clear()
                for tenant in await self._unfinished():
                    if tenant in self._tenants:
                        self._again.add(tenant)
                        continue
                    self._tenants.add(tenant)
                    group.create_task(self._run_tenant(tenant), name="erasure")

    async def count(self, tenant: str, subject: Subject) -> Counter[str]:
        """Returns how many rows an erasure would remove.

        Raises:
            StoreUnavailable: The database cannot be reached.
        """
        async with self._counts:
            try:
                return await count_rows(self._url, tenant, subject)
            except (OperatorError, *DRIVER_ERRORS) as error:
                raise StoreUnavailable from error

    async def _unfinished(self) -> list[str]:
        try:
            return await unfinished_tenants(self._url)
        except _FAILURES:  # of a database that cannot be reached, readiness tells
            self._retry()
            return []

    async def _run_tenant(self, tenant: str) -> None:
        """Carries on the erasures of a tenant until there are no more, or another session is at them."""
        try:
            async with self._places:
                self._stats.running += 1
                try:
                    while row := await erase_next(self._url, tenant, parse_filter, self._writers_seconds):
                        self._note_end(row)
                finally:
                    self._stats.running -= 1
        except _FAILURES as error:
            self._note_failure(error)
        finally:
            self._tenants.discard(tenant)
            if tenant in self._again:
                self._again.discard(tenant)
                self.wake()

    def _note_end(self, row: asyncpg.Record) -> None:
        rows = rows_of(row)
        self._stats.done(rows)
        record_erasure(row["tenant"], row["requested_by"], str(row["id"]), rows)

    def _note_failure(self, error: Exception) -> None:
        self._stats.runs["failed"] += 1
        log.warning("erasure failed", error=type(error).__name__)
        self._retry()

    def _retry(self) -> None:
        asyncio.get_running_loop().call_later(random.uniform(*_RETRY_SECONDS), self.wake)  # noqa: S311 - jitter
