"""A SQLAlchemy statement, compiled once to the text and argument order asyncpg runs.

Building and compiling a statement costs a hundred times what running the
compiled text adds, so it happens once per statement and shape; the hot path
only picks the arguments.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Executable
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.sql.compiler import SQLCompiler

_dialect = asyncpg.dialect()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Statement:
    """Text with ``$1`` parameters and the names of their values, in order."""

    text: str
    names: tuple[str, ...]

    def arguments(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """The values in the order of the text."""
        return tuple([values[name] for name in self.names])


def compiled(executable: Executable) -> Statement:
    """``executable`` ready to run; every value in it must be a named bind parameter."""
    result = executable.compile(dialect=_dialect)  # type: ignore[attr-defined]
    assert isinstance(result, SQLCompiler)
    unnamed = {name for name in result.positiontup or () if result.binds[name].value is not None}
    assert not unnamed, f"values inside the statement: {unnamed}"
    return Statement(result.string, tuple(result.positiontup or ()))


KINDS = ("read", "append", "write")


@lru_cache(maxsize=1024)
def kind_of(text: str) -> str:
    """Which of `KINDS` a statement is: an append places items, a write changes something else."""
    if "INSERT INTO items" in text:
        return "append"
    return "write" if any(verb in text for verb in ("INSERT INTO", "UPDATE ", "DELETE FROM")) else "read"
