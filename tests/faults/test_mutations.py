"""The defects of `mutations` can still be put into the code, and the rows that have to see them are there."""

import pytest

from tests.faults.mutations import MUTATIONS, Change, Mutation, MutationStale, changed_files
from tests.faults.rows import ROWS

NAMES = [f"{mutation.name}: {mutation.row}" for mutation in MUTATIONS]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=NAMES)
def test_it_applies(mutation: Mutation) -> None:
    """The text that a mutation replaces is there exactly once, and what stands there instead is Python."""
    for file, text in changed_files(mutation).items():
        compile(text, file, "exec")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=NAMES)
def test_its_row_exists(mutation: Mutation) -> None:
    """A mutation names one row."""
    assert 1 == sum(mutation.row in row.name for row in ROWS)


def test_stale_text() -> None:
    """A mutation whose text is gone is told about, and not passed over."""
    with pytest.raises(MutationStale, match=r"server/errors\.py has 'no such text' 0 times"):
        changed_files(Mutation("m", "", "", (Change("errors.py", "no such text", ""),)))
