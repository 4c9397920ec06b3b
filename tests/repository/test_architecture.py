"""The rooms of server/ are those of docs/architecture.md."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "server"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOMS = re.findall(r"^\| `(\w+)` \|", PAGE.partition("\n## The rooms\n")[2].partition("\n## ")[0], re.MULTILINE)


def room_of(path: Path) -> str:
    """The package or module directly under server/ that a file belongs to."""
    return path.relative_to(SERVER).parts[0].removesuffix(".py")


def test_every_room_is_on_the_page() -> None:
    """docs/architecture.md lists each package and module of server/ once, and nothing else."""
    there = {room_of(path) for path in SERVER.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__"} == set(ROOMS)
    assert len(ROOMS) == len(set(ROOMS))
