"""The measurements of watches find what is lost, and hold every figure to its target."""

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bench.watch.append_cost import ALONE, IDLE, LOGGED, WATCHED, Cost
from bench.watch.delays import ChangesLost, Sample, join
from bench.watch.doubts import doubts
from bench.watch.fan_out import FanOut
from bench.watch.figures import Figure
from bench.watch.holding import Held
from bench.watch.report import page, rows
from bench.watch.run import PARTS, Measurements, run
from bench.watch.sizes import FULL, QUICK, Cell
from bench.watch.usage import Usage
from tests.support.postgres import memory_folder

MS = 1_000_000  # nanoseconds
CONDITIONS = {
    "date": "2026-01-01",
    "machine": {"cpus": 1, "cpu": "a", "system": "here"},
    "versions": {"python": "3"},
    "postgres": {"server_version": "18"},
}


def test_each_append_is_joined_with_its_arrival():
    """Delays belong to a conversation and a sequence, whatever the order, and can be negative from the answer."""
    calls = [(0, 1, 10 * MS, 14 * MS), (1, 1, 20 * MS, 30 * MS)]
    arrivals = [(1, 1, 29 * MS), (0, 1, 19 * MS), (0, 0, 1)]
    assert ([5.0, -1.0], [9.0, 9.0]) == join(calls, arrivals)


@pytest.mark.parametrize("arrivals, missing", [
    ([], 2),
    ([(0, 1, 1)], 1),
    ([(0, 1, 1), (0, 2, 1)], 1),  # the same sequence of another conversation
])  # fmt: skip
def test_a_lost_item_fails_the_run(arrivals, missing):
    """An append that was answered and never told is no delay."""
    with pytest.raises(ChangesLost, match=f"^{missing} of 2 "):
        join([(0, 1, 0, 0), (1, 2, 0, 0)], arrivals)


@pytest.mark.parametrize("values, verdict", [
    ([32.0],             "≤ 32: met (1 of 1)"),
    ([32.1],             "≤ 32: MISSED (0 of 1)"),
    ([10.0, 40.0, 11.0], "≤ 32: met (2 of 3)"),
    ([40.0, 10.0, 41.0], "≤ 32: MISSED (1 of 3)"),
])  # fmt: skip
def test_a_target(values, verdict):
    """The median decides, the target itself is met, and the rounds that met it are counted."""
    assert verdict == Figure(values, target=32.0).verdict
    assert "" == Figure(values).verdict


def test_a_full_run_measures_what_the_targets_are_for():
    """Every number of watches with every rate, through both processes wherever there is something to tell."""
    assert 3 * 3 + 2 * 2 == len(list(FULL.cells()))
    assert {"", "same process", "another process"} == {cell.way for cell in FULL.cells()}
    assert (1_000, 500, 10_000) == (FULL.idle, FULL.followers, FULL.many)


def sample(delay: float) -> Sample:
    """A round in which everything took so many milliseconds."""
    return Sample([delay] * 3, [delay + 1] * 3, 150.0, {}, Usage(10.0, 1.0, 0.5, (2.0, 3.0), 0.4))


@pytest.mark.parametrize("delay, is_other, missed", [
    (50.0,  False, 0),
    (51.0,  False, 1),
    (151.0, False, 2),  # the 99th percentile too
    (151.0, True,  0),
    (251.0, True,  1),
])  # fmt: skip
def test_the_targets_of_delays(delay, is_other, missed):
    """Those of the process that holds the watches and those of another one differ."""
    found = Measurements(FULL, 1, delays={Cell(100, 150, is_other): [sample(delay)]}, conditions=CONDITIONS)
    assert missed == page(found).count("MISSED")


