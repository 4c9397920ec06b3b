"""The service in this process, and a client of it over the wire."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from conversations.v1.item_pb2 import Item

from server.app.service import run_service
from server.settings.service import load
from server.store.connection.database import Database
from server.store.connection.execution import Execute, Execution, Interceptor, Rows
from tests.support.build import list_items
from tests.support.postgres import fresh_database


@dataclass(frozen=True)
class Service:
    """A running service and a client connected to it."""

    address: str
    url: str
    database: Database
    channel: grpc.aio.Channel
    stub: Any


@asynccontextmanager
async def running_service(url: str, **settings: Any) -> AsyncIterator[Service]:
    """Runs the service on the database at ``url``; ``settings`` replace the defaults of tests."""
    values = {"listen": "127.0.0.1:0", "database_url": url, "purge_every_minutes": 0, "grace_seconds": 1, **settings}
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(run_service(load(**values)))
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(served.address, options=options))
        stub = ConversationsServiceStub(channel)
        yield Service(served.address, url, served.store.database, channel, stub)


@contextmanager
def recorded_statements(database: Database) -> Iterator[list[str]]:
    """The texts of the statements that the store runs meanwhile, in order."""
    texts: list[str] = []

    async def record(execute: Execute, execution: Execution) -> Rows:
        texts.append(execution.statement.text)
        return await execute(execution)

    with intercepted(database, record):
        yield texts


@contextmanager
def intercepted(database: Database, interceptor: Interceptor) -> Iterator[None]:
    """Runs ``interceptor`` around the statements of ``database`` meanwhile."""
    database.interceptors.append(interceptor)
    try:
        yield
    finally:
        database.interceptors.remove(interceptor)


def before_statement(number: int, act: Callable[[], Awaitable[object]]) -> Callable[[Execute, Execution], Any]:
    """An interceptor that does something before a statement runs; the statements of that are not counted."""
    count, acting = 0, False

    async def run(execute: Execute, execution: Execution) -> Rows:
        nonlocal count, acting
        if not acting:
            count += 1
            if count == number:
                acting = True
                await act()
                acting = False
        return await execute(execution)

    return run


async def list_all_items(stub: Any, conversation_id: str, order: Any) -> list[Item]:
    """All items of a conversation, read page by page."""
    found: list[Item] = []
    token = ""
    while True:
        request = list_items(conversation_id, order=order, page_size=100, page_token=token)
        page = await stub.ListItems(request)
        found += page.items
        token = page.next_page_token
        if not token:
            return found


@asynccontextmanager
async def shared_service(postgres: str, template: str) -> AsyncIterator[Service]:
    """A service with a database of its own, for fixtures that live as long as a module."""
    async with fresh_database(postgres, template) as url, running_service(url) as served:
        yield served
