"""CPU time and memory of processes, from /proc: figures that a noisy machine leaves alone."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_GONE = (FileNotFoundError, ProcessLookupError)  # a process or thread that ended while it was read


def seconds(pid: int) -> float:
    """User and system time of one process so far.

    The scheduler counts nanoseconds, but of living threads only; the process's
    own ticks of 10 ms keep the ended ones. Neither is ever too much.
    """
    fields = _stat(pid)
    return max(_scheduled(pid), (int(fields[11]) + int(fields[12])) / _TICKS)


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _scheduled(pid: int) -> float:
    """Time on a CPU of the living threads; 0 where the kernel does not say."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(*_GONE):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def children(pid: int) -> list[int]:
    """The processes that ``pid`` has started and that still run."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(*_GONE):
            found += map(int, (task / "children").read_text().split())
    return found


def family(pid: int) -> Iterator[int]:
    """A process, its children, theirs, and so on."""
    yield pid
    with suppress(*_GONE):
        for child in children(pid):
            yield from family(child)


def family_seconds(pid: int) -> float:
    """Time of a process and its family; those that ended count through their parent."""
    total = 0.0
    for member in family(pid):
        with suppress(*_GONE):
            fields = _stat(member)
            total += seconds(member) + (int(fields[13]) + int(fields[14])) / _TICKS
    return total


def serving_seconds(postmaster: int) -> dict[int, float]:
    """Time of PostgreSQL by process, without the workers of autovacuum: they work for any database at any time."""
    found: dict[int, float] = {}
    for member in family(postmaster):
        with suppress(*_GONE):
            if "autovacuum worker" not in Path(f"/proc/{member}/cmdline").read_text():
                found[member] = seconds(member)
    return found


def spent(before: dict[int, float], after: dict[int, float]) -> float:
    """What the processes that are still there used in between."""
    return sum(total - before.get(pid, 0.0) for pid, total in after.items())


def family_mebibytes(pid: int) -> float:
    """Resident memory of a process and its family; what they share counts for each."""
    total = 0
    for member in family(pid):
        with suppress(*_GONE):
            pages = int(Path(f"/proc/{member}/statm").read_text().split()[1])
            total += pages * os.sysconf("SC_PAGE_SIZE")
    return total / 2**20
