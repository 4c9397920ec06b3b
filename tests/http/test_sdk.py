"""OpenAI's own Python SDK, against the edge: it changes its base URL and nothing else."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, DefaultHttpx2Client, OpenAI

from tests.support.http import EdgeService, edge_service
from tests.support.samples import SAMPLES, as_stored, strictly
from tests.support.service import Service

HELLO: Any = {"role": "user", "content": "hello"}


@pytest.fixture
async def client(edge: EdgeService) -> AsyncIterator[AsyncOpenAI]:
    """A client as applications make it."""
    async with AsyncOpenAI(base_url=f"http://{edge.address}/v1", api_key="unused") as made:
        yield made


async def test_conversations(client: AsyncOpenAI) -> None:
    """Create, retrieve, update and delete return the SDK's objects."""
    made = await client.conversations.create(metadata={"a": "b"}, items=[HELLO])
    assert ("conversation", {"a": "b"}) == (made.object, made.metadata)
    assert made == await client.conversations.retrieve(made.id)
    assert {} == (await client.conversations.update(made.id, metadata=None)).metadata
    gone = await client.conversations.delete(made.id)
    assert (made.id, "conversation.deleted", True) == (gone.id, gone.object, gone.deleted)


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages(client: AsyncOpenAI, order: Any) -> None:
    """The SDK walks 45 items by sevens in both directions, and every `include` is accepted."""
    made = await client.conversations.create()
    for start in range(0, 45, 15):
        items: Any = [{**HELLO, "content": str(start + n)} for n in range(15)]
        await client.conversations.items.create(made.id, items=items)
    include: Any = ["reasoning.encrypted_content", "message.output_text.logprobs", "file_search_call.results"]
    found: Any = client.conversations.items.list(made.id, limit=7, order=order, include=include)
    texts = [int(item.content[0].text) async for item in found]
    assert sorted(texts, reverse=order == "desc") == texts == [*range(45)][:: 1 if order == "asc" else -1]


async def test_items(client: AsyncOpenAI) -> None:
    """One item is retrieved and deleted; the SDK's form of it is what was sent, for every type there is."""
    made = await client.conversations.create()
    sent = [item for name, item in SAMPLES.items() if name.startswith(("out/", "any/"))]
    for start in range(0, len(sent), 20):
        batch: Any = [
            {**item, "id": f"{item['id']}{start}{n}"[:64]} if item.get("id") else item
            for n, item in enumerate(sent[start : start + 20])
        ]
        answer = await client.conversations.items.create(made.id, items=batch)
        for given, item in zip(batch, answer.data, strict=True):
            read = item.to_dict(exclude_unset=True)
            expected = as_stored(given)
            added = {key: read[key] for key in ("id", "status") if key in read and expected.get(key) is None}
            assert strictly({**expected, **added}) == strictly(read)
    (first, *_) = (await client.conversations.items.list(made.id, limit=1)).data
    assert first == await client.conversations.items.retrieve(str(first.id), conversation_id=made.id)
    conversation = await client.conversations.items.delete(str(first.id), conversation_id=made.id)
    assert made.id == conversation.id
    with pytest.raises(openai.NotFoundError) as missing:
        await client.conversations.items.retrieve(str(first.id), conversation_id=made.id)
    assert str(missing.value.request_id).startswith("req_")


async def test_errors(client: AsyncOpenAI) -> None:
    """Each status is the SDK's exception, with code and param."""
    made = await client.conversations.create()
    with pytest.raises(openai.BadRequestError) as bad:
        await client.conversations.items.list(made.id, limit=1000)
    assert ("integer_above_max_value", "limit", 400) == (bad.value.code, bad.value.param, bad.value.status_code)
    with pytest.raises(openai.NotFoundError) as missing:
        await client.conversations.items.list(made.id, after="msg_x")
    assert (None, "after") == (missing.value.code, missing.value.param)
    with pytest.raises(openai.UnprocessableEntityError) as reused:
        for metadata in ({}, {"a": "b"}):
            await client.conversations.create(metadata=metadata, extra_headers={"Idempotency-Key": "sdk-key"})
    assert "idempotency_key_reused" == reused.value.code


async def test_a_unix_socket(service: Service, short_folder: Path) -> None:
    """The SDK of an application beside a sidecar, as docs/kubernetes.md has it: a socket, and callers with names."""
    sockets = {"listen": f"unix:{short_folder}/grpc", "http_listen": f"unix:{short_folder}/http"}

    def work() -> list[str]:
        clients = [
            OpenAI(
                base_url="http://localhost/v1",
                api_key="unused",
                default_headers={"x-principal": name},
                http_client=DefaultHttpx2Client(transport=httpx2.HTTPTransport(uds=f"{short_folder}/http")),
            )
            for name in ("alice", "bob")
        ]
        with clients[0] as alice, clients[1] as bob:
            made = alice.conversations.create(items=[HELLO])
            with pytest.raises(openai.NotFoundError):
                bob.conversations.retrieve(made.id)
            return [item.type for item in alice.conversations.items.list(made.id)]

    # Other tests have made conversations of tenants in this database.
    async with edge_service(service.url, identity="proxy", proxy_require_tenant=False, **sockets):
        assert ["message"] == await asyncio.to_thread(work)


async def test_without_waiting(edge: EdgeService) -> None:
    """The synchronous client works likewise."""

    def work() -> list[str]:
        with OpenAI(base_url=f"http://{edge.address}/v1", api_key="unused") as client:
            made = client.conversations.create(items=[HELLO, HELLO])
            return [item.type for item in client.conversations.items.list(made.id, limit=1)]

    assert ["message", "message"] == await asyncio.to_thread(work)
