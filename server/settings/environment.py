"""The names of environment variables: those that are read, and those that nothing reads."""

import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches

PREFIX = "CONVERSATIONS_"

# Read by the commands that call a running service (server/cli/client.py).
COMMAND_VARIABLES = frozenset(
    {
        "CONVERSATIONS_TARGET",
        "CONVERSATIONS_TARGET_AUTHORITY",
        "CONVERSATIONS_TARGET_CA",
        "CONVERSATIONS_TARGET_CERT",
        "CONVERSATIONS_TARGET_KEY",
        "CONVERSATIONS_TARGET_TLS",
        "CONVERSATIONS_TARGET_TOKEN",
        "CONVERSATIONS_TARGET_TOKEN_FILE",
    }
)
# Kubernetes describes each Service of a namespace by such variables, named after the Service.
_SERVICE_LINK = re.compile(r"SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?")
_SERVICE_HOST = "_SERVICE_HOST"


def variable_of(setting: str) -> str:
    """Returns the variable of a setting."""
    return PREFIX + setting.upper()


def unknown_variables(environment: Collection[str], settings: Iterable[str]) -> list[str]:
    """Returns a sentence for each variable that looks like a setting and is none, with the nearest name.

    Args:
        environment: Names of variables.
        settings: Names of settings.
    """
    known = {variable_of(name) for name in settings} | COMMAND_VARIABLES
    services = [name.removesuffix("SERVICE_HOST") for name in environment if name.endswith(_SERVICE_HOST)]
    ours = sorted(name for name in environment if name.upper().startswith(PREFIX))
    unknown = [name for name in ours if name.upper() not in known and not _is_service_link(name, services)]
    return [f"{name}: no such setting{_suggestion(name, known)}" for name in unknown]


def _is_service_link(name: str, services: Iterable[str]) -> bool:
    return any(_SERVICE_LINK.fullmatch(name.removeprefix(each)) for each in services)


def _suggestion(name: str, known: Collection[str]) -> str:
    # Compared without the prefix, which would make any two names look alike.
    nearest = get_close_matches(name.upper().removeprefix(PREFIX), [each.removeprefix(PREFIX) for each in known], n=1)
    return f"; did you mean {PREFIX}{nearest[0]}?" if nearest else ""
