"""What metrics are read from: a Protocol for each part of the service, which none of them has to know."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from server.observability.histogram import Histogram
from server.observability.stats import (
    ActivityStats,
    ErasureStats,
    JwksStats,
    MethodStats,
    PurgeStats,
    StoreStats,
    TransferStats,
    WatchStats,
)
from server.policy.rules import Policy
from server.settings.service import Settings

Probes = Mapping[str, Callable[[], Awaitable[bool]]]  # what tells whether a probe succeeds, by its path


class CallCounts(Protocol):
    """Calls by method, and those of methods that are not served."""

    @property
    def calls(self) -> Mapping[str, MethodStats]: ...
    @property
    def unknown(self) -> int: ...


class RequestCounts(Protocol):
    """Requests over HTTP by method, route and status."""

    @property
    def seconds(self) -> Mapping[tuple[str, str, str], Histogram]: ...


class ConcurrencyCounts(Protocol):
    """Calls or connections in flight, and those refused because there were too many."""

    @property
    def count(self) -> int: ...
    @property
    def refused(self) -> int: ...


class Flag(Protocol):
    """Something that is so or not, such as an `asyncio.Event`."""

    def is_set(self) -> bool: ...


class WatchState(Protocol):
    """What follows conversations."""

    @property
    def count(self) -> int: ...
    @property
    def poll_age(self) -> float: ...
    @property
    def poll_seconds(self) -> float: ...


class PollerState(WatchState, Protocol):
    """What follows the log of changes."""

    @property
    def held_seconds(self) -> float: ...


class DrainState(Protocol):
    """Whether the server ends."""

    @property
    def draining(self) -> Flag: ...


class ReadyState(Protocol):
    """Whether the store can be used."""

    @property
    def ready(self) -> bool: ...


class Connections(Protocol):
    """A pool of connections, such as asyncpg's."""

    def get_size(self) -> int: ...


class LayoutState(Protocol):
    """How the tables lie."""

    @property
    def is_distributed(self) -> bool: ...


class PoolState(Protocol):
    """The connections to the database, and the statements on them."""

    @property
    def size(self) -> int: ...
    @property
    def pool(self) -> Connections: ...
    @property
    def in_use(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def stats(self) -> StoreStats: ...
    @property
    def layout(self) -> LayoutState: ...


class PolicyState(Protocol):
    """The policy in force, and the changes of its file."""

    @property
    def policy(self) -> Policy: ...
    @property
    def reloads(self) -> int: ...
    @property
    def refused(self) -> int: ...
    @property
    def stale(self) -> bool: ...
    @property
    def loaded_at(self) -> float: ...


class CertificateState(Protocol):
    """The certificate that is served, and the changes of its files by their outcome."""

    @property
    def expires_at(self) -> datetime: ...
    @property
    def reloads(self) -> Mapping[str, int]: ...


class TaskState(Protocol):
    """The background tasks, and how often each has ended although it should not."""

    @property
    def failures(self) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class Sources:
    """Everything that metrics are read from; None for a part that this service does not have.

    Attributes:
        requests: Of the HTTP edge.
        connections: Likewise.
    """

    settings: Settings
    calls: CallCounts
    unary: ConcurrencyCounts
    streams: ConcurrencyCounts
    watches: ConcurrencyCounts
    followed: WatchState
    poller: PollerState
    watch_stats: WatchStats
    transfers: TransferStats
    drain: DrainState
    readiness: ReadyState
    database: PoolState
    policy: PolicyState
    purges: PurgeStats
    activity: ActivityStats
    erasures: ErasureStats
    jwks: JwksStats | None
    certificate: CertificateState | None
    tasks: TaskState
    requests: RequestCounts | None
    connections: ConcurrencyCounts | None
