"""Environments of their own for Python programs whose packages are not those of the tests."""

import asyncio
import os
import shutil
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

from tests.support.commands import ROOT

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


async def run_program(*command: str, seconds: float, folder: Path = ROOT) -> str:
    """The output of a program that has to end well, within so many seconds."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=STDOUT, cwd=folder, env=kept)
    try:
        async with asyncio.timeout(seconds):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert 0 == process.returncode, output.decode(errors="replace")
    return output.decode()
