"""The measurements count what was done, and say when something got worse."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import MagicMock
from xml.etree import ElementTree as ET

import pytest

from bench.audit import Audit, audit, audit_of_count
from bench.grpc_target import limit, ours, target
from bench.plot import svg
from bench.postgres import private_postgres
from bench.report import late, markdown
from bench.results import Results, results_of, spread, worse
from bench.rounds import Open, Run, opened
from bench.workloads import growth, table
from tests.support.postgres import memory_folder

CALLERS, LONG = 4, 120  # of the smoke


@pytest.mark.parametrize("acknowledged, listed, expected", [
    ([["a", "c"], ["b"]], [(1, "a"), (2, "b"), (3, "c")], Audit()),
    ([["a", "b"]],        [(1, "a")],                     Audit(lost=1)),
    ([["a"]],             [(1, "a"), (2, "a")],           Audit(duplicates=1)),
    ([["a"], ["a"]],      [(1, "a")],                     Audit(duplicates=1)),
    ([["a"], ["b"]],      [(1, "a"), (1, "b")],           Audit(ties=1)),
    ([["b", "a"]],        [(1, "a"), (2, "b")],           Audit(inversions=1)),
    ([["a"], ["b"]],      [(2, "b"), (1, "a")],           Audit(inversions=1)),
    ([["a", "b"]],        [(1, "a"), (3, "b")],           Audit(gaps=1)),
    ([["b"]],             [(2, "b")],                     Audit(gaps=1)),
    ([["a"]],             [(1, "a"), (2, "b")],           Audit(unknown=1)),
    ([],                  [],                             Audit()),
])  # fmt: skip
def test_the_audit(acknowledged, listed, expected):
    """Each thing that never may happen is found, and nothing else."""
    assert expected == audit(acknowledged, listed)
    assert expected.clean is (expected == Audit())


@pytest.mark.parametrize("expected, listed, found", [
    (2, [(1, "a"), (2, "b")],           Audit()),
    (2, [(0, "a"), (1, "b")],           Audit()),
    (3, [(1, "a"), (2, "b")],           Audit(lost=1)),
    (2, [(1, "a"), (1, "b")],           Audit(ties=1)),
    (2, [(1, "a"), (2, "b"), (3, "b")], Audit(duplicates=1)),
])  # fmt: skip
def test_the_audit_without_ids(expected, listed, found):
    """A target that acknowledges without ids is held to the number of its items."""
    assert found == audit_of_count(expected, listed)


def cell(cpu_us: float, limit_us: float) -> Results:
    """The figures of one cell."""
    figures = {"cpu_us": cpu_us, "server_us": cpu_us * 0.75, "postgres_us": cpu_us * 0.25, "ratio": cpu_us / limit_us}
    others = {"per_second": 900.0, "p50_ms": 1.5, "p99_ms": 9.0, "p50_ratio": 1.5, "p99_ratio": 1.5, "wal_bytes": 300.0}
    return {name: spread([value]) for name, value in (figures | others).items()} | {"transactions": 1.0}


def results(**cpu_us: float) -> Results:
    """A run of two workloads, the limit at 100 µs."""
    row = {name: cell(value, 100) for name, value in {"limit": 100.0, **cpu_us}.items()}
    return {
        "date": "2026-01-01",
        "how": {"rounds": 1, "callers": 1},
        "machine": {"cpus": 1, "cpu": "a & b", "system": "<here>"},
        "versions": {"python": "3"},
        "postgres": {"server_version": "18"},
        "targets": list(row),
        "workloads": {name: {"operations": 1, "callers": 1, "main": True} for name in ("append <1>", "get & more")},
        "growth": [["append <1>", "get & more"]],
        "cells": {"append <1>": row, "get & more": dict(row)},
        "streams": {"AppendItems": {name: spread([2.0]) for name in ("cpu_us", "per_second", "gain")}},
        "audits": {name: dict(vars(Audit())) for name in row},
        "mebibytes": dict.fromkeys(row, 1.0),
    }


@pytest.mark.parametrize("before, now, lines", [
    (200.0, 200.0, 0),
    (200.0, 249.0, 0),
    (200.0, 251.0, 2),  # in either workload
    (200.0, 100.0, 0),
])  # fmt: skip
def test_what_got_worse(before, now, lines):
    """A ratio may grow by the tolerance, and not beyond; a line names the cell and both ratios."""
    found = worse(results(ours=before), results(ours=now), 0.25)
    assert lines == len(found)
    assert lines == 0 or found[0] == "append <1>, ours: 2.51 times the CPU time of the limit at best, was 2.00"


def test_one_spoilt_round_is_not_worse():
    """A cell is worse when its best round is."""
    now = results(ours=200.0)
    now["cells"]["get & more"]["ours"]["ratio"] = spread([2.1, 9.0, 9.0])
    assert [] == worse(results(ours=200.0), now, 0.25)


def test_a_slower_machine_is_not_worse():
    """Ratios are compared, not times, and a target that is new or missing is no reason to fail."""
    slow = results(ours=200.0)
    for row in slow["cells"].values():
        for figures in row.values():
            figures["cpu_us"] = spread([9999.0])
    assert [] == worse(results(ours=200.0), slow, 0.25)
    assert [] == worse(results(ours=200.0), results(peer=900.0), 0.25)


@pytest.mark.parametrize("most", [100.0, 250.0, 3_000.0, 900_000.0])
def test_the_plot(most):
    """It is XML, has both bars and the name of every target of every workload, and stays inside its width."""
    root = ET.fromstring(svg(results(ours=most)))  # noqa: S314 - our own
    space = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in root.iter(f"{space}text")]
    boxes = list(root.iter(f"{space}rect"))
    assert {"append <1>", "get & more", "ours", "limit", "server", "PostgreSQL"} <= set(texts)
    assert 2 * 2 * 2 + 2 == len(boxes)  # workloads, targets, parts; the legend
    assert all(float(box.get("x", 0)) + float(box.get("width", 0)) < 1000 for box in boxes)


def test_the_page():
    """Every table has the columns of its header, and the figures are those of the data."""
    page = markdown(results(ours=200.0))
    assert "| append <1> | 75 + 25 | 150 + 50, 2.00 x |" in page
    assert "0 lost, 0 duplicates, 0 ties, 0 inversions" in page
    columns = [line.count("|") for line in page.splitlines() if line.startswith("|")]
    assert {3, 4, 5} == set(columns)  # two targets with a first column, memory without, and streams


@pytest.mark.parametrize("ratio, expected", [
    (1.30, "- **ours**: 99th percentile above 1.3 x in no workload."),
    (1.31, "- **ours**: 99th percentile above 1.3 x in append <1> (1.31 x), get & more (1.31 x)."),
])  # fmt: skip
def test_what_is_late(ratio, expected):
    """A workload whose 99th percentile exceeds the goal is named, and those of other projects are not."""
    found = results(ours=200.0, ogx=900.0)
    for row in found["cells"].values():
        row["ours"]["p99_ratio"] = row["ogx"]["p99_ratio"] = spread([ratio])
    assert expected == late(found)


def test_a_target_that_lacks_a_method():
    """A workload that needs a missing method leaves the target out, and its cells stay empty in every output."""
    workloads = {each.name: each for each in table()}
    here, there = (
        target("ours", 1, MagicMock()),
        replace(target("ogx", 1, MagicMock()), lacks=("check_access",), peer=True),
    )
    assert workloads["check access"].suits(here)
    assert not workloads["check access"].suits(there)
    assert workloads["get"].suits(there)
    assert not workloads["page through 10,000, 1 caller"].suits(there)
    found = results(ours=200.0, ogx=900.0) | {"growth": []}
    del found["cells"]["get & more"]["ogx"]
    assert "| get & more | 75 + 25 | 150 + 50, 2.00 x |  |" in markdown(found)
    assert 2 * 5 + 2 == len(list(ET.fromstring(svg(found)).iter("{http://www.w3.org/2000/svg}rect")))  # noqa: S314


@pytest.fixture(scope="module")
async def smoke() -> AsyncIterator[Results]:
    """A round of every workload with very few operations, on the limit and on the service."""
    with TemporaryDirectory(dir=memory_folder()) as name:
        folder = Path(name)
        folder.chmod(0o711)  # the server is another user when we are root
        openers: dict[str, Open] = {"limit": limit, "ours": ours}
        async with private_postgres(folder) as postgres, opened(postgres, folder, openers) as places:
            run = Run(postgres, places, table(CALLERS, LONG, share=0.01))
            await run.warm_up()
            await run.rounds(1)
            yield await results_of(run, growth(CALLERS, LONG), rounds=1, callers=CALLERS)


@pytest.mark.slow
async def test_a_run(smoke: Results) -> None:
    """Every cell has figures that can be true, and nothing is lost or out of order."""
    cells = [cell for row in smoke["cells"].values() for cell in row.values()]
    assert 31 * 2 == len(cells)
    assert all(cell["server_us"]["median"] > 0 and cell["per_second"]["median"] > 0 for cell in cells)
    assert all(cell["p50_ms"]["median"] <= cell["p99_ms"]["median"] for cell in cells)
    assert all(smoke["cells"]["append 1"][name]["wal_bytes"]["median"] > 100 for name in ("limit", "ours"))
    assert {"limit": vars(Audit()), "ours": vars(Audit())} == smoke["audits"]


@pytest.mark.slow
async def test_a_run_is_printed(smoke: Results) -> None:
    """Its tables and its plot can be made, and it is not worse than itself."""
    assert markdown(smoke)
    assert ET.fromstring(svg(smoke)) is not None  # noqa: S314 - our own
    assert [] == worse(smoke, smoke, 0.25)
