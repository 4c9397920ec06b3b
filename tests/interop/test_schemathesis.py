"""schemathesis against the edge: whatever it sends, the answers are those of the OpenAPI document."""

from pathlib import Path

import pytest

from tests.support.commands import ROOT
from tests.support.http import edge_service
from tests.support.programs import run_program
from tests.support.python_environment import python_environment
from tests.support.service import Service

REQUIREMENTS = ROOT / "tests" / "interop" / "schemathesis" / "requirements.txt"
SECONDS = 60  # for its phases; it looks at the document before them
# What is valid by the document may be refused for what it does not say: a key or an etag that does not fit, or a rule.
CHECKS = "--exclude-checks=positive_data_acceptance"


@pytest.mark.slow
async def test_the_openapi_document(service: Service, tmp_path: Path) -> None:
    """All phases, with valid and invalid requests: no server error, and no answer outside of the document."""
    programs = await python_environment("schemathesis", REQUIREMENTS)
    async with edge_service(service.url) as served:
        location = f"http://{served.address}/openapi.json"
        limits = (f"--max-time={SECONDS}", "--seed=1", "--no-shrink", "--continue-on-failure", "--warnings=off")
        command = (str(programs / "schemathesis"), "run", location, *limits, CHECKS)
        output = await run_program(*command, seconds=3 * SECONDS, folder=tmp_path)
    assert "Tested: 9" in output, output
