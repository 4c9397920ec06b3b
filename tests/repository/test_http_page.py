"""What docs/http.md prints works when pasted, and the OpenAPI document is that of the contract."""

import asyncio
import json
import re
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from server.http.openapi import DOCUMENT
from server.http.routes import ROUTES
from tests.support.http import edge_service
from tests.support.pages import code_blocks
from tests.support.service import Service

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "http.md"
PRINTED = "127.0.0.1:8080"


async def _output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, cwd=ROOT)
    output, errors = await process.communicate()
    assert (0, "") == (process.returncode, errors.decode())
    return output.decode()


@pytest.mark.slow
async def test_the_tour_with_the_sdk(service: Service) -> None:
    """The program prints the items, the changed metadata, and that the conversation is gone."""
    async with edge_service(service.url) as served:
        (script,) = code_blocks(PAGE, "python")["A tour with the Python SDK"]
        output = await _output(sys.executable, "-c", script.replace(PRINTED, str(served.address)))
    assert output.splitlines() == [
        "message user What is HTTP?",
        "message assistant A protocol that everything speaks.",
        "{'topic': 'done'}",
        "404 req_",
    ]


@pytest.mark.tool("curl")
async def test_the_tour_with_curl(service: Service) -> None:
    """Each command succeeds and shows what the text says."""
    async with edge_service(service.url) as served:
        (script,) = code_blocks(PAGE)["A tour with curl"]
        output = await _output("bash", "-euo", "pipefail", "-c", script.replace(PRINTED, str(served.address)))
    answers = [json.loads(each) for each in re.split(r"(?<=\})(?=\{)", output)]
    created, page, updated, first, second, listed, deleted = answers
    assert ["user", "assistant"] == [item["role"] for item in created["data"]]
    assert ["What is HTTP?"] == [item["content"][0]["text"] for item in page["data"]]
    assert {"state": "done"} == updated["metadata"]
    assert first == second
    assert updated["id"] in [each["id"] for each in listed["data"]]
    assert {"id": updated["id"], "object": "conversation.deleted", "deleted": True} == deleted


def test_every_route_is_on_the_page() -> None:
    """The table has every path of the API with its methods."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    for route in ROUTES:
        line = next(line for line in lines if line.startswith(f"| `{route.path}` "))
        assert route.verb in line


@pytest.mark.slow
async def test_the_document_is_up_to_date(tmp_path: Path) -> None:
    """`make generate` writes what is checked in, and that is what is served."""
    written = tmp_path / "openapi.json"
    await _output(sys.executable, str(ROOT / "proto" / "openapi.py"), str(written))
    assert written.read_bytes().rstrip() == DOCUMENT
