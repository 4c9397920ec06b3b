"""Fixtures of the interceptors' tests."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture
def without_collection() -> Iterator[None]:
    """No garbage collection: only what nothing refers to is freed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
