"""Background tasks that end are told, counted and started again."""

import asyncio

import pytest
from structlog.testing import capture_logs

from server.observability import task_supervisor
from server.observability.task_supervisor import TaskSupervisor
from tests.support.loop_errors import collected_loop_errors


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_supervisor, "_MIN_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(task_supervisor, "_MAX_PAUSE_SECONDS", 0.03)


class Work:
    """What is supervised: counts its starts, and ends the first of them as it is told."""

    def __init__(self, *ends: BaseException | None) -> None:
        self.starts = 0
        self._ends = ends
        self.steady = asyncio.Event()

    async def run(self) -> None:
        """Raises, returns, or runs until it is cancelled."""
        self.starts += 1
        if self.starts <= len(self._ends):
            if error := self._ends[self.starts - 1]:
                raise error
            return
        self.steady.set()
        await asyncio.Event().wait()


async def test_whatever_ends_a_task_it_comes_back() -> None:
    """An exception, a return and a cancellation from inside are ends, each counted and told without the text."""
    tasks, work = TaskSupervisor(), Work(ValueError("secret"), None, asyncio.CancelledError(), LookupError())
    with capture_logs() as lines:
        async with tasks.running("work", work.run):
            await asyncio.wait_for(work.steady.wait(), 5)
    assert (5, 4) == (work.starts, tasks.failures["work"])
    assert ["ValueError", None, None, "LookupError"] == [line["error"] for line in lines]
    assert {"background task ended"} == {line["event"] for line in lines}
    assert "run" in lines[0]["frames"][-1]
    assert "secret" not in str(lines)


async def test_a_killed_task_comes_back() -> None:
    """Who cancels the task from outside does not end it for good."""
    tasks, work = TaskSupervisor(), Work()
    async with tasks.running("killed work", work.run):
        await work.steady.wait()
        work.steady.clear()
        (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "killed work"]
        task.cancel()
        await asyncio.wait_for(work.steady.wait(), 5)
    assert 1 == tasks.failures["killed work"]
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "killed work"]


async def test_a_task_that_always_fails_is_not_started_in_a_hurry() -> None:
    """The pauses grow to a limit, and leaving ends the restarts."""
    tasks, work = TaskSupervisor(), Work(*[ValueError()] * 1000)
    with capture_logs() as lines:
        async with tasks.running("work", work.run):
            await asyncio.sleep(0.3)
        starts = work.starts
        await asyncio.sleep(0.1)
    assert starts == work.starts <= 15
    assert [0.01, 0.02, 0.03, 0.03] == [line["again_in"] for line in lines[:4]]


async def test_leaving_never_raises() -> None:
    """A task that fails while it is stopped is told, and the end of the process goes on."""

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError

    tasks = TaskSupervisor()
    with capture_logs() as lines:
        async with tasks.running("work", stubborn):
            await asyncio.sleep(0)
    assert [("ValueError", None)] == [(line["error"], line["again_in"]) for line in lines]


async def test_a_log_that_cannot_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next start does not depend on the line about the last end."""

    class Broken:
        def error(self, *_words: object, **_fields: object) -> None:
            raise OSError

    monkeypatch.setattr(task_supervisor, "log", Broken())
    tasks, work = TaskSupervisor(), Work(ValueError(), ValueError())
    with collected_loop_errors() as problems:
        async with tasks.running("work", work.run):
            await asyncio.wait_for(work.steady.wait(), 5)
    assert 2 == tasks.failures["work"]
    assert [] == problems


async def test_a_task_that_never_failed_is_counted() -> None:
    """Its counter is there from the start and 0: one that is missing looks like one that was never wrong."""
    tasks, work = TaskSupervisor(), Work()
    async with tasks.running("work", work.run):
        assert {"work": 0} == dict(tasks.failures)
    assert {"work": 0} == dict(tasks.failures)


async def test_earlier_ends_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses begin anew behind a run that was steady."""
    monkeypatch.setattr(task_supervisor, "_STEADY_SECONDS", 1.0)
    starts = 0

    async def work() -> None:
        nonlocal starts
        starts += 1
        await asyncio.sleep(1.1 if starts == 3 else 0)

    with capture_logs() as lines:
        async with TaskSupervisor().running("work", work), asyncio.timeout(5):
            while len(lines) < 4:  # noqa: ASYNC110 - a log is no event
                await asyncio.sleep(0.01)
    assert [0.01, 0.02, 0.01, 0.02] == [line["again_in"] for line in lines[:4]]
