"""The test suite itself: what its modules may import, what each test says of itself, and when a test is skipped."""

import ast
import os
from pathlib import Path

import pytest

from tests.support.skips import require_tools
from tests.support.tools import REQUIRED, required_tools

TESTS = Path(__file__).parents[1]


def imports(path: Path) -> list[str]:
    """The modules that a module imports, with the names that it imports from them."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return found


def functions_of(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The tests of a module."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [function for function in functions if function.name.startswith("test_")]


def test_no_module_imports_a_test_module_or_a_conftest() -> None:
    """What modules share lies in tests/support, or is a fixture of a conftest: tests can be moved and run alone."""
    found = {(path, name) for path in TESTS.rglob("*.py") for name in imports(path)}
    own = {(path, name) for path, name in found if name.startswith((".", "tests."))}
    assert set() == {(path, name) for path, name in own if any(word in name for word in (".test_", ".conftest"))}


def test_every_test_has_a_docstring() -> None:
    """A test states in a sentence the truth that it protects."""
    found = [(path.name, test) for path in TESTS.rglob("test_*.py") for test in functions_of(path)]
    assert found
    assert [] == [(name, test.name) for name, test in found if not ast.get_docstring(test)]


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any of the tools, where none is required."""
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    monkeypatch.delenv(REQUIRED, raising=False)


@pytest.mark.usefixtures("nothing_installed")
def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test without its tool is skipped for a reason that names the tool; where the tool is required, it fails."""
    monkeypatch.setenv(REQUIRED, "ghz,promtool")
    require_tools([])
    with pytest.raises(pytest.skip.Exception, match=r"^grpcurl is not installed: go install "):
        require_tools(["grpcurl", "ghz"])
    with pytest.raises(pytest.fail.Exception, match=r"^ghz is not installed: .*REQUIRE_TOOLS"):
        require_tools(["ghz"])


@pytest.mark.usefixtures("nothing_installed")
def test_only_known_tools_are_needed_or_required(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelled tool is an error, in a test's marker as in the environment."""
    with pytest.raises(KeyError, match="grpccurl"):
        require_tools(["grpccurl"])
    monkeypatch.setenv(REQUIRED, "grpcurl,gzh")
    with pytest.raises(ValueError, match="gzh"):
        required_tools(os.environ)
