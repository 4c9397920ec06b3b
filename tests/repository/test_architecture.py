"""The rooms of the server import each other in one direction: that of the table in docs/architecture.md."""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ROOMS = tuple(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/architecture.md").read_text(encoding="utf-8"), re.MULTILINE))
# Inside the store: the modules without a folder, which use those in folders.
STORE = ("", "migrations", "embedded", "connection", "sql")


def modules() -> dict[str, Path]:
    """The file of each module of the server, by its dotted name."""
    files = sorted((ROOT / "server").rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imported(nodes: Iterable[ast.AST], known: Mapping[str, Path]) -> Iterator[str]:
    """The modules of the server that import statements among ``nodes`` name."""
    for node in nodes:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else str(node.module) for name in inside]
        yield from (name for name in names if name in known)


def import_graph(*, top_level: bool) -> dict[str, set[str]]:
    """The modules that each module imports, when it is loaded or at any time."""
    known = modules()
    graph = {}
    for name, file in known.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        graph[name] = set(imported(tree.body if top_level else ast.walk(tree), known)) - {name}
    return graph


def room_of(module: str) -> str:
    """The first name below the package; empty for the package itself."""
    return module.removeprefix("server").removeprefix(".").partition(".")[0]


def folder_of(module: str) -> str:
    """The folder inside the store that a module lies in; empty for those of the store itself."""
    rest = module.removeprefix("server.store").removeprefix(".").partition(".")[0]
    return rest if rest in STORE else ""


def arrows_up(graph: Mapping[str, set[str]], order: tuple[str, ...], place: Mapping[str, str]) -> list[str]:
    """The imports that lead from a place to one above it."""
    return [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in sorted(others)
        if module in place and other in place and order.index(place[other]) < order.index(place[module])
    ]


def test_every_module_is_in_a_room() -> None:
    """The table lists every room of server/ once, so that a new one has a place in the order."""
    assert sorted(ROOMS) == sorted({room_of(module) for module in modules()} - {""})


def test_rooms_import_downwards() -> None:
    """No room imports one above it, not even inside a function or for its types alone."""
    places = {module: room_of(module) for module in modules() if room_of(module)}
    assert [] == arrows_up(import_graph(top_level=False), ROOMS, places)


def test_the_store_imports_downwards() -> None:
    """Statements know nothing of connections, and connections nothing of the store."""
    places = {module: folder_of(module) for module in modules() if room_of(module) == "store"}
    assert [] == arrows_up(import_graph(top_level=False), STORE, places)


def test_there_is_no_cycle() -> None:
    """Modules can be loaded in some order, whichever is first."""
    try:
        TopologicalSorter(import_graph(top_level=True)).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))
