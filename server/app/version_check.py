"""The oldest versions of dependencies that lose neither data nor calls; docs/adr/0003 has the reasons."""

from importlib.metadata import version

from google.protobuf.internal import api_implementation

from server.errors import OperatorError

FLOORS = {"asyncpg": (0, 32), "sqlalchemy": (2, 1), "grpcio": (1, 85), "protobuf": (6, 33, 5)}


class VersionError(OperatorError):
    """An installed package is too old, or was built without its C core."""


def check() -> None:
    """Checks the installed packages.

    Raises:
        VersionError: Names every package that must not be used.
    """
    installed = {name: version(name) for name in FLOORS}
    old = [f"{name} {found}" for name, found in installed.items() if _numbers(found) < FLOORS[name]]
    if api_implementation.Type() != "upb":
        old.append(f"protobuf without upb ({api_implementation.Type()})")
    if old:
        raise VersionError(f"Too old to run safely: {', '.join(old)}.")


def _numbers(text: str) -> tuple[int, ...]:
    """Returns the numbers of a version; a suffix such as `rc1` does not count."""
    return tuple(int(part) for part in text.split(".") if part.isdigit())
