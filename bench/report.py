"""Writes RESULTS.md: the figures of results.json as tables."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bench.audit import Audit
from bench.results import LATENCY_GOAL, Results

_CAVEATS = """\
- `limit` is a minimal server of the same contract that runs one bare statement a call (`bench/limit.py`): no identity,
  policy, validation, item ids or interceptors. The ratio to it shows what these cost. Its delete removes the rows at
  once. The delete of this service makes a tombstone, and `purge` removes the rows later, outside of these figures.
- `go` is the same server in Go (`bench/go`): the same statements, on grpc-go and pgx. The ratio to it shows what Python
  and its gRPC server cost. The client is in Python and shares the CPUs, so its rates are a lower limit of Go's.
- Clients, servers and PostgreSQL share the CPUs of the machine, so rates and latencies are those of a busy machine. CPU
  time per operation hardly depends on that: compare it. The clients' own CPU time is in none of the figures.
- The CPU time of PostgreSQL includes all its processes while a target is called, except autovacuum workers, which serve
  any database at any time. The checkpointer and the log writer count for the target that is called meanwhile.
- Transactions per operation are counted apart from the rounds (`pg_stat_database`: committed and rolled back), because
  PostgreSQL reports them seconds later. A statement outside of a transaction block counts as one. Values below one mean
  that several calls shared a statement or a round trip.
- Bytes of the write-ahead log include the full pages that follow a checkpoint.
- Resident memory counts a page that several processes share once for each of them.
- OGX is measured with a tenth of the operations, because the run would take hours otherwise. Items that the audit
  reports as lost there were acknowledged and are in its table, but its own pages leave them out.
