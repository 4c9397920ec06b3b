"""What the README prints works when pasted."""

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import Service

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PRINTED_ADDRESS = "127.0.0.1:50051"


def blocks(heading: str, language: str) -> list[str]:
    """The code blocks of one section."""
    section = README.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


async def run(*command: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a program."""
    pipe = asyncio.subprocess.PIPE
    environment = os.environ | {"PYTHONPATH": str(ROOT / "generated"), "GRPC_VERBOSITY": "ERROR"}
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=environment)
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


@pytest.mark.skipif(not shutil.which("grpcurl"), reason="grpcurl is not installed")
async def test_the_tour(own_service: Service) -> None:
    """Each command of the tour succeeds and shows what the text says."""
    script = "\n".join(blocks("A tour with grpcurl", "sh")).replace(PRINTED_ADDRESS, own_service.address)
    code, output, errors = await run("bash", "-euo", "pipefail", "-c", script)
    assert (0, "") == (code, errors)
    assert re.search(r"^conv_[0-9a-f]{48}$", output, re.MULTILINE)
    assert '"sequence": "3"' in output  # the append
    assert re.search(r'"first_?[sS]equence": "5"', output)  # the stream
    assert '"text": "What is gRPC?"' in output  # the second page
    assert '"state": "done"' in output  # the update, and the list that finds it
    assert output.endswith("{}\n")  # the delete


async def test_the_client(own_service: Service) -> None:
    """The Python client prints the item it appended."""
    (script,) = blocks("A client in Python", "python")
    code, output, errors = await run(sys.executable, "-c", script.replace(PRINTED_ADDRESS, own_service.address))
    assert (0, "") == (code, errors)
    assert re.fullmatch(r"1 message msg_[0-9a-f]{48}\n", output)
