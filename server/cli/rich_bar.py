"""A progress bar by rich, which takes a tenth of a second to load: only a terminal needs it."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class RichBar:
    """As `server.cli.progress.Bar`."""

    is_shown = True

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, count: float = 1) -> None:
        """Adds to what is done."""
        self._progress.advance(self._task, count)

    def show(self, title: str, done: float, total: float | None) -> None:
        """Replaces everything that is shown."""
        self._progress.update(self._task, description=title, completed=done, total=total)
        if total is None:  # `update` takes it for "as before"
            self._progress.tasks[0].total = None


@contextmanager
def rich_bar(title: str, total: float | None) -> Iterator[RichBar]:
    """Shows a bar meanwhile: a title, how much of how much, and the time it has taken."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield RichBar(progress, progress.add_task(title, total=total))
