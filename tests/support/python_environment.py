"""Environments of their own for Python programs whose packages are not those of the tests."""

import shutil
import sys
from pathlib import Path

from tests.support.commands import ROOT
from tests.support.programs import run_program

_SECONDS = 300.0  # for the packages of an environment that is not there yet


async def python_environment(name: str, requirements: Path) -> Path:
    """Returns the folder of programs of an environment below `build/` that has exactly the packages of a file.

    An environment that has them already is used as it is, so that nothing is asked of a package index.
    """
    folder = ROOT / "build" / "environments" / name
    programs, written = folder / "bin", requirements.read_text(encoding="utf-8")
    stamp = folder / "requirements.txt"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == written:
        return programs
    shutil.rmtree(folder, ignore_errors=True)
    await run_program(sys.executable, "-m", "venv", str(folder), seconds=_SECONDS)
    install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement", str(requirements))
    await run_program(str(programs / "python"), *install, seconds=_SECONDS)
    stamp.write_text(written, encoding="utf-8")
    return programs
