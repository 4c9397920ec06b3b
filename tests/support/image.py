"""The image of the Dockerfile, built by buildah, as root and without a registry.

What the Dockerfile calls `python:3.13-slim` is made here, of Debian's packages; the Dockerfile itself is built as it
is. All of it stays below `build/`, so a second run builds only what changed.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from supply.image import write_image

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "image"
NAME = "localhost/conversation-service"
BASE = "docker.io/library/python:3.13-slim"
TOOLS = ("buildah", "debootstrap", "runc", "unshare")

# Debian's Python where the official image has its own, with pip and nothing else of what that image lacks.
_AS_THE_OFFICIAL_ONE = """
ln -s /usr/bin/python3 /usr/local/bin/python3 && ln -s python3 /usr/local/bin/python
wheel=$(echo /usr/share/python-wheels/pip-*.whl)
python3 "$wheel/pip" install -q --root-user-action=ignore --no-index --break-system-packages "$wheel"
rm -rf /usr/lib/python3.*/EXTERNALLY-MANAGED /usr/share/python-wheels
rm -rf /var/cache/apt/archives/*.deb /var/lib/apt/lists/* && touch /etc/pip.conf
"""


def no_namespaces() -> str:
    """Why images cannot be built here, although the tools are installed; '' if they can."""
    if os.geteuid():
        return "images are built by root"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        return "this machine does not permit mount namespaces"
    return ""


@dataclass(frozen=True)
class Image:
    """What was built, and a copy of its files."""

    files: Path
    about: dict[str, Any]

    @cached_property
    def config(self) -> dict[str, Any]:
        """As `docker inspect` has it: User, Env, Entrypoint and the like."""
        found: dict[str, Any] = self.about["Docker"]["config"]
        return found

    @property
    def environment(self) -> dict[str, str]:
        """What its processes are told by the image alone."""
        return dict(entry.split("=", 1) for entry in self.config["Env"])

    @property
    def command(self) -> list[str]:
        """What runs when nothing else is said."""
        return [*self.config["Entrypoint"], *self.config["Cmd"]]


@contextmanager
def built() -> Iterator[Image]:
    """The image of the Dockerfile as it is now."""
    KEPT.mkdir(parents=True, exist_ok=True)
    if not _buildah("images", "--quiet", "--filter", f"reference={BASE}"):
        _make_base()
    _buildah("build", "--quiet", *_how(), "--format=docker", "--tag", NAME, str(ROOT))
    with TemporaryDirectory(dir=KEPT) as name:
        files = Path(name) / "files"
        with _working_container(NAME) as container:
            # A copy: a mount would outlive a test that is killed, and nobody could remove `build`.
            _run(*_APART, "sh", "-euc", 'cp -a "$("$@")" "$0"', str(files), *_BUILDAH, "mount", container)
        yield Image(files, json.loads(_buildah("inspect", "--type", "image", NAME)))


def oci_archive(folder: Path) -> Path:
    """The image as a release has it, built into ``folder``; `built` has made its base before."""
    return write_image(folder, (*_APART, *_BUILDAH), _how())


def size(name: str) -> int:
    """Bytes of an image, all layers together."""
    (found,) = json.loads(_buildah("images", "--json", "--filter", f"reference={name}"))
    number, unit = found["size"].split()
    return round(float(number) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit])


def _make_base() -> None:
    with TemporaryDirectory(dir=KEPT) as name:
        files = Path(name) / "files"
        packages = "ca-certificates,netbase,python3,python3-venv,tzdata"
        _run(*_APART, "debootstrap", "--variant=minbase", f"--include={packages}", "trixie", str(files))
        _run("chroot", str(files), "sh", "-euc", _AS_THE_OFFICIAL_ONE)
        with _working_container("scratch") as container:
            _buildah("copy", "--quiet", container, str(files), "/")
            _buildah("config", "--env", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
            _buildah("commit", "--quiet", "--format", "docker", container, BASE)


def _how() -> list[str]:
    how = ["--isolation=chroot", "--network=host", "--pull-never", "--layers", "--force-rm"]
    return how + _of_this_machine()


def _of_this_machine() -> list[str]:
    """What pip needs here to reach packages; none of it stays in the image."""
    certificates = os.environ.get("PIP_CERT", "/etc/ssl/certs/ca-certificates.crt")
    there = {"/etc/pip.conf": "/etc/pip.conf", certificates: "/etc/ssl/certs/ca-certificates.crt"}
    return [f"--volume={here}:{inside}:ro" for here, inside in there.items() if Path(here).exists()]


@contextmanager
def _working_container(image: str) -> Iterator[str]:
    container = _buildah("from", "--pull-never", image)
    try:
        yield container
    finally:
        _buildah("rm", container)


_APART = ("unshare", "--mount")  # whatever is mounted is gone with the command
_BUILDAH = (
    *("buildah", "--storage-driver=overlay"),
    *(f"--root={KEPT / 'storage'}", f"--runroot={KEPT / 'run'}"),
)


def _buildah(*arguments: str) -> str:
    return _run(*_APART, *_BUILDAH, *arguments)


def _run(*command: str) -> str:
    """What the command prints.

    Raises:
        AssertionError: It failed; with what it said.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout.strip()
