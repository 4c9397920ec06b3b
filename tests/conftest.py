"""A real PostgreSQL and the real service, over the wire.

`TEST_DATABASE_URL` names a server where databases may be created; without it a
private one is started for the session.
"""

import os

# Before gRPC is imported: tests start processes while calls run, and its fork handlers crash the child now and then.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import grpc
import grpc.aio
import pytest
import uvloop
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from server.app.service import run_service
from server.settings.service import load
from server.store.connection.database import Database
from server.store.embedded import embedded
from server.store.migrate import migrate

_numbers = itertools.count(1)


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], Any]]:
    """The loop of production."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
async def postgres() -> AsyncIterator[str]:
    """A server's address, with a right to create databases."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
        return
    with TemporaryDirectory() as name:
        Path(name).chmod(0o711)  # the server is another user when we are root
        async with embedded(Path(name) / "data") as private:
            yield private.url


def with_database(url: str, name: str) -> str:
    """``url`` with another database."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc or "", f"/{name}", parts.query, ""))


@pytest.fixture(scope="session")
async def template(postgres: str) -> AsyncIterator[str]:
    """The name of a migrated database to copy."""
    name = f"template_{os.getpid()}"
    await _execute(postgres, f'CREATE DATABASE "{name}"')
    await migrate(with_database(postgres, name))
    yield name
    await _execute(postgres, f'DROP DATABASE "{name}" WITH (FORCE)')


@asynccontextmanager
async def fresh_database(postgres: str, template: str) -> AsyncIterator[str]:
    """The address of a migrated database of its own."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    await _execute(postgres, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    try:
        yield with_database(postgres, name)
    finally:
        await _execute(postgres, f'DROP DATABASE "{name}" WITH (FORCE)')


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@dataclass(frozen=True)
class Service:
    """A running service and a client of it."""

    address: str
    url: str
    database: Database
    channel: grpc.aio.Channel
    stub: Any


@asynccontextmanager
async def running(url: str, **settings: Any) -> AsyncIterator[Service]:
    """The service on the database at ``url``."""
    values = {"listen": "127.0.0.1:0", "database_url": url, "purge_every_minutes": 0, "grace_seconds": 1, **settings}
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(run_service(load(**values)))
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(served.address, options=options))
        stub = ConversationsServiceStub(channel)
        yield Service(served.address, url, served.store.database, channel, stub)


@pytest.fixture(scope="session")
async def service(postgres: str, template: str) -> AsyncIterator[Service]:
    """One service for all tests that do not mind each other's conversations."""
    async with fresh_database(postgres, template) as url, running(url) as served:
        yield served


@pytest.fixture
async def own_service(postgres: str, template: str) -> AsyncIterator[Service]:
    """A service with an empty database."""
    async with fresh_database(postgres, template) as url, running(url) as served:
        yield served


@pytest.fixture
def stub(service: Service) -> Any:
    """A client of `service`."""
    return service.stub


@dataclass(frozen=True)
class Problem:
    """What a client learns of a failed call."""

    code: str
    message: str
    reason: str
    metadata: dict[str, str]
    fields: dict[str, str]  # field of BadRequest to id of the broken rule
    details: tuple[str, ...]  # names of the detail messages


def problem_of(error: grpc.aio.AioRpcError) -> Problem:
    """The status of a failed call, taken apart."""
    trailers = dict(error.trailing_metadata() or ())
    status = Status.FromString(trailers.get("grpc-status-details-bin", b""))
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        if not detail.Unpack(info):
            detail.Unpack(bad)
    return Problem(
        code=error.code().name,
        message=error.details() or "",
        reason=info.reason,
        metadata=dict(info.metadata),
        fields={violation.field: violation.reason for violation in bad.field_violations},
        details=tuple(detail.type_url.rpartition(".")[2] for detail in status.details),
    )


async def problem(call: Any) -> Problem:
    """What ``call`` fails with; a call that succeeds, or fails with UNKNOWN, is a failed test."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is not grpc.StatusCode.UNKNOWN, caught.value
    return problem_of(caught.value)


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """The text of each statement that runs meanwhile."""
    texts: list[str] = []
    run = database._run

    async def counted(text: str, arguments: tuple[Any, ...]) -> list[asyncpg.Record]:
        texts.append(text)
        return await run(text, arguments)

    database._run = counted  # type: ignore[method-assign]
    try:
        yield texts
    finally:
        database._run = run  # type: ignore[method-assign]
