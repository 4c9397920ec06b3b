"""The tables of docs/reliability.md."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.mutations import Mutation
from tests.faults.run import Result

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
_MIB = 1024 * 1024


@dataclass(frozen=True)
class Trial:
    """A mutation, and what its row said of it."""

    mutation: Mutation
    result: Result

    @property
    def witness(self) -> str:
        """The violation that the mutation is known by; '' when there is none."""
        return next((each for each in self.result.violations if self.mutation.sees in each), "")

    @property
    def seen(self) -> bool:
        """Whether the row saw it."""
        return bool(self.witness)


def summary(result: Result) -> str:
    """A row's result in one line."""
    told = [
        f"{result.operations:,} operations",
        f"{len(result.violations)} violations",
        f"recovery {_seconds(result.recovery)}",
        f"not ready {_seconds(result.not_ready)}",
        f"ready {_seconds(result.ready)}",
        f"{result.peak // _MIB} MiB",
        f"{result.seconds:.0f} s",
        f"own lag {_seconds(result.own_lag)}",
        str(result.codes),
        *(f"{name}: {value}" for name, value in result.facts.items()),
    ]
    return "; ".join(told)


def table_of_results(results: Sequence[Result], command: str) -> str:
    """A line for each row."""
    operations = sum(each.operations for each in results)
    violations = sum(len(each.violations) for each in results)
    lag = max((each.own_lag for each in results), default=0.0)
    seed = next((each.seed for each in results), 0)
    told = f"{operations:,} operations, {violations} violations. The suite itself was late by {_seconds(lag)} at most."
    lines = [
        f"`{command}`, seed {seed}: {told}",
        "",
        "| fault | operations | violations | worst recovery | not ready after | ready after | memory | measured |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
        *map(_line, results),
    ]
    return "\n".join(lines)


def _line(result: Result) -> str:
    measured = "; ".join(f"{name}: {value}" for name, value in result.facts.items() if name not in {"memory", "codes"})
    cells = (
        result.row.name,
        f"{result.operations:,}",
        f"{len(result.violations)}",
        _seconds(result.recovery),
        _seconds(result.not_ready),
        _seconds(result.ready),
        result.facts.get("memory", f"{result.peak // _MIB} MiB"),
        measured,
    )
    return f"| {' | '.join(cells)} |"


def table_of_trials(trials: Sequence[Trial], command: str) -> str:
    """A line for each mutation."""
    lines = [
        f"`{command}`: {sum(trial.seen for trial in trials)} of {len(trials)} defects were seen.",
        "",
        "| defect | row | what the row says of it |",
        "|---|---|---|",
        *(
            f"| {each.mutation.name} | {each.result.row.name} | {_shortened(each.witness) or '**nothing**'} |"
            for each in trials
        ),
    ]
    return "\n".join(lines)


def _shortened(sentence: str) -> str:
    """A violation without the ids in it."""
    text = re.sub(r"conv_[0-9a-f]+", "conv_…", sentence).replace("|", "\\|")
    return f"{text[:120]}…" if len(text) > 120 else text


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"


def write(table: str, name: str) -> None:
    """Puts a table between its marks in the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    marks = rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)"
    changed, count = re.subn(marks, lambda found: f"{found[1]}\n{table}\n\n{found[2]}", text, flags=re.DOTALL)
    assert count == 1, f"docs/reliability.md has no marks for {name}"
    DOCUMENT.write_text(changed, encoding="utf-8")
