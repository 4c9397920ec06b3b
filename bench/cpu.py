"""CPU time and memory of processes, from /proc; a busy machine hardly changes these figures."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_GONE = (FileNotFoundError, ProcessLookupError)  # a process or thread that ended while it was read


def seconds(pid: int) -> float:
    """Returns the user and system time of a process so far.

    The scheduler counts nanoseconds, but only of living threads. The ticks of the
    process, of 10 ms, include ended threads. Neither counts too much, so the larger one is returned.
    """
    fields = _stat(pid)
    return max(_scheduled(pid), (int(fields[11]) + int(fields[12])) / _TICKS)


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _scheduled(pid: int) -> float:
    """Returns the CPU time of the living threads; 0 if the kernel does not report it."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(*_GONE):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def children(pid: int) -> list[int]:
    """Returns the child processes of ``pid`` that still run."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(*_GONE):
            found += map(int, (task / "children").read_text().split())
    return found


def family(pid: int) -> Iterator[int]:
    """Returns a process and all its descendants."""
    yield pid
    with suppress(*_GONE):
        for child in children(pid):
            yield from family(child)


def family_seconds(pid: int) -> float:
    """Returns the CPU time of a process and its descendants; ended ones count through their parent."""
    total = 0.0
    for member in family(pid):
        with suppress(*_GONE):
            fields = _stat(member)
            total += seconds(member) + (int(fields[13]) + int(fields[14])) / _TICKS
    return total


def serving_seconds(postmaster: int) -> dict[int, float]:
    """CPU time of each PostgreSQL process, without autovacuum workers, which serve any database at any time."""
    found: dict[int, float] = {}
    for member in family(postmaster):
        with suppress(*_GONE):
            if "autovacuum worker" not in Path(f"/proc/{member}/cmdline").read_text():
                found[member] = seconds(member)
    return found


def spent(before: dict[int, float], after: dict[int, float]) -> float:
    """Returns the CPU time that the remaining processes used between two readings."""
    return sum(total - before.get(pid, 0.0) for pid, total in after.items())


def family_mebibytes(pid: int) -> float:
    """Returns the resident memory of a process and its descendants; shared pages count for each."""
    total = 0
    for member in family(pid):
        with suppress(*_GONE):
            pages = int(Path(f"/proc/{member}/statm").read_text().split()[1])
            total += pages * os.sysconf("SC_PAGE_SIZE")
    return total / 2**20
