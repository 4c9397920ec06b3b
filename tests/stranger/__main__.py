"""The command."""

import shutil
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.stranger.fresh_root import Shell, StepFailedError, fresh_shell
from tests.stranger.steps import STEPS, Step
from tests.support.tools import FOLDER

EXAMPLES = Path(__file__).parents[2] / "examples" / "first-call"


def main() -> None:
    """Goes through the steps, prints the table, and exits with 1 at the first that fails."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)  # the private PostgreSQL is another user when we are root
        with fresh_shell(Path(name)) as shell:
            _bring(Path(sys.argv[1]), shell.home)
            try:
                _print_table(shell)
            except StepFailedError as error:
                sys.exit(str(error))


def _bring(dist: Path, home: Path) -> None:
    """Copies the files of a release, the programs that call it, and Helm."""
    shutil.copytree(dist, home / "dist", ignore=shutil.ignore_patterns("*.oci.tar"))
    shutil.copytree(EXAMPLES, home / "first-call", ignore=shutil.ignore_patterns("gen", "node_modules", "target"))
    shutil.copy(FOLDER / "helm", home / "helm")


def _print_table(shell: Shell) -> None:
    shell.run("PATH=$HOME:$PATH")
    print("| step | commands | seconds |\n|---|--:|--:|")
    began = time.monotonic()
    for step in STEPS:
        print(f"| {step.name} | {len(step.commands)} | {_take(shell, step):.0f} |", flush=True)
    print(f"| all | {sum(len(step.commands) for step in STEPS)} | {time.monotonic() - began:.0f} |")


def _take(shell: Shell, step: Step) -> float:
    """Takes a step; returns how many seconds it took."""
    began = time.monotonic()
    printed = shell.run("\n".join(step.commands)).strip()
    if not printed.endswith(step.prints):  # Maven prints a change of colours in front
        raise StepFailedError(f"{step.name} printed {printed!r}, not {step.prints!r}")
    return time.monotonic() - began


if __name__ == "__main__":
    main()
