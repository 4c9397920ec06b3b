"""The examples that start a service for the test runners of Go and Node."""

import os
import subprocess

import pytest

from tests.support.commands import ROOT, program_path

EXAMPLES = ROOT / "examples"


def output_of(folder: str, *command: str) -> str:
    """What a command in the folder of an example prints; it succeeds."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CONVERSATIONS_")}
    variables = kept | {"PATH": program_path()}
    done = subprocess.run(command, cwd=EXAMPLES / folder, env=variables, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


@pytest.mark.tool("go")
def test_go() -> None:
    """`go test` runs with a service of its own."""
    output_of("go-test", "go", "generate")
    assert "--- PASS: TestCreateConversation" in output_of("go-test", "go", "test", "-count=1", "-v", ".")


@pytest.mark.tool("node", "npm")
def test_node() -> None:
    """`node --test` runs with a service of its own, without generated code."""
    output_of("node-test", "npm", "ci", "--no-audit", "--no-fund")
    output = output_of("node-test", "npm", "test")
    assert "# pass 1\n" in output
    assert "# fail 0\n" in output
