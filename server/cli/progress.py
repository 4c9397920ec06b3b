"""Shows people how far a command is: a bar on standard error, which is gone when the command has ended.

A program that reads standard error, or nobody at all, gets nothing of it. rich draws the bar: as it is there for tables
already, it is no further dependency.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Bar(Protocol):
    """What a command tells of its work.

    Attributes:
        is_shown: Whether anybody sees it; what it costs to know how far the work is can be saved otherwise.
    """

    is_shown: bool

    def advance(self, count: float = 1) -> None:
        """Adds to what is done."""

    def show(self, title: str, done: float, total: float | None) -> None:
        """Replaces everything that is shown; a total of None is one that is not known."""


class _NoBar:
    is_shown = False

    def advance(self, count: float = 1) -> None:
        pass

    def show(self, title: str, done: float, total: float | None) -> None:
        pass


@contextmanager
def progress_bar(title: str, total: float | None = None, *, hidden: bool = False) -> Iterator[Bar]:
    """Shows a bar meanwhile, if standard error is a terminal.

    Args:
        title: What is counted; printed as it is, so it must hold no text of callers.
        total: How much there is to do; None if that is not known.
        hidden: Show none, because a program reads the output (``--json``), or because the output itself goes to the
            terminal, where its lines would mix with the bar.
    """
    if hidden or not sys.stderr.isatty():
        yield _NoBar()
        return
    from server.cli.rich_bar import rich_bar

    with rich_bar(title, total) as bar:
        yield bar
