"""The public keys of an issuer of tokens, and keys that are read from a file."""

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

import structlog
from joserfc import jwk
from joserfc.errors import SecurityWarning

from server.errors import IdentityUnavailable
from server.identity.source import IdentityConfigError, Idle
from server.observability.stats import JwksStats
from server.settings.watched_file import WatchedFile

_KEY_TYPES = ("RSA", "EC", "OKP")  # not symmetric: everybody could know a published key, and sign with it
_MAX_KEYS = 256

PublicKey: TypeAlias = jwk.RSAKey | jwk.ECKey | jwk.OKPKey
KeysById: TypeAlias = dict[tuple[str, str], PublicKey]  # by id and type: RFC 7517 §4.5 lets types share an id

log = structlog.get_logger(__name__)


class JwksInvalid(Exception):
    """The document is not a JWK Set."""


class Keys(Protocol):
    """A source of keys that changes as the issuer rotates them."""

    @property
    def jwks(self) -> JwksStats | None:
        """Counts of the fetches; None if the keys are not fetched."""

    def version(self) -> int:
        """Returns a number that changes whenever a key came or went; called for every call, so it must be cheap."""

    async def key(self, identifier: str, key_type: str) -> PublicKey | None:
        """Returns the key, or None if the issuer has no such key.

        Raises:
            IdentityUnavailable: No keys were ever read, or the last ones are too old.
        """

    async def __aenter__(self) -> Self:
        """Reads the first keys."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops background work."""


def parse_jwk_set(body: bytes) -> KeysById:
    """Returns the keys of a JWK Set that can verify signatures.

    Keys without an id, of other types, for encryption, or too weak are left out.

    Raises:
        JwksInvalid: Not a JWK Set, or one with two keys of the same id and type.
    """
    try:
        members = json.loads(body)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise JwksInvalid("not a JWK Set") from None
    if not isinstance(members, list) or len(members) > _MAX_KEYS:
        raise JwksInvalid("not a list of keys")
    keys: KeysById = {}
    for member in members:
        key = _import_key(member)
        if key is None:
            continue
        if (name := (str(key.kid), key.key_type)) in keys:
            raise JwksInvalid("two keys of the same id and type")
        keys[name] = key
    return keys


def _import_key(member: Any) -> PublicKey | None:
    if not isinstance(member, dict) or member.get("kty") not in _KEY_TYPES or member.get("use", "sig") != "sig":
        return None
    if not isinstance(member.get("kid"), str):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SecurityWarning)  # RSA below 2048 bits
            key = jwk.import_key(member)
    except Exception:  # noqa: BLE001 - joserfc answers a curve it does not know with KeyError; the other keys are good
        log.warning("a key of the JWK Set cannot be used")
        return None
    return key if isinstance(key, PublicKey) else None


class KeySet:
    """The keys of the last valid document.

    Attributes:
        keys: None before the first document, and after `drop`.
        version: As `Keys.version`.
    """

    def __init__(self) -> None:
        self.keys: KeysById | None = None
        self.version = 0

    def take(self, body: bytes) -> None:
        """Replaces the keys.

        Raises:
            JwksInvalid: They stay as they were.
        """
        keys = parse_jwk_set(body)
        if self.keys is None or _thumbprints(self.keys) != _thumbprints(keys):
            self.keys = keys
            self.version += 1
            log.info("identity keys taken", keys=len(keys))

    def drop(self) -> None:
        """Drops all keys: none is valid any more."""
        if self.keys is not None:
            self.keys = None
            self.version += 1

    def key(self, identifier: str, key_type: str) -> PublicKey | None:
        """Returns what `Keys.key` does."""
        if self.keys is None:
            raise IdentityUnavailable
        return self.keys.get((identifier, key_type))


def _thumbprints(keys: Mapping[tuple[str, str], PublicKey]) -> dict[tuple[str, str], tuple[Any, ...]]:
    """Returns what distinguishes keys: their material, and what they may be used for."""
    return {name: (key.thumbprint(), key.get("alg"), str(key.get("key_ops"))) for name, key in keys.items()}


class FileKeys(Idle):
    """Keys from a file, which is read again when it changes; an invalid file leaves the previous keys in force.

    Raises:
        IdentityConfigError: The file is invalid at startup.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = monotonic) -> None:
        self._file = WatchedFile(path, clock)
        self._key_set = KeySet()
        self._problem = ""  # with the file, as it was logged
        self._reload_if_changed()
        if self._key_set.keys is None:
            raise IdentityConfigError(f"jwt_jwks: the file cannot be read as a JWK Set ({self._problem}).")

    def version(self) -> int:
        """Returns what `Keys.version` does."""
        self._reload_if_changed()
        return self._key_set.version

    async def key(self, identifier: str, key_type: str) -> PublicKey | None:
        """Returns what `Keys.key` does."""
        self._reload_if_changed()
        return self._key_set.key(identifier, key_type)

    def _reload_if_changed(self) -> None:
        try:
            if (body := self._file.read_if_changed()) is not None:
                self._key_set.take(body)
                self._problem = ""
        except (OSError, JwksInvalid) as error:
            why = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            if why != self._problem:
                self._problem = why
                log.warning("identity keys cannot be read", why=why)
