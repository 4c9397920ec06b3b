"""Lists on a distributed database: a call for each worker, whose pages are merged."""

import asyncio
from typing import Any

import pytest
from conversations.v1.conversations_service_pb2 import ListConversationsRequest as Request

from server.store.sql.shard_functions import LIST
from tests.support.build import create, delete
from tests.support.service import Service, recorded_statements
from tests.support.shards import move, other_places

pytestmark = pytest.mark.citus
OWNED = 'owner = "local"'


async def made(service: Service, count: int = 40) -> list[str]:
    """The ids of new conversations, which lie on all shards."""
    return [str((await service.stub.CreateConversation(create())).id) for _ in range(count)]


async def listed(service: Service, **request: Any) -> list[str]:
    """The ids of all conversations, read page by page."""
    ids: list[str] = []
    token = ""
    while True:
        page = await service.stub.ListConversations(Request(page_token=token, **request))
        ids += [each.id for each in page.conversations]
        if not (token := page.next_page_token):
            return ids


@pytest.mark.parametrize("filter_text", ["", OWNED], ids=["of the tenant", "of an owner"])
async def test_a_list_asks_each_worker_once(own_service: Service, filter_text: str) -> None:
    """Its pages are those of one server, whichever worker has a conversation; what was deleted is in none."""
    ids = await made(own_service)
    await own_service.stub.DeleteConversation(delete(ids.pop(7)))
    assert ids[::-1] == await listed(own_service, filter=filter_text, page_size=7)
    with recorded_statements(own_service.database) as sent:
        assert ids[::-1] == await listed(own_service, filter=filter_text, page_size=100)
    assert [True, True] == [LIST in text for text in sent]  # there are two workers


async def test_a_scan_asks_all_workers_at_once(own_service: Service) -> None:
    """No index leads to what a filter by metadata finds, so Citus lets all search at the same time."""
    made = await own_service.stub.CreateConversation(create(metadata={"a": "b"}))
    with recorded_statements(own_service.database) as sent:
        assert [made.id] == await listed(own_service, filter='metadata.a = "b"')
    assert [False] == [LIST in text for text in sent]


async def test_a_list_after_a_move(own_service: Service) -> None:
    """Where the shards lie is looked up again when a worker lacks one."""
    ids = await made(own_service)
    assert ids[::-1] == await listed(own_service, filter=OWNED, page_size=100)
    here, there = await other_places(own_service, ids[0])
    await move(own_service, ids[0], here, there)
    assert ids[::-1] == await listed(own_service, filter=OWNED, page_size=100)
    with recorded_statements(own_service.database) as sent:
        assert ids[::-1] == await listed(own_service, filter=OWNED, page_size=100)
    assert 2 == len(sent)


async def test_lists_while_shards_move(own_service: Service) -> None:
    """Each has every conversation once."""
    ids = await made(own_service)
    here, there = await other_places(own_service, ids[0])
    stop = asyncio.Event()
    lists = 0

    async def read() -> None:
        nonlocal lists
        while not stop.is_set():
            assert ids[::-1] == await listed(own_service, filter=OWNED, page_size=100)
            lists += 1

    reading = asyncio.create_task(read())
    try:
        for _ in range(2):
            await move(own_service, ids[0], here, there)
            await move(own_service, ids[0], there, here)
    finally:
        stop.set()
        await reading
    assert lists > 4
