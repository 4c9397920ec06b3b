"""A cluster of Citus that tests may break, for all tests of a module."""

from collections.abc import AsyncIterator

import pytest

from tests.support.citus import Cluster
from tests.support.citus_faults import distributed_cluster
from tests.support.service import Service, running_service


@pytest.fixture(scope="module")
async def cluster() -> AsyncIterator[Cluster]:
    """A cluster of its own."""
    async with distributed_cluster() as running:
        yield running


@pytest.fixture(scope="module")
async def served(cluster: Cluster) -> AsyncIterator[Service]:
    """A service on it."""
    async with running_service(cluster.url) as running:
        yield running
