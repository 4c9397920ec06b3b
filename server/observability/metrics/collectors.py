"""The metrics of each part of the service, and the registry of a server."""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib.metadata import version

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from server import __version__
from server.observability.metrics.calls import of_calls
from server.observability.metrics.event_loop_lag import EventLoopLag
from server.observability.metrics.families import count, counts, gauge, histogram, histograms_by, info
from server.observability.metrics.sources import (
    CertificateState,
    ConcurrencyCounts,
    DrainState,
    PolicyState,
    PollerState,
    PoolState,
    ReadyState,
    RequestCounts,
    Sources,
    TaskState,
    WatchState,
)
from server.observability.stats import ActivityStats, ErasureStats, JwksStats, PurgeStats, TransferStats, WatchStats
from server.settings.service import Settings

_VERSIONS = ("grpcio", "protobuf", "asyncpg")


class ServiceCollector(Collector):
    """Collects the metrics of each part at every scrape."""

    def __init__(self, parts: Iterable[Callable[[], Iterator[Metric]]]) -> None:
        self._parts = tuple(parts)

    def collect(self) -> Iterator[Metric]:
        """Yields all families."""
        for part in self._parts:
            yield from part()


def registry_of(sources: Sources, lag: EventLoopLag) -> CollectorRegistry:
    """Returns a registry of all metrics."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(
        ServiceCollector(
            (
                partial(of_calls, sources.calls),
                partial(of_capacity, sources.settings, sources.unary, sources.streams, sources.watches, sources.drain),
                partial(of_watches, sources.followed, sources.watch_stats),
                partial(of_change_log, sources.poller),
                partial(of_transfers, sources.transfers),
                partial(of_store, sources.database),
                partial(of_sharing, sources.database),
                partial(of_purges, sources.settings, sources.purges),
                partial(of_activity, sources.settings, sources.activity),
                partial(of_erasures, sources.erasures),
                partial(of_policy, sources.policy),
                partial(of_jwks, sources.jwks),
                partial(of_certificate, sources.certificate),
                partial(of_process, sources.readiness, sources.drain, lag),
                partial(of_tasks, sources.tasks),
                partial(of_http, sources.settings, sources.requests, sources.connections),
            )
        )
    )
    return registry


def of_capacity(
    settings: Settings,
    calls: ConcurrencyCounts,
    streams: ConcurrencyCounts,
    watches: ConcurrencyCounts,
    drain: DrainState,
) -> Iterator[Metric]:
    """Yields what is in flight, and what was refused because of a limit."""
    yield gauge("calls_running", "Unary calls in flight.", calls.count)
    yield gauge("calls_limit", "The most unary calls that may be in flight (max_calls).", settings.calls_limit)
    yield gauge("streams_running", "Streams of appends in flight.", streams.count)
    yield gauge("streams_limit", "The most of these that may be in flight (max_streams).", settings.max_streams)
    yield gauge("watches_running", "Watches in flight.", watches.count)
    yield gauge("watches_limit", "The most watches that may be in flight (max_watches).", settings.max_watches)
    refused = {"calls": calls.refused, "streams": streams.refused, "watches": watches.refused}
    yield counts("capacity_refusals", "Calls refused with RESOURCE_EXHAUSTED: too many were in flight.", "of", refused)
    yield gauge("draining", "1 while the process drains.", drain.draining.is_set())


def of_watches(followed: WatchState, stats: WatchStats) -> Iterator[Metric]:
    """Yields what is followed, what was told, and how well the writes of other processes are found."""
    yield gauge("watched_conversations", "Conversations that are followed in this process.", followed.count)
    yield counts("watch_changes", "Changes that watches were told.", "kind", stats.changes)
    yield histogram("watch_delay_seconds", "Age of items when watches were told of them.", stats.delays)
    yield gauge("watch_stalled", "Watches whose caller has not taken a message for ten seconds.", stats.stalled)
    yield gauge(
        "watch_poll_seconds", "How long the last poll for writes of other processes took.", followed.poll_seconds
    )
    yield gauge("watch_poll_age_seconds", "Seconds since that poll; 0 while nothing is followed.", followed.poll_age)


def of_change_log(poller: PollerState) -> Iterator[Metric]:
    """Yields who follows the log of changes, and how well."""
    yield gauge("change_log_watches", "Watches of all conversations in this process.", poller.count)
    yield gauge("change_log_poll_seconds", "How long the last read of the log of changes took.", poller.poll_seconds)
    yield gauge(
        "change_log_poll_age_seconds",
        "Seconds since the last read of the log; 0 without such watches.",
        poller.poll_age,
    )
    yield gauge(
        "change_log_held_seconds",
        "How long changes have waited to be told, because an older transaction is still running.",
        poller.held_seconds,
    )


def of_transfers(stats: TransferStats) -> Iterator[Metric]:
    """Yields what was exported and imported."""
    yield count("exports", "Conversations that were exported.", stats.exported)
    yield count("exported_items", "Items of these.", stats.exported_items)
    description = "Conversations that were imported, by outcome: created, present before, or refused."
    yield counts("imports", description, "outcome", stats.imported)
    yield count("imported_items", "Items that imports stored.", stats.imported_items)


def of_store(database: PoolState) -> Iterator[Metric]:
    """Yields the metrics of the pool and of statements."""
    own = database.stats
    yield gauge("pool_size", "The most connections that the pool may open (pool_size).", database.size)
    yield gauge("pool_open", "Connections that are open.", database.pool.get_size())
    yield gauge("pool_in_use", "Connections that run a statement.", database.in_use)
    yield gauge("pool_waiting", "Statements that wait for a connection.", database.waiting)
    description = "1 if the tables are distributed over several servers, 0 if they are in one."
    yield gauge("database_distributed", description, int(database.layout.is_distributed))
    yield histogram("pool_wait_seconds", "Time that statements waited for a connection when none was free.", own.waits)
    yield histograms_by(
        "conversations_statement_seconds",
        "Time of a statement on its connection, by kind: read, append or write.",
        ("kind",),
        (((kind,), seconds) for kind, seconds in own.seconds.items()),
    )
    yield counts(
        "statement_failures",
        "Statements that failed: no connection free (pool), connection lost, race (40001, 40P01), timeout.",
        "reason",
        own.failures,
    )
    yield count("statement_retries", "Statements tried again after a lost connection or a race.", own.retries)


def of_sharing(database: PoolState) -> Iterator[Metric]:
    """Yields how many calls share statements and round trips."""
    own = database.stats
    yield count("items_appended", "Items appended.", own.items)
    yield count("appends", "Appends of items to a conversation.", own.appends)
    yield histogram("shared_appends", "Appends in each statement that several appends shared.", own.shared_appends)
    yield count("creates", "Conversations created.", own.creates)
    yield histogram("shared_creates", "Creates in each statement that several creates shared.", own.shared_creates)
    yield count("reads", "Short reads.", own.reads)
    yield histogram("shared_reads", "Short reads in each round trip that several reads shared.", own.shared_reads)


def of_purges(settings: Settings, purges: PurgeStats) -> Iterator[Metric]:
    """Yields the metrics of purges; nothing if another process purges."""
    if not settings.purge_every_minutes:
        return
    yield counts("purge_runs", "Purges: done, failed, or skipped because another one ran.", "outcome", purges.runs)
    yield counts("purge_rows", "Rows that purges removed.", "kind", purges.rows)
    yield gauge(
        "purge_last_success_timestamp_seconds", "Time of the last successful purge; 0 before the first.", purges.last
    )


def of_activity(settings: Settings, activity: ActivityStats) -> Iterator[Metric]:
    """Yields the queue of the order by activity; nothing if it is turned off."""
    if not settings.activity:
        return
    yield gauge("pending", "Conversations whose place in lists by activity may have to be moved.", activity.pending)
    yield gauge("pending_oldest_seconds", "For how long the oldest of these has waited.", activity.oldest_seconds)


def of_erasures(erasures: ErasureStats) -> Iterator[Metric]:
    """Yields the metrics of the erasures that this process carries on."""
    yield gauge("erasures_running", "Erasures that this process carries on now.", erasures.running)
    yield counts("erasures", "Erasures: done, or failed and tried again later.", "outcome", erasures.runs)
    yield counts("erasure_rows", "Rows that erasures removed.", "kind", erasures.rows)


def of_policy(policy: PolicyState) -> Iterator[Metric]:
    """Yields the metrics of the policy in force."""
    changes = {"loaded": policy.reloads, "refused": policy.refused}
    yield counts("policy_reloads", "Changes of the policy: loaded, or refused for a mistake.", "outcome", changes)
    yield gauge("policy_loaded_timestamp_seconds", "When the policy in force was loaded.", policy.loaded_at)
    yield gauge("policy_rules", "Rules of the policy in force.", len(policy.policy.rules))
    yield gauge("policy_stale", "1 while the file holds another policy that was refused.", policy.stale)


def of_jwks(jwks: JwksStats | None) -> Iterator[Metric]:
    """Yields the metrics of the issuer's keys, if they come from a URL."""
    if jwks is None:
        return
    yield counts("jwks_fetches", "Fetches of the issuer's keys, by outcome: good or failed.", "outcome", jwks.fetches)
    yield gauge("jwks_age_seconds", "Seconds since the last good fetch; after a day keys are dropped.", jwks.age)