- Percentiles are those of the operations of one round; the tables show the median of the rounds.
"""
_MADE = """\
Written by `python -m bench`; do not edit. The figures are medians of the rounds of one run, in which the targets took
turns. `limit` is a minimal server to compare with, `ours` is this service without identity, and `ours-jwt` is this
service with tokens and a policy of 50 rules."""
_TIME = """\
Microseconds of the server + of PostgreSQL, and the ratio of their sum to that of `limit` (median of the ratios within
the rounds)."""


_PERCENTILES = """\
Median and 99th percentile of the latency in milliseconds, with their ratios to those of `limit` (median of the ratios
within the rounds)."""
_STREAMS = """\
Items appended one at a time: CPU time of server and PostgreSQL per item in microseconds, items per second, and how many
items AppendItems appends in the CPU time that CreateItems needs for one."""


def markdown(results: Results) -> str:
    """Returns the whole page."""
    parts = [
        "# Benchmark",
        _MADE,
        "![CPU time per operation](results.svg)",
        "## CPU time per operation",
        _TIME,
        _cpu(results, main=True),
        "## CPU time with fewer callers",
        "The same figures with other numbers of callers.",
        _cpu(results, main=False),
        "## Spread of the rounds",
        "Smallest and largest sum of CPU time; in brackets the smallest and largest ratio to `limit`.",
        _spread(results),
        "## Rates",
        "Operations per second.",
        _rates(results),
        "## Latencies",
        _PERCENTILES,
        latencies(results),
        late(results),
        "## Work of the database",
        "Transactions per operation; bytes of the write-ahead log per operation.",
        _work(results),
        "## Streams",
        _STREAMS,
        _streams(results),
        "## Growth",
        "Ratio of the CPU time per operation in a long conversation to that in a short one.",
        _growth(results),
        "## Correctness",
        "Faults found after many clients appended to one conversation concurrently, over all rounds.",
        _audits(results),
        "## Memory",
        "Resident memory of the server's processes after the last round.",
        markdown_table(results["targets"], [[f"{results['mebibytes'][name]:.0f} MiB" for name in results["targets"]]]),
        "## Conditions",
        _conditions(results),
        "## How to read the figures",
        _CAVEATS,
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table whose columns are aligned to the right, except the first."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _by_target(results: Results, cell: Any, names: Iterable[str] | None = None) -> str:
    """Makes a table with a row for each workload and a column for each target.

    Args:
        results: The figures.
        cell: Formats the figures of one target; a target that the workload leaves out has no cell.
        names: The workloads; all by default.
    """
    rows = [
        [name, *(cell(row[target]) if target in row else "" for target in results["targets"])]
        for name, row in ((name, results["cells"][name]) for name in names or results["cells"])
    ]
    return markdown_table(["", *results["targets"]], rows)


def _main(results: Results, *, main: bool) -> list[str]:
    return [name for name, its in results["workloads"].items() if its["main"] is main]


def _cpu(results: Results, *, main: bool) -> str:
    def cell(figures: Results) -> str:
        server, database = (figures[name]["median"] for name in ("server_us", "postgres_us"))
        return f"{server:,.0f} + {database:,.0f}{_ratio(figures, ', {median}')}"

    return _by_target(results, cell, _main(results, main=main))


def _ratio(figures: Results, form: str, which: str = "ratio") -> str:
    """Formats a ratio by ``form``; returns nothing for `limit` itself."""
    words = {name: f"{ratio:.2f} x" for name, ratio in figures[which].items()}
    return "" if set(words.values()) == {"1.00 x"} else form.format(**words)


def _spread(results: Results) -> str:
    def cell(figures: Results) -> str:
        least, most = (figures["cpu_us"][which] for which in ("min", "max"))
        return f"{least:,.0f} … {most:,.0f}{_ratio(figures, ' ({min} … {max})')}"

    return _by_target(results, cell)


def _rates(results: Results) -> str:
    def cell(figures: Results) -> str:
        rate = figures["per_second"]["median"]
        return f"{rate:,.{1 if rate < 100 else 0}f}/s"

    return _by_target(results, cell)


def latencies(results: Results) -> str:
    """Returns the table of the percentiles."""

    def percentile(figures: Results, name: str) -> str:
        return f"{figures[f'{name}_ms']['median']:,.2f}{_ratio(figures, ' ({median})', f'{name}_ratio')}"

    return _by_target(results, lambda figures: f"{percentile(figures, 'p50')}; {percentile(figures, 'p99')}")


def late(results: Results) -> str:
    """Returns a sentence for each of our targets: the workloads whose 99th percentile exceeds the goal."""
    lines = []
    for target in results["targets"]:
        over = [
            f"{name} ({row[target]['p99_ratio']['median']:.2f} x)"
            for name, row in results["cells"].items()
            if target in row and row[target]["p99_ratio"]["median"] > LATENCY_GOAL
        ]
        if target.startswith("ours"):
            lines.append(
                f"- **{target}**: 99th percentile above {LATENCY_GOAL} x in {', '.join(over) or 'no workload'}."
            )
    return "\n".join(lines)


def _work(results: Results) -> str:
    def cell(figures: Results) -> str:
        counted = figures["transactions"]
        transactions = "not counted" if counted is None else f"{counted:.2f}"
        return f"{transactions}; {figures['wal_bytes']['median']:,.0f} B"

    return _by_target(results, cell, _main(results, main=True))


def _growth(results: Results) -> str:
    return markdown_table(["", *results["targets"]], _growth_rows(results))


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
    return markdown_table(["", "CPU µs", "items/s", "against CreateItems"], rows)


def _audits(results: Results) -> str:
    rows = [[name, str(Audit(**found)) if found else "cannot be audited"] for name, found in results["audits"].items()]
    return "\n".join(f"- **{name}**: {words}" for name, words in rows)


def _conditions(results: Results) -> str:
    how = results["how"]
    run = f"{how['rounds']} rounds after a warm-up; {how['callers']} callers unless stated otherwise"
    counts = [[name, f"{its['operations']:,}", str(its["callers"])] for name, its in results["workloads"].items()]
    return conditions(results, run) + "\n\n" + markdown_table(["", "operations in a round", "callers"], counts)


def conditions(results: Results, run: str) -> str:
    """Returns a list of the conditions under which a run was measured; ``run`` says how."""
    machine = results["machine"]
    postgres = ", ".join(f"{name} {value}" for name, value in results["postgres"].items())
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    lines = [
        f"{results['date']}; {run}",
        f"{machine['cpus']} CPUs ({machine['cpu']}), {machine['system']}",
        versions,
        f"PostgreSQL: {postgres}",
    ]
    return "\n".join(f"- {line}" for line in lines)


def summary(results: Results) -> Iterator[str]:
    """Yields lines for the terminal: CPU time per operation, and the ratio to `limit`."""
    for workload, row in results["cells"].items():
        cells = (
            f"{name} {cell['cpu_us']['median']:,.0f} µs{_ratio(cell, ' ({median})')}" for name, cell in row.items()
        )
        yield f"{workload:34} {'   '.join(cells)}"
