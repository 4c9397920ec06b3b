"""A real PostgreSQL and the real service, over the wire: what all folders share.

`TEST_DATABASE_URL` names a server where databases may be created; without it a
private one is started for the session.
"""

import os

# Before gRPC is imported: tests start processes while calls run, and its fork handlers crash the child now and then.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

import gc
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import uvloop

from server.store.embedded import run_embedded
from server.store.migrate import migrate
from tests.support.access import GuardedService, guarded_service
from tests.support.citus_tier import mark_for_citus
from tests.support.distributed import make_distributed_template
from tests.support.postgres import CITUS, drop_everywhere, execute, fresh_database, memory_folder, with_database
from tests.support.service import Service, running_service
from tests.support.skips import require_tools
from tests.support.tools import required_tools, search_path


def pytest_configure(config: pytest.Config) -> None:
    """Lets tests find the tools that they need, and checks the names of those that must be there."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # by a shell in the background; programs would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.disable()  # until all tests are collected: modules and tests are no garbage
    os.environ["PATH"] = search_path()
    try:
        required_tools(os.environ)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of the shared database with `citus` when that is distributed, and skips what cannot run then."""
    mark_for_citus(items, is_distributed=CITUS in os.environ)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Lets later collections of garbage leave out what lives as long as the tests."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test that needs a tool which is not installed; fails it where the tool is required."""
    require_tools(name for mark in item.iter_markers("tool") for name in mark.args)


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], Any]]:
    """The loop of production."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
async def postgres() -> AsyncIterator[str]:
    """A server's address, with a right to create databases."""
    if url := os.environ.get(CITUS) or os.environ.get("TEST_DATABASE_URL"):
        yield url
        return
    with TemporaryDirectory(dir=memory_folder()) as name:
        Path(name).chmod(0o711)  # the server is another user when we are root
        async with run_embedded(Path(name) / "data") as private:
            yield private.url


@pytest.fixture(scope="session")
async def template(postgres: str) -> AsyncIterator[str]:
    """The name of a migrated database to copy."""
    name = f"template_{os.getpid()}"
    if os.environ.get(CITUS):
        await make_distributed_template(postgres, name)
    else:
        await execute(postgres, f'CREATE DATABASE "{name}"')
        await migrate(with_database(postgres, name))
    yield name
    await drop_everywhere(postgres, name)


@pytest.fixture(scope="session")
async def service(postgres: str, template: str) -> AsyncIterator[Service]:
    """One service for all tests that do not mind each other's conversations."""
    async with fresh_database(postgres, template) as url, running_service(url) as served:
        yield served


@pytest.fixture
async def own_service(postgres: str, template: str) -> AsyncIterator[Service]:
    """A service with an empty database."""
    async with fresh_database(postgres, template) as url, running_service(url) as served:
        yield served


@pytest.fixture
def stub(service: Service) -> Any:
    """A client of `service`."""
    return service.stub


@pytest.fixture(scope="module")
async def guarded_shared(postgres: str, template: str) -> AsyncIterator[GuardedService]:
    """One service behind a proxy for all tests of a module; use `guarded`, which resets its policy."""
    async with guarded_service(postgres, template) as served:
        yield served


@pytest.fixture
def guarded(guarded_shared: GuardedService) -> Iterator[GuardedService]:
    """A service behind a proxy, under the default policy."""
    guarded_shared.obey([])
    yield guarded_shared
    guarded_shared.obey([])


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a path short enough for a Unix socket in it: about a hundred bytes at most."""
    with TemporaryDirectory() as name:
        yield Path(name)
