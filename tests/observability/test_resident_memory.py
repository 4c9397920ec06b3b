"""The memory of the process, and whether much of it was taken of late."""

import time

import pytest

from server.observability.resident_memory import MemoryGauge, resident_bytes


def test_memory_of_this_process() -> None:
    """It grows by what is made."""
    before = resident_bytes()
    made = b"x" * 32 * 1024 * 1024
    assert resident_bytes() >= before + len(made) - 4 * 1024 * 1024


def test_memory_is_short_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte more than the limit is short; after a minute it is what the process needs; less counts at once."""
    used, now = [1000], [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    gauge = MemoryGauge(100, lambda: used[0])
    used[0] = 1100
    assert not gauge.is_short()
    used[0] = 1101
    assert gauge.is_short()
    now[0] = 31
    assert gauge.is_short()
    now[0] = 62
    assert not gauge.is_short()
    used[0] = 900
    assert not gauge.is_short()
    used[0] = 1001
    assert gauge.is_short()
