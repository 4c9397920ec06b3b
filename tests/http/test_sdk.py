"""OpenAI's own Python SDK, against the edge: it changes its base URL and nothing else."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.support.http import EdgeService
from tests.support.samples import SAMPLES, as_stored, strictly

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


async def test_without_waiting(edge: EdgeService) -> None:
    """The synchronous client works likewise."""

    def work() -> list[str]:
        with OpenAI(base_url=f"http://{edge.address}/v1", api_key="unused") as client:
            made = client.conversations.create(items=[HELLO, HELLO])
            return [item.type for item in client.conversations.items.list(made.id, limit=1)]

    assert ["message", "message"] == await asyncio.to_thread(work)
