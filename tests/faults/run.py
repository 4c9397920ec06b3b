"""Runs a row: a healthy while, the fault as often as it comes, another healthy while, and the verdict."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import grpc.aio

from tests.faults.checker import LATE, NEVER, check
from tests.faults.found import find
from tests.faults.history import MARKER, History
from tests.faults.postgres import Programs
from tests.faults.repeat import beside
from tests.faults.rows import Row
from tests.faults.scene import PRINCIPAL, Scene, Watch, scene
from tests.faults.server import ROOT
from tests.faults.workload import CHANNEL_OPTIONS, DEADLINE, PATIENCE

HEALTHY = 1.5  # seconds before and after a fault
RECOVERY = 15.0  # seconds in which writes must be acknowledged again
NOT_READY_WITHIN, READY_WITHIN = 5.0, 2.0  # seconds
MOST_LINES = 20  # warnings and errors in a log for each time that something is broken

_STREAMS = frozenset(  # last as long as their callers want
    ("AppendItems", "WatchItems", "WatchConversations", "ExportConversations", "ImportConversations")
)


@dataclass(frozen=True)
class Period:
    """From breaking to mending."""

    broken: float
    mended: float


@dataclass
class Result:
    """What a row showed."""

    row: Row
    seed: int
    operations: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    recovery: float | None = None  # seconds, the worst
    not_ready: float | None = None  # likewise, until readiness was false
    ready: float | None = None  # until it was true again
    peak: int = 0  # bytes of all processes of a server
    seconds: float = 0.0
    own_lag: float = 0.0  # seconds by which the suite itself was late, at most
    facts: dict[str, str] = field(default_factory=dict)


@dataclass
class Run:
    """What all rows of a run share."""

    programs: Programs
    folder: Path
    seed: int
    short: bool
    code: Path = ROOT  # where the package `server` is that is run

    async def row(self, row: Row) -> Result:
        """Runs one."""
        began = time.monotonic()
        result = Result(row, self.seed)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        folder.chmod(0o711)
        try:
            random = Random(f"{self.seed} {row.name}")
            async with scene(row.layout, self.programs, folder, random, short=self.short, code=self.code) as built:
                await self._in(built, row, result)
            result.violations += list(_logs(built, row))
        except Exception as error:  # noqa: BLE001 - a row that cannot end is a violation like others
            result.violations.append(f"the row broke off: {type(error).__name__}: {error}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        result.seconds = time.monotonic() - began
        return result

    async def _in(self, built: Scene, row: Row, result: Result) -> None:
        history, periods = built.workload.history, []
        async with beside(_measure_own_lag(history)), built.workload.running():
            await asyncio.sleep(HEALTHY)
            for _ in range(1 if self.short else row.times):
                periods.append(await _break(built, row))
                await _recovered(history, periods[-1].mended)
                await asyncio.sleep(HEALTHY)
        result.operations, result.codes = len(history.attempts), dict(history.codes())
        recoveries = [_recovery(history, each.mended) for each in periods]
        result.recovery = max((each for each in recoveries if each is not None), default=None)
        if None in recoveries:
            result.violations.append(f"some who append were not acknowledged within {RECOVERY:.0f} s")
        result.violations += [*built.violations, *_unfinished(built), *await _verdict(built, row)]
        result.violations += list(_readiness(built.watches, periods, row, result))
        result.peak = max((size for watch in built.watches for _, size in watch.memory), default=0)
        result.facts, result.own_lag = built.facts, history.own_lag


async def _measure_own_lag(history: History) -> None:
    """Notes by how much this process is late: by that much a call may seem to be."""
    while True:
        due = time.monotonic() + 0.01
        await asyncio.sleep(0.01)
        history.own_lag = max(history.own_lag, time.monotonic() - due)


async def _break(built: Scene, row: Row) -> Period:
    async with row.fault(built):
        broken = time.monotonic()
        await asyncio.sleep(row.seconds)
    return Period(broken, time.monotonic())


async def _recovered(history: History, mended: float) -> None:
    """Waits until each of those who append has been acknowledged again."""
    while time.monotonic() < mended + RECOVERY and _recovery(history, mended) is None:  # noqa: ASYNC110 - polls a list
        await asyncio.sleep(0.1)


def _recovery(history: History, mended: float) -> float | None:
    """Seconds until each of those who append has been acknowledged after ``mended``; None: some have not."""
    firsts: dict[str, float] = {}
    for append in history.appends:
        if append.expected is None:  # who races may lose for long
            firsts.setdefault(append.caller, float("inf"))
            if append.acknowledged > mended:
                firsts[append.caller] = min(firsts[append.caller], append.acknowledged)
    worst = max(firsts.values(), default=float("inf"))
    return worst - mended if worst < float("inf") else None


def _unfinished(built: Scene) -> Iterator[str]:
    """Callers under a request id learn in the end that they have written."""
    if built.workload.unfinished:
        yield f"{built.workload.unfinished} callers did not learn how a write ended, {PATIENCE:.0f} s after the fault"
    for problem in built.workload.problems:
        yield f"a caller broke off: {type(problem).__name__}: {problem}"


async def _verdict(built: Scene, row: Row) -> list[str]:
    """What the checker says of history and store."""
    workload = built.workload
    tokens = {tenant.name: tenant.token for tenant in workload.tenants}
    used = [each for tenant in workload.tenants for each in tenant.conversations]
    database = await built.postgres.connect(built.postgres.database)
    try:
        async with grpc.aio.insecure_channel(built.server.address, options=CHANNEL_OPTIONS) as channel:
            found = await find(channel, database, tokens, used)
    except grpc.aio.AioRpcError as error:
        return [*workload.history.leaks, f"what is there cannot be read back: {error.code().name}"]
    finally:
        await database.close()
    return check(workload.history, found, row.codes, row.cancelled)


def _readiness(watches: list[Watch], periods: list[Period], row: Row, result: Result) -> Iterator[str]:
    """Readiness tells of a database that cannot be used, and of one that can be used again, in time."""
    if not row.unusable:
        return
    for watch in watches:
        for period in periods:
            down = next((look.at for look in watch.looks if look.at >= period.broken and not look.ready), None)
            up = next((look.at for look in watch.looks if look.at >= period.mended and look.ready), None)
            if down is None or down - period.broken > NOT_READY_WITHIN:
                yield f"readiness was true {NOT_READY_WITHIN:.0f} s after the database was lost"
            else:
                result.not_ready = max(result.not_ready or 0.0, down - period.broken)
            if up is None or up - period.mended > READY_WITHIN:
                yield f"readiness was false {READY_WITHIN:.0f} s after the database was back"
            else:
                result.ready = max(result.ready or 0.0, up - period.mended)


def _logs(built: Scene, row: Row) -> Iterator[str]:
    """Logs hold no content, no defect and no flood, and every call ended in time for the server too."""
    for path in built.folder.glob("*.log"):
        text = path.read_text(encoding="utf-8", errors="replace")
        if MARKER in text:
            yield f"{path.name} holds content"
        if "Traceback" in text:
            yield f"{path.name} has a traceback"
    for server in built.servers:
        lines = server.lines()
        yield from _loud_lines([line for line in lines if "log" not in line], row)
        yield from _calls([line for line in lines if line.get("log") == "access"], row)


def _loud_lines(lines: list[dict[str, Any]], row: Row) -> Iterator[str]:
    """What a log tells beside of calls and of audits."""
    loud = [line for line in lines if line["level"] in {"warning", "error"}]
    if len(loud) > MOST_LINES * row.times:
        yield f"{len(loud)} warnings in a log"
    for line in loud:
        if line["level"] == "error":
            where = line.get("frames", ["nowhere"])[-1].removeprefix(str(ROOT))
            yield f"the log tells of an error: {line['event'][:80]}, {line.get('error')}, {where}"


def _calls(lines: list[dict[str, Any]], row: Row) -> Iterator[str]:
    """How calls ended for the server; strangers need not have the deadline of callers."""
    for line in lines:
        method = line["method"].rpartition("/")[2]
        if line["principal"] != PRINCIPAL:
            continue
        if line["code"] in NEVER:
            yield f"{method} ended with {line['code']} for the server"
        if line["ms"] > 1000 * (DEADLINE + LATE) and not (row.stopped or method in _STREAMS):
            yield f"{method} took {line['ms'] / 1000:.1f} s in the server, {DEADLINE:.0f} s allowed"


@asynccontextmanager
async def run(seed: int, *, short: bool, code: Path = ROOT) -> AsyncIterator[Run]:
    """A run, with its PostgreSQL cluster to copy."""
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # PostgreSQL is another user when we are root
        yield Run(await Programs.find(folder / "cluster"), folder, seed, short, code)
