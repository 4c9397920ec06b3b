"""Versions below which a dependency loses data or calls; the reasons are in docs/adr/0003."""

from importlib.metadata import version

from google.protobuf.internal import api_implementation

from server.errors import OperatorError

FLOORS = {"asyncpg": (0, 32), "sqlalchemy": (2, 1), "grpcio": (1, 85), "protobuf": (6, 33, 5)}


class VersionError(OperatorError):
    """An installed package is too old, or was built without its C core."""


def check() -> None:
    """Raises VersionUnfit, naming every package that must not be used."""
    old = [f"{name} {version(name)}" for name, floor in FLOORS.items() if _numbers(version(name)) < floor]
    if api_implementation.Type() != "upb":
        old.append(f"protobuf without upb ({api_implementation.Type()})")
    if old:
        raise VersionError(f"Too old to run safely: {', '.join(old)}.")


def _numbers(text: str) -> tuple[int, ...]:
    parts = (part for part in text.split("."))
    return tuple(int(part) for part in parts if part.isdigit())
