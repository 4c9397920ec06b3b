"""Writes what was measured as tables, with the targets beside the figures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.percentiles import percentile
from bench.report import conditions, markdown_table
from bench.watch.append_cost import ALONE, IDLE, LOGGED, VARIANTS, WATCHED
from bench.watch.delays import Sample
from bench.watch.figures import Figure
from bench.watch.holding import Held
from bench.watch.run import Measurements
from bench.watch.sizes import Cell

SAME_MEDIAN_MS, SAME_LATE_MS, OTHER_LATE_MS = 50.0, 150.0, 250.0
IDLE_RATIO, LOGGED_RATIO, KIBIBYTES, MANY_PERCENT = 1.03, 1.05, 32.0, 10.0
_WATCH_SECONDS = 300  # how long a watch lasts before it is renewed (watch_seconds)

_MADE = """\
Written by `python -m bench.watch --write`; do not edit. Figures are medians of the rounds of one run; the smallest and
the largest of the rounds stand in brackets. A target is met if the median is; in brackets how many rounds met it."""
_DELAYS = """\
Milliseconds until an item arrives at the watch of its conversation, from the answer of its append and from sending it:
median and 99th percentile of each round. Every append is watched. Appends come by the clock, at random moments. They go
through the process that holds the watches, or through another one on the same database. An item can arrive before the
answer of its append, which makes the delay negative."""
_CPU = """\
Percent of a core: both servers, PostgreSQL, and the busier of the two processes that watch and append. The last column
is the part of all cores of the machine that anything used. The watches have just been opened, so these figures contain
polls and no bookmarks, which come every 30 seconds; those of the watches that are held contain both."""
_COSTS = """\
The ratios are those of the sums of server and PostgreSQL within a pass over the variants. Watches are `held`
by a server that was started for them. Its CPU time contains polls and bookmarks. One row adds the CPU time of opening
each watch again every 300 seconds, when the server ends its stream (`watch_seconds`)."""
_CAVEATS = """\
- Watches, callers, servers and PostgreSQL share the cores of the machine, so delays are those of a busy machine. The
  processes that watch and append use CPU time of their own, which is in none of the figures but theirs.
