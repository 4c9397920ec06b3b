"""schemathesis against the edge: whatever it sends, the answers are those of an OpenAPI document.

The edge's own document is always tested. `OPENAI_DOCUMENT` names a file with OpenAI's document of the API, which is not
part of this repository, to test the edge against that too.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.commands import ROOT
from tests.support.http import edge_service
from tests.support.programs import run_program
from tests.support.python_environment import python_environment
from tests.support.service import Service

REQUIREMENTS = ROOT / "tests" / "interop" / "schemathesis" / "requirements.txt"
OPENAI_DOCUMENT = "OPENAI_DOCUMENT"
SECONDS = 60  # for its phases; it looks at the document before them
# What is valid by the document may be refused for what it does not say: a key or an etag that does not fit, or a rule.
OWN_CHECKS = "--exclude-checks=positive_data_acceptance"
# OpenAI's document has no answers to requests that are refused, and wants a key, which `identity=none` does not read.
OPENAI_CHECKS = "--checks=not_a_server_error,content_type_conformance,response_schema_conformance"


async def _run(service: Service, folder: Path, checks: str, document: Path | None = None) -> str:
    """The output of schemathesis on a document, by default the one that the edge serves; the test fails if it does."""
    programs = await python_environment("schemathesis", REQUIREMENTS)
    async with edge_service(service.url) as served:
        base = f"http://{served.address}"
        where = (str(document), f"--url={base}/v1") if document else (f"{base}/openapi.json",)
        limits = (f"--max-time={SECONDS}", "--seed=1", "--no-shrink", "--continue-on-failure", "--warnings=off")
        command = (str(programs / "schemathesis"), "run", *where, *limits, checks)
        return await run_program(*command, seconds=3 * SECONDS, folder=folder)


@pytest.mark.slow
async def test_the_openapi_document(own_service: Service, tmp_path: Path) -> None:
    """All phases, with valid and invalid requests: no server error, and no answer outside of the document."""
    output = await _run(own_service, tmp_path, OWN_CHECKS)
    assert "Tested: 9" in output, output


def _as_the_api_is(document: Any) -> Any:
    """The document, mended in two places in which OpenAI's own answers are not those of it."""
    page = document["components"]["schemas"]["ConversationItemList"]
    for name in ("first_id", "last_id"):
        page["properties"][name]["type"] = ["string", "null"]  # null on an empty page
    return _without_discriminators(document)


def _without_discriminators(value: Any) -> Any:
    """Theirs have no mapping, so that by OpenAPI `type` would be the name of a schema, such as `Message`."""
    if isinstance(value, list):
        return [_without_discriminators(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_discriminators(each) for key, each in value.items() if key != "discriminator"}


@pytest.mark.slow
async def test_the_document_of_openai(own_service: Service, tmp_path: Path) -> None:
    """The same by OpenAI's own document: what the edge answers is what its SDKs were generated for."""
    if (path := os.environ.get(OPENAI_DOCUMENT)) is None:
        pytest.skip(f"{OPENAI_DOCUMENT} does not name OpenAI's document")
    document = tmp_path / "openai.yaml"
    document.write_text(yaml.safe_dump(_as_the_api_is(yaml.safe_load(Path(path).read_text("utf-8")))), "utf-8")
    output = await _run(own_service, tmp_path, OPENAI_CHECKS, document)
    assert "Tested: 8" in output, output
