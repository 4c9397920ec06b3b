"""The code blocks of a page of documentation."""

import ast
import re
from pathlib import Path
from typing import Any


def code_blocks(page: Path, language: str = "sh") -> dict[str, list[str]]:
    """The code blocks of a page by the heading that stands above them."""
    found: dict[str, list[str]] = {}
    heading = ""
    parts = re.compile(r"^(?:#+ ([^\n]+)|```(\w*)\n(.*?)^```)$", re.DOTALL | re.MULTILINE)
    for title, tongue, block in parts.findall(page.read_text(encoding="utf-8")):
        heading = title or heading
        if tongue == language:
            found.setdefault(heading, []).append(block)
    return found


async def run_block(block: str, names: dict[str, Any]) -> dict[str, Any]:
    """Runs a part of an asynchronous function, with these names defined; returns what it defines too."""
    code = compile(block, "page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    found = dict(names)
    waiting = eval(code, found)  # noqa: S307 - our own page
    if waiting is not None:
        await waiting
    return found
