"""Archives that have the same bytes whenever and wherever they are made of the same files."""

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

_FILE_MODE = 0o644


def write_tar(path: Path, files: Mapping[str, bytes], epoch: int) -> None:
    """Writes a gzipped tar of ``files``, sorted by name, owned by root, all of one time.

    Args:
        path: Of the archive.
        files: The contents by name.
        epoch: Seconds since 1970, as of SOURCE_DATE_EPOCH.
    """
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in sorted(files.items()):
            about = tarfile.TarInfo(name)
            about.size, about.mtime, about.mode = len(content), epoch, _FILE_MODE
            tar.addfile(about, io.BytesIO(content))
    # No name and no time of the file inside; the level of compression is said, since the default may change.
    path.write_bytes(gzip.compress(plain.getvalue(), compresslevel=9, mtime=0))


def read_tar(path: Path) -> dict[str, bytes]:
    """Returns the contents of a tar by name; folders and links are left out."""
    with tarfile.open(path) as tar:
        return {each.name: _content(tar, each) for each in tar.getmembers() if each.isfile()}


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()
