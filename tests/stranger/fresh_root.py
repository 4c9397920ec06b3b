"""A place without the repository: a root of its own that has this machine's programs, and an empty home."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE

# What a program finds in the root: the system, and the languages that lie elsewhere. All of it is read-only.
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt")
_LIVE = ("/dev", "/proc")
HOME = "/home/stranger"
_DONE = "the-step-is-done"  # on a line of its own
_ENTER = """
root=$1; shift
for each in {read_only}; do
  if [ -L "$each" ]; then ln -sfnT "$(readlink "$each")" "$root$each"; continue; fi
  mkdir -p "$root$each"; mount --rbind "$each" "$root$each"; mount -o remount,bind,ro "$root$each"
done
for each in {live}; do mkdir -p "$root$each"; mount --rbind "$each" "$root$each"; done
exec chroot "$root" "$@"
"""
# How this machine reaches package indexes: certificates, and settings that would otherwise lie in the home.
_OF_THE_MACHINE = (
    "SSL_CERT",
    "CURL_CA",
    "REQUESTS_CA",
    "NODE_EXTRA_CA",
    "PIP_",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)


class StepFailedError(Exception):
    """A command failed; the text is what the commands wrote."""


@dataclass(frozen=True)
class Shell:
    """A bash in the root, as a person has one: what a step sets, and what it starts, is there for the next."""

    home: Path
    process: "subprocess.Popen[str]"

    def run(self, script: str) -> str:
        """Runs a script; returns what it prints.

        Raises:
            StepFailedError: One of its commands failed, which ends the shell.
        """
        (self.home / "step.sh").write_text(script, encoding="utf-8")
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f". ~/step.sh </dev/null\nprintf '\\n%s\\n' {_DONE}\n")
        self.process.stdin.flush()
        lines: list[str] = []
        for line in self.process.stdout:
            if line.strip() == _DONE:
                return "".join(lines)
            lines.append(line)
        raise StepFailedError("".join(lines) + (self.home / "errors").read_text(encoding="utf-8"))


@contextmanager
def fresh_shell(folder: Path) -> Iterator[Shell]:
    """A shell in a root below ``folder``; what it started ends with it."""
    home = folder / HOME.removeprefix("/")
    home.mkdir(parents=True)
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o1777)
    read_only = " ".join(each for each in (*_SYSTEM, sys.base_prefix) if Path(each).exists())
    enter = _ENTER.format(read_only=read_only, live=" ".join(_LIVE))
    inside = ("bash", "-c", f"cd {HOME}; exec bash -euo pipefail -s 2>errors")
    command = ("unshare", "--mount", "bash", "-euc", enter, "enter", str(folder), *inside)
    process = subprocess.Popen(command, env=_environment(), stdin=PIPE, stdout=PIPE, text=True, start_new_session=True)
    try:
        with process:
            yield Shell(home, process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # a server that is killed would leave its PostgreSQL


def _environment() -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if name.upper().startswith(_OF_THE_MACHINE)}
    go = Path(shutil.which("go") or "/usr/bin/go").resolve().parent
    path = os.pathsep.join(
        (f"{sys.base_prefix}/bin", str(go), "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin")
    )
    return kept | _index_settings() | {"HOME": HOME, "PATH": path, "LANG": "C.UTF-8"}


def _index_settings() -> dict[str, str]:
    """Where Go and npm get packages on this machine."""
    names = ("GOPROXY", "GOSUMDB", "GOTOOLCHAIN")
    values = subprocess.run(("go", "env", *names), capture_output=True, text=True, check=True).stdout.splitlines()
    registry = subprocess.run(("npm", "config", "get", "registry"), capture_output=True, text=True, check=True).stdout
    return dict(zip(names, values, strict=True)) | {"npm_config_registry": registry.strip()}
