"""Finds the packages of the service and its extras. `python -m supply.installed` prints those of an image."""

import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
NOT_IN_AN_IMAGE = ("embedded", "dev")


def groups() -> dict[str, list[str]]:
    """Returns the requirements of the service and of each of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"service": project["dependencies"], **project["optional-dependencies"]}


def brought(requirements: Iterable[str]) -> dict[str, Distribution]:
    """Returns the installed packages that fulfil ``requirements``, with their dependencies, by name.

    Raises:
        PackageNotFoundError: One is not installed.
    """
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    pending = [Requirement(each) for each in requirements]
    for requirement in pending:  # it grows meanwhile
        wanted = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if wanted not in seen:
            seen.add(wanted)
            found[wanted[0]] = distribution(wanted[0])
            pending.extend(_needs(found[wanted[0]], wanted[1]))
    return found


def constraints() -> dict[str, str]:
    """The version of each package in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pairs = (line.split("==") for line in lines)
    return {canonicalize_name(name): version for name, version in pairs}


def _needs(package: Distribution, extras: frozenset[str]) -> list[Requirement]:
    """Returns the dependencies of a package on this Python and system, with the given extras."""
    needed = [Requirement(line) for line in package.requires or ()]
    return [
        each
        for each in needed
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("", *extras))
    ]


def main() -> None:
    """Prints the requirements of an image: all groups except those that it does not contain."""
    asked = (each for group, requirements in groups().items() if group not in NOT_IN_AN_IMAGE for each in requirements)
    sys.stdout.writelines(f"{each}\n" for each in asked)


if __name__ == "__main__":
    main()
