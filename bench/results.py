"""The figures of a run as data: results.json, from which tables, plot and check are made."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from importlib.metadata import version
from os import cpu_count
from pathlib import Path
from statistics import median
from typing import Any

from bench.audit import Audit
from bench.postgres import Postgres
from bench.rounds import Run
from bench.window import Sample

LIMIT = "limit"  # the target that all others are compared with
LATENCY_GOAL = 1.3  # the most that the 99th percentile may be, as a multiple of that of the limit
Results = dict[str, Any]  # results.json
_PACKAGES = ("grpcio", "protobuf", "asyncpg", "uvloop")


async def results_of(run: Run, growth: Sequence[tuple[str, str]], **how: Any) -> Results:
    """Collects all figures of a run and its conditions."""
    return {
        **await conditions(run.postgres),
        "how": how,
        "targets": [target.name for target in run.targets],
        "workloads": {
            workload.name: {"operations": workload.count, "callers": workload.callers, "main": workload.main}
            for workload in run.workloads
        },
        "growth": [list(pair) for pair in growth],
        "cells": {
            workload.name: {
                target.name: _cell(run, workload.name, target.name) for target in filter(workload.suits, run.targets)
            }
            for workload in run.workloads
        },
        "streams": {name: _stream(samples, run.streams) for name, samples in run.streams.items()},
        "audits": {name: _audit(audited) for name, audited in run.audits.items()},
        "mebibytes": run.mebibytes,
    }


async def conditions(postgres: Postgres) -> Results:
    """The date, the machine, and the versions and settings that influence the figures."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpus": cpu_count(), "cpu": _cpu(), "system": f"{platform.system()} {platform.release()}"},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        "postgres": await postgres.settings(),
    }


def _cpu() -> str:
    """The model of the CPU, as the kernel reports it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _audit(audited: Audit | None) -> dict[str, int] | None:
    return asdict(audited) if audited else None


def _cell(run: Run, workload: str, target: str) -> Results:
    samples = run.samples[workload, target]
    cell: Results = {
        field.name: spread([getattr(sample, field.name) for sample in samples]) for field in fields(Sample)
    }
    if limit := run.samples.get((workload, LIMIT)):
        pairs = list(zip(samples, limit, strict=True))
        cell["ratio"] = spread([ours.cpu_us / best.cpu_us for ours, best in pairs])
        cell["p50_ratio"] = spread([ours.p50_ms / best.p50_ms for ours, best in pairs])
        cell["p99_ratio"] = spread([ours.p99_ms / best.p99_ms for ours, best in pairs])
    cell["transactions"] = run.transactions.get((workload, target))
    return cell


def _stream(samples: Sequence[Sample], streams: Mapping[str, Sequence[Sample]]) -> Results:
    unary = next(iter(streams.values()))
    return {
        "cpu_us": spread([sample.cpu_us for sample in samples]),
        "per_second": spread([sample.per_second for sample in samples]),
        "gain": spread([one.cpu_us / sample.cpu_us for sample, one in zip(samples, unary, strict=True)]),
    }


def spread(figures: Sequence[float]) -> dict[str, float]:
    """The median, minimum and maximum over the rounds."""
    named = {"median": median(figures), "min": min(figures), "max": max(figures)}
    return {name: round(figure, 3) for name, figure in named.items()}


def worse(before: Mapping[str, Any], now: Mapping[str, Any], tolerance: float) -> list[str]:
    """Returns a line for each cell whose ratio to the limit's CPU time grew by more than ``tolerance``.

    The best round counts, because another program can disturb the others. Cells
    that only one of the two has are skipped.
    """
    lines = []
    for workload, cells in now["cells"].items():
        for target in cells.keys() & before["cells"].get(workload, {}).keys() - {LIMIT}:
            was, found = before["cells"][workload][target]["ratio"]["median"], cells[target]["ratio"]["min"]
            if found > was * (1 + tolerance):
                lines.append(
                    f"{workload}, {target}: {found:.2f} times the CPU time of the limit at best, was {was:.2f}"
                )
    return sorted(lines)
