"""A SQLAlchemy statement, compiled once to the text and argument order asyncpg runs.

Building and compiling a statement costs a hundred times what running the
compiled text adds, so it happens once per statement and shape; the hot path
only picks the arguments.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Executable, Select
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.sql.compiler import SQLCompiler

from server.observability.stats import StatementKind

_dialect = asyncpg.dialect()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement as asyncpg takes it.

    Attributes:
        text: With the parameters ``$1``, ``$2`` and so on.
        names: Of their values, in the order of the numbers.
        kind: What the statement does, for metrics.
        waits: Whether it may wait for a lock that another session holds on a row.
        columns: Of its rows, in order.
    """

    text: str
    names: tuple[str, ...]
    kind: StatementKind
    waits: bool = False
    columns: tuple[str, ...] = ()

    @property
    def own_text(self) -> str:
        """What it does, for people; ``text`` may be the call of a function that does it."""
        return self.text

    def arguments(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """The values in the order of `names`; ``values`` may have more.

        Raises:
            KeyError: One is missing.
        """
        return tuple([values[name] for name in self.names])


def compile_statement(executable: Executable, kind: StatementKind, *, waits: bool | None = None) -> Statement:
    """``executable`` ready to run; every value in it must be a named bind parameter.

    Args:
        executable: A SQLAlchemy statement.
        kind: What it does; SQLAlchemy knows only the outermost part of a statement with CTEs.
        waits: Whether it may wait for the lock of a row; by default, whether it writes.

    Raises:
        AssertionError: A value is part of the statement, so its text would be another for each value.
    """
    result = executable.compile(dialect=_dialect)  # type: ignore[attr-defined]
    assert isinstance(result, SQLCompiler)
    unnamed = {name for name in result.positiontup or () if result.binds[name].value is not None}
    assert not unnamed, f"values inside the statement: {unnamed}"
    names = tuple(result.positiontup or ())
    columns = tuple(result.statement.selected_columns.keys()) if isinstance(result.statement, Select) else ()
    return Statement(result.string, names, kind, kind != "read" if waits is None else waits, columns)
