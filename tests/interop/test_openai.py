"""OpenAI's own SDKs in other languages and OGX's client, against the HTTP edge: they change nothing but its address."""

from dataclasses import dataclass

import pytest

from tests.support.commands import ROOT
from tests.support.http import edge_service
from tests.support.programs import run_program
from tests.support.python_environment import python_environment
from tests.support.service import Service

PROGRAMS = ROOT / "tests" / "interop" / "openai"
BUILD = ROOT / "build" / "interop" / "openai"
SECONDS = 600.0  # on a machine that has nothing of it yet
STEPS = ["create", "pages", "items", "errors", "keys"]


@dataclass(frozen=True)
class Language:
    """How the program of a language is built, in its folder, and run."""

    name: str
    needs: tuple[str, ...]
    build: tuple[str, ...]
    run: tuple[str, ...]


LANGUAGES = [
    Language("node", ("node", "npm"), ("npm", "ci", "--no-audit", "--no-fund"), ("node", "main.js")),
    Language("go", ("go",), ("go", "build", "-o", f"{BUILD}/go"), (f"{BUILD}/go",)),
    Language("java", ("java", "mvn"), ("mvn", "-q", "-B", "package"), ("java", "-jar", f"{BUILD}/java/interop.jar")),
]


@pytest.mark.parametrize(
    "language", [pytest.param(each, marks=pytest.mark.tool(*each.needs), id=each.name) for each in LANGUAGES]
)
async def test_the_sdk(service: Service, language: Language) -> None:
    """Objects, pages in both directions, exceptions with code and param, and a key that is used twice."""
    folder = PROGRAMS / language.name
    await run_program(*language.build, seconds=SECONDS, folder=folder)
    async with edge_service(service.url) as served:
        output = await run_program(*language.run, f"http://{served.address}/v1", seconds=SECONDS, folder=folder)
    assert [f"{step} ok" for step in STEPS] == output.splitlines()


@pytest.mark.slow
async def test_a_session_of_openai_agents(service: Service) -> None:
    """Its session alone, and two turns with reasoning, a search and a tool; the first of them feeds the second."""
    assert ["session ok", "turns ok"] == await _output_in_python(service, "openai-agents", "agents")


@pytest.mark.slow
async def test_the_client_of_ogx(service: Service) -> None:
    """Objects, pages in both directions, items of several types, and exceptions with the body of the answer."""
    assert ["create ok", "pages ok", "items ok", "errors ok"] == await _output_in_python(service, "ogx-client", "ogx")


async def _output_in_python(service: Service, environment: str, folder: str) -> list[str]:
    """The lines of a program with packages of its own."""
    programs = await python_environment(environment, PROGRAMS / folder / "requirements.txt")
    async with edge_service(service.url) as served:
        command = (str(programs / "python"), "main.py", f"http://{served.address}/v1")
        return (await run_program(*command, seconds=60, folder=PROGRAMS / folder)).splitlines()
