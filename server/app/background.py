"""What the process does beside serving calls."""

import asyncio
from collections.abc import Callable

import asyncpg
import structlog

from server.errors import OperatorError, ServiceError
from server.observability.stats import PurgeStats
from server.settings.retention import RetentionFile
from server.settings.service import Settings
from server.store.purge import purge
from server.store.retention import mark_all_expired

log = structlog.get_logger(__name__)

_MARK_SECONDS = 60.0  # conversations that have expired are hidden meanwhile, but lists read past them
_FAILURES = (ServiceError, OperatorError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError)


async def purge_periodically(
    settings: Settings,
    url: str,
    retention: RetentionFile,
    purges: PurgeStats,
    carry_on_erasures: Callable[[], None] = lambda: None,
) -> None:
    """Purges every `purge_every_minutes` until it is cancelled; a purge that fails is logged and counted.

    Args:
        settings: How often to purge, and what to keep.
        url: Of PostgreSQL itself.
        retention: Whose limits are applied.
        purges: Where the runs are counted.
        carry_on_erasures: Called before each, for those whose process is gone.
    """
    while True:
        await asyncio.sleep(settings.purge_every_minutes * 60)
        carry_on_erasures()
        try:
            result = await purge(url, settings.purge_after, settings.keep_requests, retention.rules())
        except _FAILURES as error:
            purges.runs["failed"] += 1
            log.warning("purge failed", error=type(error).__name__)
            continue
        if result is None:
            purges.runs["skipped"] += 1
            log.info("purged", skipped="another process is at it")
        else:
            purges.done(vars(result))
            log.info("purged", **vars(result))


async def mark_expired_periodically(url: str, purges: PurgeStats) -> None:
    """Marks conversations that have expired, every minute, until it is cancelled; a run that fails is logged.

    Args:
        url: Of PostgreSQL itself.
        purges: Where they are counted.
    """
    while True:
        await asyncio.sleep(_MARK_SECONDS)
        try:
            purges.rows["expired"] += await mark_all_expired(url)
        except _FAILURES as error:
            log.warning("marking expired conversations failed", error=type(error).__name__)
