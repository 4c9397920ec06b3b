"""A fixture for pytest: put `pytest_plugins = ["conversations_client.pytest_plugin"]` into the topmost conftest.py."""

from collections.abc import Iterator

import pytest

from conversations_client.ephemeral import EphemeralService, ephemeral_service


@pytest.fixture(scope="session")
def conversation_service() -> Iterator[EphemeralService]:
    """A service of its own for all tests of the session; `connect(conversation_service.address)` reaches it."""
    with ephemeral_service() as service:
        yield service
