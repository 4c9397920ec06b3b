"""The file that gives principals of `mtls` their tenant and attributes.

In YAML, by id: `spiffe://prod.example/cart: {tenant: shop, attributes: {roles: [writer]}}`.
"""

from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import structlog

from server.errors import CredentialsInvalid
from server.identity.principals import Principals
from server.identity.source import IdentityConfigError
from server.policy.principal import Principal
from server.settings.strict_yaml import load_yaml
from server.settings.watched_file import WatchedFile

log = structlog.get_logger(__name__)


class PrincipalsFile:
    """The principals of a file, which is read again when it changes; an invalid file changes nothing.

    Raises:
        IdentityConfigError: The file is invalid at startup.
    """

    def __init__(self, path: Path, principals: Principals, clock: Callable[[], float] = monotonic) -> None:
        self._file = WatchedFile(path, clock)
        self._principals = principals
        self._by_id: dict[str, Principal] = {}
        try:
            self._reload_if_changed()
        except OSError as error:
            raise IdentityConfigError(
                f"principals_file: the file cannot be read ({error.strerror or error})."
            ) from None

    def get(self, identifier: str) -> Principal | None:
        """Returns the principal, or None if it is not in the file."""
        try:
            self._reload_if_changed()
        except IdentityConfigError as error:
            log.warning("the file of principals cannot be used", why=str(error))
        except OSError as error:
            log.warning("the file of principals cannot be read", why=error.strerror or str(error))
        return self._by_id.get(identifier)

    def _reload_if_changed(self) -> None:
        if (body := self._file.read_if_changed()) is not None:
            self._by_id = parse_principals(body, self._principals)


def parse_principals(body: bytes, principals: Principals) -> dict[str, Principal]:
    """Returns the principals by id.

    Raises:
        IdentityConfigError: Names the entry that is wrong.
    """
    try:
        entries = load_yaml(body)
    except ValueError as error:
        raise IdentityConfigError(f"principals_file: {error}.") from None
    if not isinstance(entries, dict):
        raise IdentityConfigError("principals_file: not a mapping of ids.")
    return {name: _principal(name, entry or {}, principals) for name, entry in entries.items()}


def _principal(name: Any, entry: Any, principals: Principals) -> Principal:
    if not isinstance(name, str) or not isinstance(entry, dict) or not entry.keys() <= {"tenant", "attributes"}:
        raise IdentityConfigError(f"principals_file: {name!r} may have a tenant and attributes, nothing else.")
    tenant, attributes = entry.get("tenant", ""), entry.get("attributes", {})
    if not isinstance(tenant, str) or not isinstance(attributes, dict) or not all(map(_is_texts, attributes.values())):
        raise IdentityConfigError(
            f"principals_file: tenant of {name!r} must be a text, each attribute a list of texts."
        )
    if unknown := attributes.keys() - principals.names:
        raise IdentityConfigError(f"principals_file: {name!r} has {sorted(map(str, unknown))}, not in attribute_names.")
    try:
        return principals.of(tenant, name, attributes)
    except CredentialsInvalid as error:
        raise IdentityConfigError(f"principals_file: {name!r} cannot be used ({error.why}).") from None


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
