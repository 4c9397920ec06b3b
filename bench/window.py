"""One round of one workload on one target: its operations and their cost."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.audit import Audit, audit, audit_of_count
from bench.cpu import family_seconds, serving_seconds, spent
from bench.percentiles import percentile
from bench.postgres import Postgres
from bench.target import Target
from bench.workloads import Workload


@dataclass(frozen=True)
class Sample:
    """The figures of a round, per operation."""

    cpu_us: float
    server_us: float
    postgres_us: float
    per_second: float
    p50_ms: float
    p99_ms: float
    wal_bytes: float


@dataclass(frozen=True)
class Done:
    """Durations and results of the operations, by caller."""

    seconds: float
    latencies: list[float]
    answers: list[list[object]]


async def perform(target: Target, workload: Workload, conversations: Sequence[str]) -> Done:
    """Runs the operations of a round; every caller runs its share one after the other."""
    latencies: list[float] = []

    async def caller(number: int) -> list[object]:
        answers = []
        for turn in range(workload.share):
            place = number * workload.share + turn if workload.each else number
            began = time.perf_counter()
            answers.append(await workload.operation(target, conversations[place % len(conversations)], turn))
            latencies.append(time.perf_counter() - began)
        return answers

    began = time.perf_counter()
    answers = await asyncio.gather(*map(caller, range(workload.callers)))
    return Done(time.perf_counter() - began, latencies, list(answers))


async def measure(
    target: Target, workload: Workload, conversations: Sequence[str], postgres: Postgres
) -> tuple[Sample, Audit | None]:
    """Measures a round; audits it if the workload is audited and the target has an order."""
    log = await postgres.wal_bytes()
    server, database = family_seconds(target.pid), serving_seconds(postgres.pid)
    done = await perform(target, workload, conversations)
    server_us = (family_seconds(target.pid) - server) / workload.count * 1e6
    postgres_us = spent(database, serving_seconds(postgres.pid)) / workload.count * 1e6
    written = await postgres.wal_bytes() - log
    sample = Sample(
        cpu_us=server_us + postgres_us,
        server_us=server_us,
        postgres_us=postgres_us,
        per_second=workload.count / done.seconds,
        p50_ms=percentile(done.latencies, 50) * 1e3,
        p99_ms=percentile(done.latencies, 99) * 1e3,
        wal_bytes=written / workload.count,
    )
    return sample, await _audited(target, conversations[0], done) if workload.audited else None


async def _audited(target: Target, conversation: str, done: Done) -> Audit | None:
    listed = await target.sequence_ids(conversation)
    if listed is None:
        return None
    told = [[name for names in answers if isinstance(names, Sequence) for name in names] for answers in done.answers]
    return audit(told, listed) if any(told) else audit_of_count(len(done.latencies), listed)
