"""Builds what a release consists of: `python -m supply.release`, or `make release`.

It takes the files that git knows, as they are in the working tree. The same files and the same SOURCE_DATE_EPOCH, by
default the time of the last commit, give the same bytes. `docs/releases.md` lists the results.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from server import __version__
from supply.archives import read_tar, write_tar
from supply.chart import chart_files
from supply.installed import ROOT
from supply.proto_bundle import DESCRIPTORS, proto_files

NAME = "conversation-service"
CHART = "conversations"
SUMS = "SHA256SUMS"
# The folder of each distribution, in the repository.
DISTRIBUTIONS = (".", "client")
_BACKEND = "import sys; from setuptools import build_meta as backend; getattr(backend, sys.argv[1])(sys.argv[2])"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "dist", help="folder; it is emptied first")
    parser.add_argument("--sbom", type=Path, help="the bill of materials of the server, to be put beside the rest")
    flags = parser.parse_args()
    build(flags.out.resolve(), flags.sbom)
    sys.stdout.write((flags.out / SUMS).read_text(encoding="utf-8"))


def build(out: Path, sbom: Path | None = None) -> None:
    """Builds everything into ``out``, which is emptied first."""
    epoch = _epoch()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with TemporaryDirectory() as name:
        stage = Path(name)
        _copy_tracked(stage / "source")
        for folder in DISTRIBUTIONS:
            _build_distribution(stage / "source" / folder, stage / f"unpacked-{folder}", out, epoch)
        write_tar(out / f"{CHART}-{__version__}.tgz", chart_files(stage / "source" / "deploy" / "helm"), epoch)
    shutil.copyfile(DESCRIPTORS, out / f"{NAME}-{__version__}.binpb")
    bundle = {f"{NAME}-protos-{__version__}/{name}": content for name, content in proto_files().items()}
    write_tar(out / f"{NAME}-protos-{__version__}.tar.gz", bundle, epoch)
    if sbom:
        shutil.copyfile(sbom, out / f"{NAME}-{__version__}.cdx.json")
    write_checksums(out)


def _epoch() -> int:
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    return int(git("log", "-1", "--format=%ct"))


def git(*arguments: str) -> str:
    """Returns what git prints in this repository."""
    return subprocess.run(("git", *arguments), cwd=ROOT, check=True, capture_output=True, text=True).stdout  # noqa: S603, S607


def _copy_tracked(folder: Path) -> None:
    """Copies the files that git knows; links stay links. What else lies in the working tree gets into no archive."""
    for name in filter(None, git("ls-files", "-z").split("\0")):
        source, target = ROOT / name, folder / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target, follow_symlinks=False)
            if not target.is_symlink():
                target.chmod(0o644)


def _build_distribution(source: Path, unpacked: Path, out: Path, epoch: int) -> None:
    """Builds the source distribution, and the wheel from it, so that whoever has the one can build the other."""
    with TemporaryDirectory() as name:
        made = _run_backend("build_sdist", source, Path(name), epoch)
        files = read_tar(made)
        write_tar(out / made.name, files, epoch)
    _unpack(files, unpacked)
    (folder,) = unpacked.iterdir()
    _run_backend("build_wheel", folder, out, epoch)


def _run_backend(hook: str, source: Path, out: Path, epoch: int) -> Path:
    """Calls a hook of PEP 517; returns what it made."""
    before = set(out.iterdir())
    command = (sys.executable, "-c", _BACKEND, hook, str(out))
    variables = os.environ | {"SOURCE_DATE_EPOCH": str(epoch), "PYTHONHASHSEED": "0"}
    done = subprocess.run(  # noqa: S603
        command, cwd=source, env=variables, umask=0o022, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{hook} failed in {source}:\n{done.stdout}{done.stderr}")
    (made,) = set(out.iterdir()) - before
    return made


def _unpack(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        target.chmod(0o644)


def write_checksums(folder: Path) -> None:
    """Writes SHA256SUMS of all that is in ``folder``, for `sha256sum --check`."""
    paths = sorted(path for path in folder.iterdir() if path.name != SUMS)
    lines = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths)
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
