"""Memory that large requests took is given back to the system."""

import asyncio
import ctypes
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.app import memory
from server.app import service as app
from server.app.memory import find_glibc, give_memory_back
from server.observability.resident_memory import resident_bytes
from tests.support.commands import ROOT
from tests.support.service import Service, running_service

MIB = 1024 * 1024
needs_glibc = pytest.mark.skipif(find_glibc() is None, reason="the C library is not glibc")


# --- when it is done


class Trims:
    """Stands for glibc: counts the calls of malloc_trim."""

    def __init__(self) -> None:
        self.count = 0

    def malloc_trim(self, pad: int) -> int:
        """Trims nothing."""
        assert pad == 0
        self.count += 1
        return 1


async def looked(monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> tuple[int, list[float]]:
    """How often memory was trimmed, and the pauses before each look, when the process has these sizes in turn.

    The first size is the one at the start; each trim takes one more, that after it.
    """
    glibc, pauses, left = Trims(), [], [size * MIB for size in sizes]
    own = asyncio.current_task()  # a service of another test may look at its own memory meanwhile

    async def sleep(seconds: float) -> None:
        if asyncio.current_task() is not own:
            await asyncio.sleep(seconds)
            return
        if not left:
            raise asyncio.CancelledError
        pauses.append(seconds)

    def look() -> int:
        return left.pop(0) if asyncio.current_task() is own else resident_bytes()

    monkeypatch.setattr(memory, "asyncio", SimpleNamespace(sleep=sleep, to_thread=asyncio.to_thread))
    monkeypatch.setattr(memory, "resident_bytes", look)
    with pytest.raises(asyncio.CancelledError):
        await give_memory_back(glibc)
    return glibc.count, pauses


LOOKS: list[tuple[str, list[int], int, list[float]]] = [
    ("a process that does not grow", [100, 100, 115, 90], 0, [2, 2, 2]),
    ("less than the growth that counts", [100, 115], 0, [2]),
    ("the growth that counts", [100, 116, 100], 1, [2]),
    ("a trim that helps", [100, 200, 100, 200, 100], 2, [2, 2]),
    ("a trim that helps a little", [100, 200, 195, 200, 195], 2, [2, 2]),
    ("a trim that hardly helps", [100, 200, 197, 200, 197], 2, [2, 4]),
    ("trims that do not help are seldom", [100, *[200] * 10], 5, [2, 4, 8, 8, 8]),
    ("a trim that helps again", [100, 200, 200, 200, 200, 200, 100, 200, 100], 4, [2, 4, 8, 2]),
    ("a process that is small again", [100, 200, 200, 110, 200, 200], 2, [2, 4, 2]),
    ("a smaller size than at the start counts from then on", [100, 200, 50, 66, 50], 2, [2, 2]),
]


@pytest.mark.parametrize(("sizes", "trims", "pauses"), [pytest.param(*rest, id=name) for name, *rest in LOOKS])
async def test_when_memory_is_given_back(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int], trims: int, pauses: list[float]
) -> None:
    """It is trimmed while the process is 16 MiB larger than it was at its smallest, and seldom when that is in vain."""
    assert (trims, pauses) == await looked(monkeypatch, sizes)


# --- what it does, in a process of its own

_HEAD = """
import asyncio, ctypes, sys, threading
from server.app import memory
glibc = memory.find_glibc()
rss = lambda: memory.resident_bytes() // 2**20
"""
_TRIM = (
    _HEAD
    + """
memory._SHORTEST = 0.05
async def main():
    task = asyncio.create_task(memory.give_memory_back(glibc))
    await asyncio.sleep(0)
    blocks = [bytes(2000) for _ in range(100_000)]
    blocks[:-1] = []  # the last one keeps the heap from shrinking
    before = rss()
    for _ in range(200):
        await asyncio.sleep(0.05)
        if rss() < before - 100:
            break
    task.cancel()
    print(before - rss())
asyncio.run(main())
"""
)
_LARGE = (
    _HEAD
    + """
import resource
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
memory.limit_arenas(glibc)
for size in (15, 31):
    del (first := [bytearray(size * 2**20)])[:]
    before = faults()
    del (again := [bytearray(size * 2**20)])[:]
    print(faults() - before)
"""
)
_ARENAS = (
    _HEAD
    + """
memory.limit_arenas(glibc)
barrier = threading.Barrier(12)
def work():
    kept = [bytes(2000) for _ in range(100)]
    barrier.wait()
threads = [threading.Thread(target=work) for _ in range(12)]
for each in threads: each.start()
for each in threads: each.join()
glibc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(glibc.fopen(sys.argv[1].encode(), b"w"))
glibc.malloc_info(0, file)
glibc.fclose(file)
print(open(sys.argv[1]).read().count("<heap nr="))
"""
)


def printed(script: str, *arguments: str) -> int:
    """The number that a script prints."""
    (number,) = numbers(script, *arguments)
    return number


def numbers(script: str, *arguments: str) -> list[int]:
    """The numbers that a script prints, in an interpreter with the allocator of the system."""
    command = (sys.executable, "-c", script, *arguments)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


@needs_glibc
async def test_what_was_freed_goes_back() -> None:
    """Small blocks that glibc would keep, because one behind them is in use, are given back in the background."""
    assert await asyncio.to_thread(printed, _TRIM) > 100


@needs_glibc
async def test_large_blocks_are_kept_for_the_next_request() -> None:
    """A block as large as a message is taken again: fresh from the system, each of its 3,840 pages costs a fault."""
    faults = await asyncio.to_thread(numbers, _LARGE)
    assert len(faults) == 2
    assert max(faults) < 100


@needs_glibc
async def test_threads_share_two_arenas(tmp_path: Path) -> None:
    """Twelve threads that allocate at the same time have two arenas, not one each."""
    assert await asyncio.to_thread(printed, _ARENAS, str(tmp_path / "info")) == 2


# --- where it is done


def test_resident_bytes() -> None:
    """The resident memory is counted in bytes, and a block that was written to counts."""
    before = resident_bytes()
    block = bytearray(64 * MIB)
    grown = resident_bytes() - before
    assert 60 * MIB < grown < 100 * MIB, len(block)


def test_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the C library is another one, or there is no /proc, nothing is done."""
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(malloc_trim=None))
    assert find_glibc() is not None
    with monkeypatch.context() as without:
        without.setattr(memory, "STATM", Path("/nowhere"))
        assert find_glibc() is None
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    assert find_glibc() is None


@pytest.mark.parametrize("found", [True, False])
async def test_a_service_gives_memory_back(service: Service, monkeypatch: pytest.MonkeyPatch, *, found: bool) -> None:
    """A running service limits the arenas before it serves, and trims in a supervised task; elsewhere neither."""
    limited: list[Any] = []
    glibc = Trims() if found else None
    monkeypatch.setattr(app, "find_glibc", lambda: glibc)
    monkeypatch.setattr(app, "limit_arenas", limited.append)
    before = asyncio.all_tasks()
    async with running_service(service.url):
        assert limited == [glibc] * found
        assert found == ("memory" in {task.get_name() for task in asyncio.all_tasks() - before})
