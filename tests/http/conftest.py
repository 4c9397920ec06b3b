"""Fixtures of the tests of the HTTP edge."""

from collections.abc import AsyncIterator

import pytest

from tests.support.http import EdgeService, HttpClient, edge_service
from tests.support.service import Service


@pytest.fixture(scope="session")
async def edge(service: Service) -> AsyncIterator[EdgeService]:
    """One service with an edge for all tests that do not mind each other's conversations."""
    async with edge_service(service.url) as served:
        yield served


@pytest.fixture
def http(edge: EdgeService) -> HttpClient:
    """A client of the edge of `edge`."""
    return edge.http
