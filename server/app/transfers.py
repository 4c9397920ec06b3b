"""Builds the service of transfers."""

import asyncio

from server.interceptors.concurrency import StreamLimit
from server.observability.stats import TransferStats
from server.services.export_stream import ExportParts
from server.services.import_stream import ImportParts
from server.services.transfer import TransferServicer
from server.services.watch_stream import Watches
from server.settings.retention import RetentionFile
from server.settings.service import Settings
from server.store.connection.database import Database
from server.store.conversations import ConversationStore
from server.store.exports import Exports
from server.store.imports import Imports
from server.store.response_budget import ResponseBudget

_READS = 4  # exports that read and build a message at a time
_WRITES = 4  # imports that store a block at a time


def build_transfers(
    settings: Settings,
    database: Database,
    conversations: ConversationStore,
    responses: ResponseBudget,
    watches: Watches,
    draining: asyncio.Event,
    stats: TransferStats,
    retention: RetentionFile,
) -> TransferServicer:
    """Returns the service.

    Args:
        settings: Limits.
        database: Runs the statements.
        conversations: The store of conversations.
        responses: The budget of large responses.
        watches: Of which exports share the tokens, the time of a stream, and the count of those who wait.
        draining: Set when the drain begins.
        stats: What is counted.
        retention: For how long conversations of each tenant live.
    """
    exports = Exports(database, responses)
    exporting = ExportParts(
        conversations,
        exports,
        watches.tokens,
        watches.seconds,
        watches.refusing,
        watches.stats,
        stats,
        asyncio.Semaphore(_READS),
    )
    imports = Imports(database, conversations.hub)
    importing = ImportParts(
        imports, exports, settings.max_item_bytes, draining, stats, retention, asyncio.Semaphore(_WRITES)
    )
    limit = StreamLimit(settings.max_exports, settings.max_exports_per_principal, "exports")
    return TransferServicer(exporting, importing, limit)
