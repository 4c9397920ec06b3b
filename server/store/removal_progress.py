"""Tells whoever started a long removal how many rows are gone so far: its steps lie in several functions."""

from collections.abc import Callable
from contextvars import ContextVar


def _tell_nobody(_rows: int) -> None:
    pass


# Called after each step with the number of rows that it removed.
on_removed: ContextVar[Callable[[int], None]] = ContextVar("on_removed", default=_tell_nobody)
