"""CPU time of the servers, of PostgreSQL and of the load, over a while."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path

from bench.cpu import family_seconds, serving_seconds, spent


@dataclass(frozen=True)
class Usage:
    """What was used.

    Attributes:
        seconds: By the clock.
        server: CPU seconds of the servers.
        postgres: CPU seconds of PostgreSQL, without autovacuum workers.
        generators: CPU seconds of each process that makes load.
        busy: The part of all cores that any program of the machine used.
    """

    seconds: float
    server: float
    postgres: float
    generators: Sequence[float]
    busy: float

    @property
    def others(self) -> float:
        """The part of all cores that programs used which are no part of the run."""
        own = (self.server + self.postgres + sum(self.generators)) / self.seconds
        return max(0.0, self.busy - own / (cpu_count() or 1))


class Meter:
    """Measures from now on until `read`."""

    def __init__(self, servers: Sequence[int], postmaster: int, generators: Sequence[int]) -> None:
        self._servers, self._postmaster, self._generators = servers, postmaster, generators
        self._began = time.monotonic()
        self._before = self._now()

    def _now(self) -> tuple[list[float], dict[int, float], list[float], tuple[int, int]]:
        servers, generators = ([family_seconds(pid) for pid in pids] for pids in (self._servers, self._generators))
        return servers, serving_seconds(self._postmaster), generators, _machine()

    def read(self) -> Usage:
        """Returns what has been used since the beginning."""
        (servers, database, generators, machine), now = self._before, self._now()
        idle, total = now[3][0] - machine[0], now[3][1] - machine[1]
        return Usage(
            seconds=time.monotonic() - self._began,
            server=sum(now[0]) - sum(servers),
            postgres=spent(database, now[1]),
            generators=[after - before for before, after in zip(generators, now[2], strict=True)],
            busy=1 - idle / total if total else 0.0,
        )


def _machine() -> tuple[int, int]:
    """Ticks that all cores were idle or waited for a disk, and all their ticks."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)