@pytest.mark.parametrize("used, late, per_second, failed, expected", [
    ({},                          10.0, 1000.0, {}, []),
    ({},                          10.1, 1000.0, {}, ["late"]),
    ({"generators": (2.9, 8.1)},  0.0,  1000.0, {}, ["share"]),
    ({"busy": 0.99},              0.0,  1000.0, {}, ["others"]),
    ({},                          0.0,  921.0,  {}, []),
    ({},                          0.0,  919.0,  {}, ["rate"]),
    ({},                          0.0,  1000.0, {"UNAVAILABLE": 1}, ["rate"]),
])  # fmt: skip
def test_doubts(used, late, per_second, failed, expected, monkeypatch):
    """A round in which something other than the service decided the figures is named, with the reason."""
    monkeypatch.setattr("bench.watch.usage.cpu_count", lambda: 2)
    usage = replace(Usage(10.0, 4.0, 2.0, (5.0, 6.0), 0.9), **used)  # 85 % of two cores, and 5 % for others
    found = list(doubts(Cell(100, 1_000), usage, late, per_second, failed))
    assert [f"100 watches, 1,000 appends/s, same process {reason}" for reason in expected] == [
        name for name, _ in found
    ]


def test_the_page():
    """It has the ratio of each pass, the shares of a core, and a computed row for renewals."""
    found = Measurements(
        FULL,
        1,
        delays={Cell(0, 0): [sample(1.0)], Cell(100, 150): [sample(1.0)]},
        costs=[{ALONE: Cost(300, 100), IDLE: Cost(302, 102), WATCHED: Cost(500, 100), LOGGED: Cost(304, 116)}],
        fan_outs=[[FanOut(1.0, 90.0), FanOut(2.0, 110.0)]],
        held=[Held(30.0, 400.0, [])],
        many=Held(31.0, 600.0, [Usage(33.0, 1.65, 1.32, (0.0,), 0.1)]),
        warnings=["the load was late"],
        conditions=CONDITIONS,
    )
    figures = {row.name: row.figure for row in rows(found)}
    assert [1.01] == figures["append, 1,000 idle watches: ratio to no watches"].values
    assert [1.05] == figures["append, log of changes on: ratio to no watches"].values
    assert pytest.approx([9.0]) == figures["10,000 held: both"].values
    assert pytest.approx([11.0]) == figures["10,000 held: both, with renewals (computed)"].values  # 2 % more
    assert [100.0] == figures["fan-out to 500: answer until the last is told"].values
    assert {
        "append, 1,000 idle watches: ratio to no watches": 1.03,
        "append, log of changes on: ratio to no watches": 1.05,
        "1,000 held: memory of a watch": 32,
        "10,000 held: memory of a watch": 32,
        "10,000 held: both": 10,
    } == {name: figure.target for name, figure in figures.items() if figure.target}
    text = page(found)
    assert "| 100 | 150 | same process | 10.0 (10.0 … 10.0) | 5.0 (5.0 … 5.0) | 30.0 (30.0 … 30.0) |" in text
    assert "- the load was late" in text
    assert "MISSED" not in text
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert [1, 1, 1] == [len({line.count("|") for line in table.splitlines()}) for table in tables]


@pytest.fixture(scope="module")
async def smoke() -> AsyncIterator[Measurements]:
    """A run with few watches."""
    with TemporaryDirectory(dir=memory_folder()) as name:
        folder = Path(name)
        folder.chmod(0o711)  # the server is another user when we are root
        yield await run(folder, QUICK, 1, PARTS)


@pytest.mark.slow
async def test_a_run(smoke: Measurements) -> None:
    """Everything that is appended is told, and every figure is one that can be true."""
    assert set(QUICK.cells()) == set(smoke.delays)
    told = [each for cell, samples in smoke.delays.items() if cell.way for each in samples]
    assert all(each.after_answer and not each.failed for each in told)
    pairs = [pair for each in told for pair in zip(each.after_sending, each.after_answer, strict=True)]
    assert all(from_sending > from_answer for from_sending, from_answer in pairs)
    assert all(each.total > 0 for costs in smoke.costs for each in costs.values())
    assert smoke.many is not None
    assert smoke.many.opening > 0
    assert all(fan.first <= fan.last for fans in smoke.fan_outs for fan in fans)
    # Delays through the same process and another one; the cost of an append; memory; many watches.
    assert 4 * 2 + 4 + 2 + 2 + 1 == page(smoke).count("≤")
