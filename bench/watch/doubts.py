"""When the load, or another program, decided figures rather than the service."""

from collections.abc import Iterator, Mapping
from math import sqrt

from bench.watch.sizes import Cell
from bench.watch.usage import Usage

_MOST_LATE_MS = 10.0  # of the processes that make load (99 %)
_MOST_SHARE = 0.8  # of a core, that such a process may use
_MOST_OTHERS = 0.1  # of all cores, that programs may use which are no part of the run
_LEAST_ANSWERED = 0.95  # of the appends that the clock asks for, less the chance of the times
_DEVIATIONS = 3
Doubt = tuple[str, str]  # a name, and a sentence


def doubt_others(where: str, usage: Usage) -> Iterator[Doubt]:
    """Yields a doubt if programs that are no part of the run used the machine."""
    if usage.others > _MOST_OTHERS:
        yield f"{where} others", f"{where}: other programs used {usage.others:.0%} of all cores in a round."


def doubts(cell: Cell, usage: Usage, late: float, per_second: float, failed: Mapping[str, int]) -> Iterator[Doubt]:
    """Yields a name and a sentence for each reason to doubt a round.

    Args:
        cell: What was measured.
        usage: What was used.
        late: How many milliseconds the processes that make load were late (99 %).
        per_second: Appends that were answered.
        failed: How many were not, by the status code they ended with.
    """
    where = ", ".join(filter(None, (f"{cell.watches:,} watches", f"{cell.rate:,} appends/s", cell.way)))
    yield from doubt_others(where, usage)
    if late > _MOST_LATE_MS:
        yield f"{where} late", f"{where}: the load was {late:.0f} ms late (99 %) in a round, which is in its delays."
    if (share := max(usage.generators) / usage.seconds) > _MOST_SHARE:
        yield f"{where} share", f"{where}: a process of the load used {share:.0%} of a core in a round: its limit."
    chance = _DEVIATIONS * sqrt(cell.rate / usage.seconds)
    if failed or per_second < cell.rate * _LEAST_ANSWERED - chance:
        codes = ", ".join(f"{count} failed with {code}" for code, count in failed.items()) or "none failed"
        yield f"{where} rate", f"{where}: {per_second:,.0f} appends/s were answered in a round; {codes}."
