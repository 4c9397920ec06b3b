"""What the store counts of itself, for whoever asks (`server.observability.metrics`)."""

import time
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from server.observability.histogram import Histogram

_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.5, 5.0)
_SHARERS = (2, 4, 8, 16, 32, 64, 128)
KINDS = ("read", "append", "write")
REASONS = ("pool", "connection", "race", "timeout")  # why a statement fails


class StoreStats:
    """Of one pool, from its start."""

    def __init__(self) -> None:
        self.seconds = {kind: Histogram(_SECONDS) for kind in KINDS}  # each try, from a free connection to the answer
        self.waits = Histogram(_SECONDS)  # for a connection to be free, of statements that had to
        self.failures = Counter(dict.fromkeys(REASONS, 0))  # tries
        self.retries = 0  # after a failure for a connection or a race
        self.reads = 0  # of calls: several may be one statement
        self.shared_reads = Histogram(_SHARERS)  # reads in a round trip of several
        self.appends = 0
        self.shared_appends = Histogram(_SHARERS)  # appends in a statement for several
        self.items = 0  # that were appended


@lru_cache(maxsize=1024)
def kind_of(text: str) -> str:
    """Which of `KINDS` a statement is: an append places items, a write changes something else."""
    if "INSERT INTO items" in text:
        return "append"
    return "write" if any(verb in text for verb in ("INSERT INTO", "UPDATE ", "DELETE FROM")) else "read"


class PurgeStats:
    """Of this process."""

    def __init__(self) -> None:
        self.runs = Counter(done=0, skipped=0, failed=0)
        self.rows = Counter(conversations=0, items=0, requests=0)
        self.last = 0.0  # when one was done, in seconds since 1970

    def done(self, rows: Mapping[str, int]) -> None:
        """One removed ``rows``."""
        self.runs["done"] += 1
        self.rows.update(rows)
        self.last = time.time()
