"""The issuer's public keys, and those that lie in a file."""

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

_KEY_TYPES = ("RSA", "EC", "OKP")  # a symmetric key in a published set is known to all
_MAX_KEYS = 256

PublicKey: TypeAlias = jwk.RSAKey | jwk.ECKey | jwk.OKPKey
KeysById: TypeAlias = dict[tuple[str, str], PublicKey]  # by id and type: RFC 7517 §4.5 lets types share an id

log = structlog.get_logger(__name__)


class JwksInvalid(Exception):
    """The document is not a JWK Set."""


class Keys(Protocol):
    """The keys as they are now."""

    @property
    def jwks(self) -> JwksStats | None:
        """Counts of their fetches; None for keys that are not fetched."""

    def version(self) -> int:
        """Another number whenever a key came or went. Cheap: asked at every call."""

    async def key(self, identifier: str, key_type: str) -> PublicKey | None:
        """The key, None when the issuer has none such.

        Raises:
            IdentityUnavailable: There never was a set of keys, or the last one is too old.
        """

    async def __aenter__(self) -> Self:
        """Gets the first keys."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends what runs beside the calls."""


def parsed(body: bytes) -> KeysById:
    """The keys of a JWK Set that can check signatures of others.

    A key without an id, of another type, for encryption or too weak is left out.

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
        key = _imported(member)
        if key is None:
            continue
        if (name := (str(key.kid), key.key_type)) in keys:
            raise JwksInvalid("two keys of the same id and type")
        keys[name] = key
    return keys


def _imported(member: Any) -> PublicKey | None:
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
    """The keys of the last good document."""

    def __init__(self) -> None:
        self.keys: KeysById | None = None
        self.version = 0

    def take(self, body: bytes) -> None:
        """Replaces the keys.

        Raises:
            JwksInvalid: They stay as they were.
        """
        keys = parsed(body)
        if self.keys is None or _thumbprints(self.keys) != _thumbprints(keys):
            self.keys = keys
            self.version += 1
            log.info("identity keys taken", keys=len(keys))

    def drop(self) -> None:
        """No key is good any more."""
        if self.keys is not None:
            self.keys = None
            self.version += 1

    def key(self, identifier: str, key_type: str) -> PublicKey | None:
        """As `Keys.key`."""
        if self.keys is None:
            raise IdentityUnavailable
        return self.keys.get((identifier, key_type))


def _thumbprints(keys: Mapping[tuple[str, str], PublicKey]) -> dict[tuple[str, str], tuple[Any, ...]]:
    """What makes a key another one: its material and what it may be used for."""
    return {name: (key.thumbprint(), key.get("alg"), str(key.get("key_ops"))) for name, key in keys.items()}


class FileKeys(Idle):
    """Keys in a file, read again when it changes; a broken one never replaces a good one.

    Raises:
        IdentityConfigError: There is no good one to begin with.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = monotonic) -> None:
        self._file = WatchedFile(path, clock)
        self._held = KeySet()
        self._broken = ""  # what is wrong with the file, said once
        self._look()
        if self._held.keys is None:
            raise IdentityConfigError(f"jwt_jwks: the file cannot be read as a JWK Set ({self._broken}).")

    def version(self) -> int:
        """As `Keys.version`."""
        self._look()
        return self._held.version

    async def key(self, identifier: str, key_type: str) -> PublicKey | None:
        """As `Keys.key`."""
        self._look()
        return self._held.key(identifier, key_type)

    def _look(self) -> None:
        try:
            if (body := self._file.read_if_changed()) is not None:
                self._held.take(body)
                self._broken = ""
        except (OSError, JwksInvalid) as error:
            why = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            if why != self._broken:
                self._broken = why
                log.warning("identity keys cannot be read", why=why)
