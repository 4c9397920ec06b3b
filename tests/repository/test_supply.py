"""What others wrote: every package is pinned, and its licence agreed to."""

from email.message import Message
from importlib.metadata import Distribution
from os import PathLike

import pytest

from supply import licences
from supply.installed import brought, constraints, groups
from supply.licences import is_agreed, licence_of


def test_constraints_are_what_is_installed() -> None:
    """constraints.txt has all that the service and its extras bring, at the versions tested here, and no more."""
    installed = brought(each for requirements in groups().values() for each in requirements)
    assert {name: package.version for name, package in installed.items()} == constraints()


def test_licences_are_agreed_to() -> None:
    """Nothing has a licence that nobody looked at, and docs/licences.md is what `make licences` gives."""
    assert [] == list(licences.problems())
    assert licences.page() == licences.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("expression", "handed_on", "tool"),
    [
        ("MIT", True, True),
        ("Apache-2.0 AND MIT", True, True),
        ("MIT OR GPL-3.0-only", True, True),
        ("GPL-3.0", False, True),
        ("MIT AND GPL-3.0", False, True),
        ("MIT AND MPL-2.0", True, True),
        ("MIT AND GPL-3.0-only", False, False),
        ("AGPL-3.0-or-later", False, False),
        ("MIT AND (MIT OR GPL-3.0-only)", False, False),  # brackets are for people
        (None, False, False),
        ("", False, False),
    ],
)
def test_what_is_agreed_to(expression: str | None, handed_on: bool, tool: bool) -> None:  # noqa: FBT001
    """A choice needs one agreed licence, a sum all of them."""
    assert (handed_on, tool) == (is_agreed(expression, tool=False), is_agreed(expression, tool=True))


class Package(Distribution):
    """One that says this of itself."""

    def __init__(self, *lines: tuple[str, str]) -> None:
        self._message = Message()
        for name, value in lines:
            self._message[name] = value

    def read_text(self, filename: str) -> str | None:
        """The file of that name."""
        return self._message.as_string() if filename == "METADATA" else None

    def locate_file(self, path: str | PathLike[str]) -> None:  # type: ignore[override]
        """Nowhere."""
        raise NotImplementedError


CLASSIFIER = "License :: OSI Approved :: "


@pytest.mark.parametrize(
    ("lines", "licence"),
    [
        ([("License-Expression", "GPL-3.0-only"), ("Classifier", f"{CLASSIFIER}MIT License")], "GPL-3.0-only"),
        ([("License", "Apache 2.0")], "Apache-2.0"),
        ([("License", "BSD-3-Clause"), ("Classifier", f"{CLASSIFIER}BSD License")], "BSD-3-Clause"),
        ([("Classifier", f"{CLASSIFIER}ISC License (ISCL)")], None),  # a spelling that nobody wrote down
        ([("Classifier", f"{CLASSIFIER}BSD License")], None),  # which of them?
        ([("Classifier", f"{CLASSIFIER}GNU General Public License v3 (GPLv3)")], None),
        ([("Classifier", "Topic :: MIT License")], None),
        ([], None),
    ],
)
def test_what_a_package_says(lines: list[tuple[str, str]], licence: str | None) -> None:
    """Its expression counts; what it says in older ways counts if it is plain."""
    assert licence == licence_of(Package(("Name", "example"), *lines))
