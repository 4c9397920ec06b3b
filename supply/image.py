"""Builds the image of the Dockerfile as an OCI archive: `python -m supply.image`, or `make release-image`."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from server import __version__
from supply.installed import ROOT
from supply.release import NAME, git, write_checksums

TAG = f"localhost/{NAME}:{__version__}"


def write_image(out: Path, buildah: Sequence[str] = ("buildah",), options: Sequence[str] = ()) -> Path:
    """Builds the image and writes it into ``out``; returns the archive.

    Args:
        out: An existing folder.
        buildah: The command, with its own options.
        options: Of `buildah build`.
    """
    archive = out / f"{NAME}-{__version__}.oci.tar"
    archive.unlink(missing_ok=True)
    revision = git("rev-parse", "HEAD").strip()
    arguments = (f"--build-arg=VERSION={__version__}", f"--build-arg=REVISION={revision}")
    build = (*buildah, "build", "--quiet", "--format=oci", *options, *arguments, "--tag", TAG, str(ROOT))
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    subprocess.run((*buildah, "push", "--quiet", TAG, f"oci-archive:{archive}:{__version__}"), check=True)  # noqa: S603
    return archive


def main() -> None:
    """Runs the command line."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist")
    out.mkdir(parents=True, exist_ok=True)
    write_image(out)
    write_checksums(out)


if __name__ == "__main__":
    main()
