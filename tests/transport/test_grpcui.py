"""The web page of grpcui, started and filled in as docs/clients.md says."""

import asyncio
import json
import os
import re
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from conversations.v1.conversations_service_pb2 import ListItemsRequest

from server.app.service import SERVICES
from tests.support.browser import Page, browser_page
from tests.support.build import get
from tests.support.commands import ROOT
from tests.support.pages import code_blocks
from tests.support.programs import ending
from tests.support.service import Service

PAGE = ROOT / "docs" / "clients.md"
PICTURE = PAGE.parent / "grpcui.png"  # `UPDATE_PICTURES=1` takes a new one
REQUEST = {
    "conversation": {"metadata": {"topic": "demo"}},
    "items": [{"item": {"message": {"role": "ROLE_USER", "content": [{"input_text": {"text": "What is gRPC?"}}]}}}],
}


@asynccontextmanager
async def web_page(service: Service) -> AsyncIterator[str]:
    """The URL of a page for this service; no browser is opened."""
    _, command = code_blocks(PAGE)["grpcui"]
    words = command.replace("127.0.0.1:50051", service.address).split()
    process = await asyncio.create_subprocess_exec(
        words[0], "-open-browser=false", *words[1:], stdout=PIPE, stderr=STDOUT
    )
    assert process.stdout is not None
    async with ending(process), asyncio.timeout(30):
        line = (await process.stdout.readline()).decode()
        match = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert match, line
        yield match[0]


async def invoke(page: Page, method: str, request: object) -> str:
    """What the page shows after a call."""
    for field, value in (("#grpc-service", SERVICES[0]), ("#grpc-method", method)):
        await page.choose(field, value)
        await page.wait_for("$.active === 0")  # jQuery has fetched the form, which replaces what was typed before
    await page.click("a[href='#grpc-request-raw-tab']")
    await page.type("#grpc-request-raw-text", json.dumps(request, indent=2))
    await page.click("#grpc-request-raw-tab .grpc-invoke")
    await page.wait_for("$.active === 0 && document.querySelector('#grpc-response-tab').checkVisibility()")
    fields = "[...document.querySelectorAll('#grpc-response-tab textarea')].map(each => each.value)"
    return str(await page.ask(f"document.querySelector('#grpc-response-tab').innerText + {fields}.join(' ')"))


@pytest.mark.tool("grpcui", "chromium")
async def test_a_person_with_a_browser(service: Service) -> None:
    """A conversation is created on the page, and an error is shown with code and text."""
    async with web_page(service) as url, browser_page() as page:
        await page.resize(900, 700)
        await page.open(url)
        await page.wait_for("$.active === 0")
        shown = await invoke(page, "CreateConversation", REQUEST)
        match = re.search(r"conv_[0-9a-f]{48}", shown)
        assert match, shown
        if os.environ.get("UPDATE_PICTURES"):
            await page.ask("document.querySelector('#grpc-service').scrollIntoView()")
            PICTURE.write_bytes(await page.picture())
        made = await service.stub.GetConversation(get(match[0]))
        assert {"topic": "demo"} == made.metadata
        (item,) = (await service.stub.ListItems(ListItemsRequest(conversation_id=made.id))).items
        assert "What is gRPC?" == item.message.content[0].input_text.text
        shown = await invoke(page, "GetConversation", {"conversation_id": "conv_nobody"})
        assert re.search(r"NotFound.+Conversation with id 'conv_nobody' not found\.", shown, re.DOTALL), shown


def test_the_picture() -> None:
    """It is a small PNG."""
    assert PICTURE.read_bytes().startswith(b"\x89PNG")
    assert PICTURE.stat().st_size < 100_000
