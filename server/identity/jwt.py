"""Identity from bearer tokens: signed by the issuer, for this audience, and not expired (RFC 8725)."""

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

SKEW_SECONDS = 60  # allowed between the clocks of the service and the issuer
MAX_TOKEN_BYTES = 8 * 1024
MAX_TOKENS = 10_000  # in the cache of verified tokens
CACHED_SECONDS = 600.0  # longest time in that cache

_OWN = ("authorization",)
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
# With these the token would name the key that verifies it, or change what is signed.
_REFUSED = frozenset({"jku", "jwk", "x5u", "x5c", "crit", "b64", "zip"})
# Issuers sign other tokens, such as logout tokens, with the same key and audience (RFC 8725 §3.11).
_TYPES = frozenset({"jwt", "at+jwt"})


@dataclass(frozen=True)
class _Verified:
    principal: Principal
    until: float
    keys: int  # version of the keys it was verified with


class Jwt:
    """Takes the principal from the token in `authorization`.

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
        self._claim_names = settings.jwt_attribute_claims
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
        """Counts of the fetches of the keys; None if they come from a file."""
        return self._keys.jwks

    async def __aenter__(self) -> Self:
        await self._keys.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._keys.__aexit__(kind, error, trace)

    async def principal(self, call: Call) -> Principal:
        """Returns the principal of the token; its signature is verified once, and then remembered for a while.

        Raises:
            CredentialsMissing, CredentialsInvalid, IdentityUnavailable: As `Source.principal`.
        """
        token = _bearer(identity_metadata(call, _OWN))
        digest = sha256(token.encode()).digest()
        known, keys = self._verified.get(digest), self._keys.version()
        if known and known.keys == keys and self._clock() < known.until:
            return known.principal
        self._verified.forget(digest)
        claims = await self._verify_token(token)
        principal = self._principals.of(self._tenant(claims), claims["sub"], attributes_of(claims, self._claim_names))
        until = min(claims["exp"] + SKEW_SECONDS, self._clock() + CACHED_SECONDS)
        # With the version from before the verification: a key withdrawn meanwhile must not stay valid here.
        self._verified.put(digest, _Verified(principal, until, keys))
        return principal

    async def _verify_token(self, token: str) -> dict[str, Any]:
        """Returns the claims of a token after all checks."""
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
            raise CredentialsInvalid(error.error) from None  # one of joserfc's codes, such as bad_signature
        except (ValueError, TypeError, RecursionError):
            raise CredentialsInvalid("malformed") from None
        return claims

    def _tenant(self, claims: Mapping[str, Any]) -> str:
        """Returns the tenant; a token must have the claim if one is configured."""
        if not self._tenant_claim:
            return ""
        tenant = claims.get(self._tenant_claim)
        if not isinstance(tenant, str) or not tenant:
            raise CredentialsInvalid("tenant claim")
        return tenant


class _Algorithms(JWSRegistry):
    """The configured algorithms, without joserfc's warning about the name `EdDSA`."""

    def get_alg(self, name: str) -> Any:
        """Returns the algorithm.

        Raises:
            UnsupportedAlgorithmError: It is not configured.
        """
        if name not in (self.allowed or ()):
            raise UnsupportedAlgorithmError(f"{name} is not allowed")
        return self.algorithms[name]


def _bearer(metadata: Mapping[str, str]) -> str:
    """Returns the token, unparsed."""
    value = metadata.get("authorization")
    if value is None:
        raise CredentialsMissing
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "bearer" or not 0 < len(token) <= MAX_TOKEN_BYTES or not token.isascii():
        raise CredentialsInvalid("scheme or length")
    return token


def _header(token: str) -> dict[str, Any]:
    """Returns the header of ``token``, whose signature is not verified yet."""
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
