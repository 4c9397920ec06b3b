"""Counts that parts of the service keep, and `server.observability.metrics` reads."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeAlias, get_args

from server.observability.histogram import Histogram

# Of a statement: an append stores items, a write changes something else.
StatementKind: TypeAlias = Literal["read", "append", "write"]

_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.5, 5.0)
_SHARERS = (2, 4, 8, 16, 32, 64, 128)
REASONS = ("pool", "connection", "race", "timeout", "server")  # of failures of a statement


class StoreStats:
    """Counts of one pool since its start.

    Attributes:
        seconds: Of each attempt of a statement, from a free connection to the answer, by kind.
        waits: Seconds for a connection to become free, of statements that had to wait.
        failures: Attempts that failed, by reason.
        retries: Attempts after a failure of the connection or a race.
        reads: Short reads of calls; several may share a round trip.
        shared_reads: Reads in a round trip of several.
        appends: Appends of calls; several may share a statement.
        shared_appends: Appends in a statement for several.
        creates: Conversations that were created; several may share a statement.
        shared_creates: Creates in a statement for several.
        items: Items that were appended.
    """

    def __init__(self) -> None:
        self.seconds = {kind: Histogram(_SECONDS) for kind in get_args(StatementKind)}
        self.waits = Histogram(_SECONDS)
        self.failures = Counter(dict.fromkeys(REASONS, 0))
        self.retries = 0
        self.reads = 0
        self.shared_reads = Histogram(_SHARERS)
        self.appends = 0
        self.shared_appends = Histogram(_SHARERS)
        self.creates = 0
        self.shared_creates = Histogram(_SHARERS)
        self.items = 0


STALLED_SECONDS = 10.0  # in which a caller has not taken a message


class WatchStats:
    """Counts of the watches of this process.

    Args:
        kinds: Of changes.

    Attributes:
        changes: That were told, by kind.
        delays: Seconds from the `create_time` of an item to the message that told of it, behind the first of a stream.
    """

    def __init__(self, kinds: Iterable[str]) -> None:
        self.changes = Counter(dict.fromkeys(kinds, 0))
        self.delays = Histogram(_SECONDS)
        self._writing: dict[object, float] = {}

    @property
    def stalled(self) -> int:
        """How many callers have not taken a message for `STALLED_SECONDS`."""
        late = time.monotonic() - STALLED_SECONDS
        return sum(since < late for since in self._writing.values())

    @contextmanager
    def writing(self, stream: object) -> Iterator[None]:
        """While it is open, ``stream`` waits until its caller has taken a message."""
        self._writing[stream] = time.monotonic()
        try:
            yield
        finally:
            del self._writing[stream]


class TransferStats:
    """Counts of the exports and imports of this process.

    Attributes:
        exported: Conversations that were sent whole.
        imported: Conversations that were imported, by outcome: `created`, `present` before, `refused`.
        exported_items: Items of those that were sent.
        imported_items: Items that were stored.
    """

    def __init__(self) -> None:
        self.exported = 0
        self.imported = Counter(created=0, present=0, refused=0)
        self.exported_items = 0
        self.imported_items = 0


class PurgeStats:
    """Counts of the purges of this process.

    Attributes:
        last: When a purge succeeded, in seconds since 1970; 0 for never.
    """

    def __init__(self) -> None:
        self.runs = Counter(done=0, skipped=0, failed=0)
        self.rows = Counter(conversations=0, items=0, requests=0, changes=0, expired=0)
        self.last = 0.0

    def done(self, rows: Mapping[str, int]) -> None:
        """Counts a purge that removed ``rows``."""
        self.runs["done"] += 1
        self.rows.update(rows)
        self.last = time.time()


class ActivityStats:
    """The queue of the order by activity, as this process has seen it last.

    Attributes:
        pending: Conversations in it.
        oldest_seconds: For how long the oldest of them has been; 0 if there is none.
    """

    def __init__(self) -> None:
        self.pending = 0
        self.oldest_seconds = 0.0


class ErasureStats:
    """Counts of the erasures that this process has carried on.

    Attributes:
        running: How many are carried on now.
    """

    def __init__(self) -> None:
        self.runs = Counter(done=0, failed=0)
        self.rows = Counter(conversations=0, items=0, foreign_items=0, requests=0)
        self.running = 0

    def done(self, rows: Mapping[str, int]) -> None:
        """Counts an erasure that has removed ``rows``."""
        self.runs["done"] += 1
        self.rows.update(rows)


class JwksStats:
    """Fetches of an issuer's keys.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.fetches = Counter(good=0, failed=0)
        self._clock = clock
        self._last_good = clock()

    @property
    def age(self) -> float:
        """Seconds since the last good fetch, or since the start."""
        return self._clock() - self._last_good

    def succeeded(self) -> None:
        """Counts a good fetch."""
        self.fetches["good"] += 1
        self._last_good = self._clock()

    def failed(self) -> None:
        """Counts a fetch that failed."""
        self.fetches["failed"] += 1


# Seconds. Most calls take a few milliseconds; a minute is the longest a unary call may take by default.
SECONDS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class MethodStats:
    """Counts of the calls of one method.

    Attributes:
        kind: `unary`, `bidi_stream` and so on.
        codes: Ended calls by status code.
        received: Messages of streams.
        sent: Likewise.
    """

    __slots__ = ("codes", "kind", "received", "seconds", "sent", "started")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.started = 0
        self.codes: Counter[str] = Counter(OK=0)
        self.seconds = Histogram(SECONDS)
        self.received = 0
        self.sent = 0
