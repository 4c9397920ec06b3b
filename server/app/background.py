"""What the process does beside serving calls."""

import asyncio

import asyncpg
import structlog

from server.errors import OperatorError, ServiceError
from server.observability.stats import PurgeStats
from server.settings.service import Settings
from server.store.purge import purge

log = structlog.get_logger(__name__)


async def purge_periodically(settings: Settings, url: str, purges: PurgeStats) -> None:
    """Purges every `purge_every_minutes` until it is cancelled; a purge that fails is logged and counted.

    Args:
        settings: How often to purge, and what to keep.
        url: Of PostgreSQL itself.
        purges: Where the runs are counted.
    """
    while True:
        await asyncio.sleep(settings.purge_every_minutes * 60)
        try:
            result = await purge(url, settings.purge_after, settings.keep_requests)
        except (ServiceError, OperatorError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            purges.runs["failed"] += 1
            log.warning("purge failed", error=type(error).__name__)
            continue
        if result is None:
            purges.runs["skipped"] += 1
            log.info("purged", skipped="another process is at it")
        else:
            purges.done(vars(result))
            log.info("purged", **vars(result))