def of_certificate(certificate: CertificateState | None) -> Iterator[Metric]:
    """Yields the metrics of the certificate that is served."""
    if certificate is None:
        return
    expiry = certificate.expires_at.timestamp()
    yield gauge("certificate_expiry_timestamp_seconds", "When the certificate that is served expires.", expiry)
    description = "Changes of the certificate's files, by outcome: taken or refused."
    yield counts("certificate_reloads", description, "outcome", certificate.reloads)


def of_process(readiness: ReadyState, drain: DrainState, lag: EventLoopLag) -> Iterator[Metric]:
    """Yields readiness, event loop lag and build information."""
    ready = readiness.ready and not drain.draining.is_set()
    yield gauge("ready", "1 while the server takes calls, as its health says.", ready)
    yield histogram("event_loop_lag_seconds", "Delay of the event loop, measured four times a second.", lag.seconds)
    yield info("build_info", "Versions of what runs; the value is 1.", _build())


def of_tasks(tasks: TaskState) -> Iterator[Metric]:
    """The background tasks."""
    description = "Ends of background tasks, which are started again."
    yield counts("background_task_failures", description, "task", tasks.failures)


def of_http(
    settings: Settings, requests: RequestCounts | None, connections: ConcurrencyCounts | None
) -> Iterator[Metric]:
    """Yields requests over HTTP, under the name and labels of OpenTelemetry's conventions, and their connections."""
    if requests is None or connections is None:
        return
    labels = ("http_request_method", "http_route", "http_response_status_code")
    description = "Time from the head of a request over HTTP to its answer."
    yield histograms_by("http_server_request_duration_seconds", description, labels, requests.seconds.items())
    yield gauge("http_connections", "Connections over HTTP that are open.", connections.count)
    limit = settings.http_max_connections
    yield gauge("http_connections_limit", "The most of these that may be open (http_max_connections).", limit)
    yield count("http_connection_refusals", "Connections over HTTP refused: too many were open.", connections.refused)


def _build() -> Mapping[str, str]:
    return {"version": __version__, "python": platform.python_version()} | {name: version(name) for name in _VERSIONS}
