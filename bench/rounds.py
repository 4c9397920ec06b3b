"""A run: every workload on every target, round by round, so that a slow minute affects all targets alike."""

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bench.audit import Audit
from bench.cpu import family_mebibytes
from bench.grpc_target import limit, ours, ours_jwt
from bench.postgres import Postgres, private_postgres
from bench.target import PeerUnavailable, Target
from bench.turns import in_turn
from bench.window import Sample, measure, perform
from bench.workloads import Workload, table

Cell = tuple[str, str]  # workload, target
Open = Callable[[str, Path], AbstractAsyncContextManager[Target]]
PACE = {"ogx": 0.1}  # share of the operations, for targets that would take much longer
OWN: dict[str, Open] = {"limit": limit, "ours": ours, "ours-jwt": ours_jwt}


@dataclass(frozen=True)
class Place:
    """A target and its databases: the one it was given, and those it created."""

    target: Target
    databases: frozenset[str]


@dataclass
class Run:
    """The targets, and their figures so far."""

    postgres: Postgres
    places: Sequence[Place]
    workloads: Sequence[Workload]
    samples: dict[Cell, list[Sample]] = field(default_factory=dict)
    audits: dict[str, Audit | None] = field(default_factory=dict)
    transactions: dict[Cell, float] = field(default_factory=dict)
    mebibytes: dict[str, float] = field(default_factory=dict)
    streams: dict[str, list[Sample]] = field(default_factory=dict)  # the row of single calls comes first
    _kept: dict[Cell, list[str]] = field(default_factory=dict)

    @property
    def targets(self) -> list[Target]:
        """The targets that the workloads call."""
        return [place.target for place in self.places]

    async def warm_up(self) -> None:
        """Prepares the conversations that are kept, then fills pools and caches by a round that does not count."""
        for workload in self.workloads:
            for target in filter(workload.suits, self.targets) if workload.kept else ():
                self._kept[workload.name, target.name] = await _paced(workload, target).ready(target)
        for name in {name for place in self.places for name in place.databases}:
            await self.postgres.settle(name)
        await self._round(0)
        self.samples.clear()

    async def rounds(self, count: int) -> None:
        """Measures ``count`` rounds, with the targets in a different order each time."""
        for number in range(count):
            print(f"round {number + 1} of {count}", flush=True)
            await self._round(number)
        self.mebibytes = {target.name: family_mebibytes(target.pid) for target in self.targets}

    async def _round(self, number: int) -> None:
        for workload in self.workloads:
            for target in filter(workload.suits, in_turn(self.targets, number)):
                conversations = await self._ready(workload, target)
                sample, audited = await measure(target, _paced(workload, target), conversations, self.postgres)
                self.samples.setdefault((workload.name, target.name), []).append(sample)
                if workload.audited:
                    self._note(target.name, audited)

    def _note(self, name: str, audited: Audit | None) -> None:
        before = self.audits.get(name, Audit())
        self.audits[name] = before + audited if before and audited else None

    async def _ready(self, workload: Workload, target: Target) -> list[str]:
        if workload.kept:
            return self._kept[workload.name, target.name]
        return await _paced(workload, target).ready(target)

    def compare(self, workload: str, base: str, other: str) -> str:
        """Returns the CPU time of server and PostgreSQL for two targets, and the second as a multiple of the first."""
        first, second = ([sample.cpu_us for sample in self.samples[workload, name]] for name in (base, other))
        ratios = sorted(one / two for one, two in zip(second, first, strict=True))
        spread = f"{ratios[0]:.2f}-{ratios[-1]:.2f}"
        return f"{workload:20} {median(first):9.1f} µs {median(second):9.1f} µs {median(ratios):.2f} ({spread})"

    async def count_transactions(self) -> None:
        """Counts transactions apart from the rounds, because PostgreSQL reports them late."""
        async with self.postgres.without_autovacuum():
            counted = [work for work in self.workloads if work.main]
            ready = {
                (work.name, it.name): await self._ready(work, it)
                for work in counted
                for it in filter(work.suits, self.targets)
            }
            before = await self.postgres.transactions()
            for work in counted:
                print(f"counting transactions: {work.name}", flush=True)
                for target in filter(work.suits, self.targets):
                    await perform(target, _paced(work, target), ready[work.name, target.name])
                after = await self.postgres.transactions()
                for place in (place for place in self.places if work.suits(place.target)):
                    total = sum(after[name] - before.get(name, 0) for name in place.databases)
                    self.transactions[work.name, place.target.name] = total / _paced(work, place.target).count
                before = after


def _paced(workload: Workload, target: Target) -> Workload:
    return workload.paced(PACE.get(target.name, 1.0))


@asynccontextmanager
async def measured(openers: dict[str, Open], names: Collection[str], rounds: int, share: float) -> AsyncIterator[Run]:
    """Measures workloads on a PostgreSQL of its own, and yields the run while its targets still serve.

    Args:
        openers: Of the targets.
        names: Of the workloads.
        rounds: That count.
        share: Of the operations of each workload.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)  # under root, PostgreSQL runs as another user
        async with private_postgres(folder) as postgres, opened(postgres, folder, openers) as places:
            run = Run(postgres, places, [each for each in table(share=share) if each.name in names])
            await run.warm_up()
            await run.rounds(rounds)
            yield run


@asynccontextmanager
async def opened(postgres: Postgres, folder: Path, openers: dict[str, Open]) -> AsyncIterator[list[Place]]:
    """Opens each target with a database and a folder of its own; reports and omits peers that cannot run here."""
    async with AsyncExitStack() as stack:
        places = []
        for name, opener in openers.items():
            before, own = await postgres.databases(), folder / name
            own.mkdir()
            try:
                target = await stack.enter_async_context(opener(await postgres.database(name), own))
            except PeerUnavailable as missing:
                print(f"{name} is left out: {missing}", flush=True)
                continue
            places.append(Place(target, frozenset(await postgres.databases() - before)))
        yield places


def peers() -> dict[str, Open]:
    """The peers: the minimal server in Go, and services of other projects."""
    from bench.go_target import go  # noqa: PLC0415 - only a run with peers needs it
    from bench.ogx import ogx  # noqa: PLC0415 - likewise

    return {"go": go, "ogx": ogx}
