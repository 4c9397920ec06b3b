"""Rows as parameters of a statement that runs for several calls: an array for each column."""

from collections.abc import Iterable
from typing import Any


def array_parameters(table: str, names: Iterable[str], rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    """``rows`` as an array for each column; nothing for a table without rows, which the statement does not have."""
    return {f"{table}_{name}": array for name, array in zip(names, zip(*rows, strict=True), strict=bool(rows))}
