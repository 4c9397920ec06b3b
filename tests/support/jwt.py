"""An issuer of JSON Web Tokens."""

import json
import time
from base64 import urlsafe_b64encode
from typing import Any

from joserfc import jwk
from joserfc.jws import JWSRegistry

from server.settings.service import Settings, load

ISSUER, AUDIENCE = "https://issuer.example", "conversations"


ISSUER_KEY = jwk.RSAKey.generate_key(2048, {"kid": "rsa"})


def jwk_set(*keys: Any) -> bytes:
    """The public part of ``keys`` as a JWK Set."""
    return json.dumps({"keys": [key.as_dict(private=False) for key in keys]}).encode()


def b64(content: bytes) -> str:
    """Base64url without padding (RFC 7515)."""
    return urlsafe_b64encode(content).rstrip(b"=").decode()


def claims(**changed: Any) -> dict[str, Any]:
    """The claims of a valid token, with changes; a claim that is None is left out."""
    now = int(time.time())
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": now, "exp": now + 600, "org": "acme"}
    return {name: value for name, value in (good | changed).items() if value is not None}


def token(body: dict[str, Any] | bytes | None = None, key: Any = ISSUER_KEY, alg: str = "RS256", **header: Any) -> str:
    """A token with these claims or payload, any header, and a valid signature by ``key``."""
    top = {"alg": alg, "typ": "JWT", "kid": key.kid} | header
    top = {name: value for name, value in top.items() if value is not None}
    payload = body if isinstance(body, bytes) else json.dumps(claims() if body is None else body).encode()
    signed = f"{b64(json.dumps(top).encode())}.{b64(payload)}"
    return f"{signed}.{b64(JWSRegistry.algorithms[alg].sign(signed.encode(), key))}"


def identity_settings(**values: Any) -> Settings:
    """Settings of a service on loopback."""
    return load(listen="127.0.0.1:0", **values)


def jwt_settings(jwks: str, **values: Any) -> Settings:
    """Settings that accept tokens of `ISSUER`; ``jwks`` is the file or URL of its keys."""
    return identity_settings(identity="jwt", jwt_issuer=ISSUER, jwt_audience=AUDIENCE, jwt_jwks=jwks, **values)