- A delay contains what the event loops of these processes add. Where that was much, a warning says so.
- CPU time of PostgreSQL includes all its processes except autovacuum workers."""


@dataclass(frozen=True)
class Row:
    """A figure with its name."""

    name: str
    figure: Figure
    unit: str


def delays(cell: Cell, samples: Sequence[Sample]) -> tuple[Figure, Figure, Figure, Figure]:
    """Median and 99th percentile from the answer, then from sending."""

    def figure(each: str, percent: int, target: float | None = None) -> Figure:
        return Figure([percentile(getattr(sample, each), percent) for sample in samples], 1, target)

    middle, late = (None, OTHER_LATE_MS) if cell.is_other else (SAME_MEDIAN_MS, SAME_LATE_MS)
    return (
        figure("after_answer", 50, middle),
        figure("after_answer", 99, late),
        figure("after_sending", 50),
        figure("after_sending", 99),
    )


def rows(found: Measurements) -> Iterator[Row]:
    """Yields the figures other than those of the delays."""
    if found.costs:
        yield from _costs(found)
    if found.held:
        yield from _held(f"{found.sizes.idle:,} held", found.held)
    if found.many:
        yield from _held(f"{found.sizes.many:,} held", [found.many])
        yield from _over_time(f"{found.sizes.many:,} held", found.sizes.many, found.many)
    if found.fan_outs:
        yield from _fan_outs(found)


def _costs(found: Measurements) -> Iterator[Row]:
    names = {variant: variant for variant in VARIANTS} | {IDLE: f"{found.sizes.idle:,} {IDLE}"}
    for variant, name in names.items():
        costs = [each[variant] for each in found.costs]
        yield Row(f"append, {name}: server", Figure([cost.server for cost in costs], 0), "µs")
        yield Row(f"append, {name}: PostgreSQL", Figure([cost.postgres for cost in costs], 0), "µs")
    for variant, target in ((IDLE, IDLE_RATIO), (LOGGED, LOGGED_RATIO), (WATCHED, None)):
        ratios = [each[variant].total / each[ALONE].total for each in found.costs]
        yield Row(f"append, {names[variant]}: ratio to {ALONE}", Figure(ratios, 3, target), "x")


def _held(name: str, held: Sequence[Held]) -> Iterator[Row]:
    yield Row(f"{name}: memory of a watch", Figure([each.kibibytes for each in held], 1, KIBIBYTES), "KiB")
    yield Row(f"{name}: opening a watch, server + PostgreSQL", Figure([each.opening for each in held], 0), "µs")


def _over_time(name: str, watches: int, held: Held) -> Iterator[Row]:
    server = [usage.server / usage.seconds * 100 for usage in held.windows]
    postgres = [usage.postgres / usage.seconds * 100 for usage in held.windows]
    both = [one + other for one, other in zip(server, postgres, strict=True)]
    renewing = watches * held.opening / 1e6 / _WATCH_SECONDS * 100
    yield Row(f"{name}: server", Figure(server), "% of a core")
    yield Row(f"{name}: PostgreSQL", Figure(postgres), "% of a core")
    yield Row(f"{name}: both", Figure(both, 1, MANY_PERCENT), "% of a core")
    renewed = Figure([share + renewing for share in both])
    yield Row(f"{name}: both, with renewals (computed)", renewed, "% of a core")


def _fan_outs(found: Measurements) -> Iterator[Row]:
    name = f"fan-out to {found.sizes.followers:,}"
    firsts = [percentile([each.first for each in fans], 50) for fans in found.fan_outs]
    lasts = [percentile([each.last for each in fans], 50) for fans in found.fan_outs]
    longest = [max(each.last for each in fans) for fans in found.fan_outs]
    yield Row(f"{name}: answer until the first is told", Figure(firsts), "ms")
    yield Row(f"{name}: answer until the last is told", Figure(lasts), "ms")
    yield Row(f"{name}: the same, longest in a round", Figure(longest), "ms")


def page(found: Measurements) -> str:
    """Returns the page."""
    parts = ["# Watches", _MADE]
    if found.delays:
        parts += ["## Delays", _DELAYS, _delay_table(found), "## CPU time", _CPU, _cpu_table(found)]
    if found_rows := list(rows(found)):
        cells = ([row.name, str(row.figure), row.unit, row.figure.verdict] for row in found_rows)
        parts += ["## Costs", _COSTS, markdown_table(["", "figure", "unit", "target"], cells)]
    parts += ["## Warnings", "\n".join(f"- {warning}" for warning in found.warnings) or "None."]
    run = f"{found.rounds} rounds after a warm-up, {found.sizes.seconds:g} s for each cell of the delays"
    parts += ["## Conditions", conditions(found.conditions, run), "## How to read the figures", _CAVEATS]
    return "\n\n".join(parts) + "\n"


def _place(cell: Cell) -> list[str]:
    return [f"{cell.watches:,}", f"{cell.rate:,}", cell.way]


def _delay_table(found: Measurements) -> str:
    header = ["watches", "appends/s", "through"]
    header += ["answer, median", "target", "answer, 99 %", "target", "sending, median", "sending, 99 %", "answered/s"]
    lines = []
    for cell, samples in found.delays.items():
        if cell.way:
            middle, late, sent, sent_late = delays(cell, samples)
            answered = Figure([sample.per_second for sample in samples], 0)
            line = [str(middle), middle.verdict, str(late), late.verdict, str(sent), str(sent_late), str(answered)]
            lines.append([*_place(cell), *line])
    return markdown_table(header, lines)


def _cpu_table(found: Measurements) -> str:
    lines = []
    for cell, samples in found.delays.items():
        usages = [sample.usage for sample in samples]
        shares = (
            [usage.server / usage.seconds * 100 for usage in usages],
            [usage.postgres / usage.seconds * 100 for usage in usages],
            [max(usage.generators) / usage.seconds * 100 for usage in usages],
            [usage.busy * 100 for usage in usages],
        )
        lines.append([*_place(cell), *(str(Figure(share)) for share in shares)])
    return markdown_table(["watches", "appends/s", "through", "servers", "PostgreSQL", "load", "machine"], lines)
