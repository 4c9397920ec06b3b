"""docs/reliability.md tells of every row and every defect of the fault suite, and of no other."""

import re

import pytest

from tests.faults.mutations import MUTATIONS
from tests.faults.report import DOCUMENT
from tests.faults.rows import ROWS, Row

PAGE = DOCUMENT.read_text(encoding="utf-8")
ROW_NAMES = [row.name for row in ROWS]


def table(name: str) -> list[list[str]]:
    """The cells of each line of the table between the marks of this name, without its head."""
    marked = PAGE.partition(f"<!-- {name} -->\n")[2].partition(f"<!-- end of {name} -->")[0]
    lines = [line for line in marked.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[1:]]


def section(title: str) -> str:
    """The text of a section of the page."""
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


TOLD = [cells[0] for cells in table("faults")]


def test_the_table_has_rows_of_the_suite() -> None:
    """The table of the last run has rows of the suite only, each once, in their order."""
    assert TOLD == [name for name in ROW_NAMES if name in TOLD]
    assert len(set(ROW_NAMES)) == len(ROW_NAMES)


@pytest.mark.parametrize("row", ROWS, ids=ROW_NAMES)
def test_each_row_is_told_of(row: Row) -> None:
    """A row is in the table, or the page says why it is not: it is part of the long form only, or by its name."""
    why = section("What is not reached")
    assert (
        row.name in TOLD
        or f"`{row.name}`" in why
        or (not row.short and "The table above is that of the short form" in why)
    )


def test_a_reason_that_no_longer_holds() -> None:
    """The page does not call a run of all rows a short one."""
    complete = set(TOLD) == set(ROW_NAMES)
    assert not (complete and "The table above is that of the short form" in section("What is not reached"))


def test_where_readiness_is_measured() -> None:
    """Readiness is measured only in rows whose database cannot be used meanwhile."""
    unusable = {row.name for row in ROWS if row.unusable}
    assert unusable >= {name for name, *_, not_ready, ready, _, _ in table("faults") if not_ready or ready}


def test_each_defect_is_told_of() -> None:
    """The table of defects has every mutation with the row that sees it, in their order, and what the row said."""
    expected = [(mutation.name, next(name for name in ROW_NAMES if mutation.row in name)) for mutation in MUTATIONS]
    found = table("mutations")
    assert expected == [(defect, row) for defect, row, _ in found]
    assert all(said and said != "**nothing**" for *_, said in found)
