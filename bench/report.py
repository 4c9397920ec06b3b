"""RESULTS.md: the figures of results.json as tables; nothing in it is written by hand."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bench.audit import Audit
from bench.results import Results

_CAVEATS = """\
- The limit is a server of the same contract around one bare statement a call (`bench/limit.py`): no identity, policy,
  validation, ids of items, interceptors. A service that has them costs more; the ratio says how much. Its deletion
  removes the rows at once; ours makes a tombstone, and `purge` removes the rows later, outside of these figures.
- Client, servers and PostgreSQL share the machine's CPUs, so rates and latencies are those of a busy machine. CPU time
  per operation hardly depends on that and is what to compare. The client's own is in none of the figures.
- CPU time of PostgreSQL is that of all its processes while a target is called, without the workers of autovacuum, which
  work for any of the databases at any time. Checkpointer and log writer count for whoever is called meanwhile.
- Transactions per operation are counted apart from the rounds (`pg_stat_database`: committed and rolled back), since
  the server tells them seconds later. A statement outside of a transaction block is one; below one, calls that came
  together shared it.
- Bytes of the write-ahead log contain the full pages that follow a checkpoint.
- Resident memory counts pages that processes of one family share for each of them.
- Of OGX a tenth of the operations is measured, or the run would take hours. What the audit calls lost there was
  acknowledged and is in its table, but its own pages leave it out.
- Percentiles are of the operations of a round; the tables give the median of the rounds.
"""
_MADE = """\
Made by `python -m bench`; do not edit. The figures are medians of the rounds of one run, in which the targets were
called in turn."""
_TIME = """\
Microseconds of the server + of PostgreSQL, and the ratio of their sum to the limit's (median of the ratios within each
round)."""


_STREAMS = """\
Items appended one at a time: CPU time of server and PostgreSQL per item in microseconds, items per second of wall
clock, and how many items the CPU time of one by CreateItems would do."""


def markdown(results: Results) -> str:
    """The whole page."""
    parts = [
        "# Benchmark",
        _MADE,
        "![CPU time per operation](results.svg)",
        "## CPU time per operation",
        _TIME,
        _cpu(results),
        "## How far the rounds are apart",
        "Smallest and largest sum of CPU time, and in brackets ratio to the limit.",
        _spread(results),
        "## Rates and latencies",
        "Operations per second; median and 99th percentile of the latency in milliseconds.",
        _rates(results),
        "## Work of the database",
        "Transactions per operation; bytes of the write-ahead log per operation.",
        _work(results),
        "## Streams",
        _STREAMS,
        _streams(results),
        "## Growth",
        "CPU time per operation in a long conversation, as a ratio to that in a short one.",
        _growth(results),
        "## Correctness",
        "Many appenders on one conversation, over all rounds: what went wrong.",
        _audits(results),
        "## Memory",
        "Resident, of the server's processes, after the last round.",
        _table(results["targets"], [[f"{results['mebibytes'][name]:.0f} MiB" for name in results["targets"]]]),
        "## Conditions",
        _conditions(results),
        "## What to keep in mind",
        _CAVEATS,
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _by_target(results: Results, cell: Any) -> str:
    """A row for each workload, a column for each target; ``cell`` writes the figures of one."""
    rows = [[name, *(cell(row[target]) for target in results["targets"])] for name, row in results["cells"].items()]
    return _table(["", *results["targets"]], rows)


def _cpu(results: Results) -> str:
    def cell(figures: Results) -> str:
        server, database = (figures[name]["median"] for name in ("server_us", "postgres_us"))
        return f"{server:,.0f} + {database:,.0f}{_ratio(figures, ', {median}')}"

    return _by_target(results, cell)


def _ratio(figures: Results, form: str) -> str:
    """The ratio in ``form``; nothing for the limit itself."""
    words = {name: f"{ratio:.2f} x" for name, ratio in figures["ratio"].items()}
    return "" if set(words.values()) == {"1.00 x"} else form.format(**words)


def _spread(results: Results) -> str:
    def cell(figures: Results) -> str:
        least, most = (figures["cpu_us"][which] for which in ("min", "max"))
        return f"{least:,.0f} … {most:,.0f}{_ratio(figures, ' ({min} … {max})')}"

    return _by_target(results, cell)


def _rates(results: Results) -> str:
    def cell(figures: Results) -> str:
        rate, middle, late = (figures[name]["median"] for name in ("per_second", "p50_ms", "p99_ms"))
        return f"{rate:,.{1 if rate < 100 else 0}f}/s, {middle:,.1f}, {late:,.1f}"

    return _by_target(results, cell)


def _work(results: Results) -> str:
    def cell(figures: Results) -> str:
        counted = figures["transactions"]
        transactions = "not counted" if counted is None else f"{counted:.2f}"
        return f"{transactions}; {figures['wal_bytes']['median']:,.0f} B"

    return _by_target(results, cell)


def _growth(results: Results) -> str:
    return _table(["", *results["targets"]], _growth_rows(results))


def _growth_rows(results: Results) -> Iterator[list[str]]:
    for short, long in results["growth"]:
        pairs = [(results["cells"][short][name], results["cells"][long][name]) for name in results["targets"]]
        ratios = [after["cpu_us"]["median"] / before["cpu_us"]["median"] for before, after in pairs]
        yield [f"{long} : {short}", *(f"{ratio:.2f} x" for ratio in ratios)]


def _streams(results: Results) -> str:
    rows = [
        [
            name,
            f"{its['cpu_us']['median']:,.0f}",
            f"{its['per_second']['median']:,.0f}",
            f"{its['gain']['median']:.1f} x",
        ]
        for name, its in results["streams"].items()
    ]
    return _table(["", "CPU µs", "items/s", "against CreateItems"], rows)


def _audits(results: Results) -> str:
    rows = [[name, str(Audit(**found)) if found else "cannot be audited"] for name, found in results["audits"].items()]
    return "\n".join(f"- **{name}**: {words}" for name, words in rows)


def _conditions(results: Results) -> str:
    how, machine = results["how"], results["machine"]
    postgres = ", ".join(f"{name} {value}" for name, value in results["postgres"].items())
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    lines = [
        f"{results['date']}; {how['rounds']} rounds after a warm-up; {how['callers']} callers unless it says else",
        f"{machine['cpus']} CPUs ({machine['cpu']}), {machine['system']}",
        versions,
        f"PostgreSQL: {postgres}",
    ]
    counts = [[name, f"{its['operations']:,}", str(its["callers"])] for name, its in results["workloads"].items()]
    return "\n".join(f"- {line}" for line in lines) + "\n\n" + _table(["", "operations in a round", "callers"], counts)


def summary(results: Results) -> Iterator[str]:
    """Lines for the terminal: CPU time per operation, and the ratio to the limit."""
    for workload, row in results["cells"].items():
        cells = (
            f"{name} {cell['cpu_us']['median']:,.0f} µs{_ratio(cell, ' ({median})')}" for name, cell in row.items()
        )
        yield f"{workload:34} {'   '.join(cells)}"
