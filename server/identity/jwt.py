"""Bearer tokens: signed by the one issuer, for us, and not too old (RFC 8725)."""

import json
import re
from binascii import a2b_base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from time import time
from types import TracebackType
from typing import Any, Self

from joserfc import jwt
from joserfc.errors import JoseError, UnsupportedAlgorithmError
from joserfc.jws import JWSRegistry

from server.errors import CredentialsInvalid, CredentialsMissing
from server.identity.jwks import Keys, PublicKey
from server.identity.lru import LruCache
from server.identity.principals import Principals, attributes_of
from server.identity.source import Call, identity_metadata
from server.observability.stats import JwksStats
from server.policy.principal import Principal
from server.settings.identity import IdentitySettings

SKEW_SECONDS = 60  # between our clock and the issuer's
MAX_TOKEN_BYTES = 8 * 1024
MAX_TOKENS = 10_000  # verified ones that are remembered
CACHED_SECONDS = 600.0  # how long one is, at most

_OWN = ("authorization",)
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
# They would have the token say what to check it with, or change what is signed.
_REFUSED = frozenset({"jku", "jwk", "x5u", "x5c", "crit", "b64", "zip"})
# An issuer signs other things too, as logout tokens, with the same key and audience (RFC 8725 §3.11).
_TYPES = frozenset({"jwt", "at+jwt"})


@dataclass(frozen=True)
class _Verified:
    principal: Principal
    until: float
    keys: int  # version of the keys it was verified with


class Jwt:
    """Takes the principal from a token in `authorization`.

    Args:
        settings: Of the identity `jwt`.
        keys: The issuer's.
        clock: Seconds since 1970.
    """

    name = "jwt"

    def __init__(self, settings: IdentitySettings, keys: Keys, clock: Callable[[], float] = time) -> None:
        self._keys = keys
        self._clock = clock
        self._principals = Principals(settings.attribute_names)
        self._renamed = settings.jwt_attribute_claims
        self._tenant_claim = settings.jwt_tenant_claim
        self._registry = _Algorithms(algorithms=settings.jwt_algorithms, strict_check_header=False)
        self._claims = jwt.JWTClaimsRegistry(
            now=lambda: int(clock()),
            leeway=SKEW_SECONDS,
            iss={"essential": True, "value": settings.jwt_issuer},
            aud={"essential": True, "value": settings.jwt_audience},
            exp={"essential": True},
            sub={"essential": True},
        )
        self._verified: LruCache[bytes, _Verified] = LruCache(MAX_TOKENS)

    @property
    def jwks(self) -> JwksStats | None:
        """Counts of the fetches of the keys, if they come from a URL."""
        return self._keys.jwks

    async def __aenter__(self) -> Self:
        await self._keys.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._keys.__aexit__(kind, error, trace)

    async def principal(self, call: Call) -> Principal:
        """Who the token is about; its signature is checked once in a while, not at every call."""
        token = _bearer(identity_metadata(call, _OWN))
        digest = sha256(token.encode()).digest()
        known, keys = self._verified.get(digest), self._keys.version()
        if known and known.keys == keys and self._clock() < known.until:
            return known.principal
        self._verified.forget(digest)
        claims = await self._checked(token)
        principal = self._principals.of(self._tenant(claims), claims["sub"], attributes_of(claims, self._renamed))
        until = min(claims["exp"] + SKEW_SECONDS, self._clock() + CACHED_SECONDS)
        # Under the version from before the check: a key that went meanwhile must not stay good in here.
        self._verified.put(digest, _Verified(principal, until, keys))
        return principal

    async def _checked(self, token: str) -> dict[str, Any]:
        """The claims of a token that is good in every way."""
        header = _header(token)
        try:
            key_type = self._registry.get_alg(header["alg"]).key_type
        except UnsupportedAlgorithmError:
            raise CredentialsInvalid("algorithm") from None
        key = await self._keys.key(header["kid"], key_type)
        if key is None:
            raise CredentialsInvalid("unknown key")
        return self._verify(token, key)

    def _verify(self, token: str, key: PublicKey) -> dict[str, Any]:
        try:
            claims = jwt.decode(token, key, registry=self._registry).claims
            self._claims.validate(claims)
        except JoseError as error:
            raise CredentialsInvalid(error.error) from None  # a code of joserfc's own, such as bad_signature
        except (ValueError, TypeError, RecursionError):
            raise CredentialsInvalid("malformed") from None
        return claims

    def _tenant(self, claims: Mapping[str, Any]) -> str:
        """The tenant claim, which must be there when one is configured."""
        if not self._tenant_claim:
            return ""
        tenant = claims.get(self._tenant_claim)
        if not isinstance(tenant, str) or not tenant:
            raise CredentialsInvalid("tenant claim")
        return tenant


class _Algorithms(JWSRegistry):
    """Only the configured algorithms, without joserfc's warning that `EdDSA` has got a second name."""

    def get_alg(self, name: str) -> Any:
        """The algorithm.

        Raises:
            UnsupportedAlgorithmError: It is not allowed.
        """
        if name not in (self.allowed or ()):
            raise UnsupportedAlgorithmError(f"{name} is not allowed")
        return self.algorithms[name]


def _bearer(metadata: Mapping[str, str]) -> str:
    """The token, not yet looked into."""
    value = metadata.get("authorization")
    if value is None:
        raise CredentialsMissing
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "bearer" or not 0 < len(token) <= MAX_TOKEN_BYTES or not token.isascii():
        raise CredentialsInvalid("scheme or length")
    return token


def _header(token: str) -> dict[str, Any]:
    """The header of ``token``, which nobody has signed yet."""
    if not _TOKEN.fullmatch(token):
        raise CredentialsInvalid("malformed")
    try:
        encoded = token.partition(".")[0].translate({ord("-"): "+", ord("_"): "/"})
        header = json.loads(a2b_base64(encoded + "=" * (-len(encoded) % 4)))
    except (ValueError, RecursionError):
        raise CredentialsInvalid("malformed") from None
    if not isinstance(header, dict) or not _REFUSED.isdisjoint(header):
        raise CredentialsInvalid("header")
    if not (isinstance(header.get("alg"), str) and isinstance(header.get("kid"), str)):
        raise CredentialsInvalid("algorithm or key id")
    if str(header.get("typ", "jwt")).lower().removeprefix("application/") not in _TYPES:
        raise CredentialsInvalid("kind of token")
    return header
