"""The configuration of ``ours-jwt``: a caller's token, its key set, and a policy of 50 rules."""

import json
import time
from pathlib import Path

from joserfc import jwt
from joserfc.jwk import ECKey

ISSUER, AUDIENCE = "https://issuer.example", "conversations"


def fifty_rules() -> str:
    """A policy of 50 rules, of which the last permits the caller and the others concern other principals."""
    rules = [
        f"- permit: {{principal: service-{n}, actions: [read, update]}}\n  when: user in owners teams"
        if n % 3
        else f"- forbid: {{actions: [delete], resource: 'conversation::*'}}\n  when: user with suspended-{n} in roles"
        for n in range(48)
    ]
    rules.append("- permit: {actions: [create, read, update, delete]}\n  when: user in owners teams")
    rules.append("- permit: {actions: [create, read, update, delete, share]}\n  when: user is owner")
    return "\n".join(rules) + "\n"


def token(folder: Path) -> str:
    """A token of a caller with teams and roles, and its key set in ``folder``."""
    key = ECKey.generate_key("P-256", {"kid": "bench", "use": "sig", "alg": "ES256"})
    (folder / "jwks.json").write_text(json.dumps({"keys": [key.as_dict(private=False)]}))
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "caller",
        "exp": int(time.time()) + 36_000,
        "teams": ["red", "blue"],
        "roles": ["writer"],
    }
    return str(jwt.encode({"alg": "ES256", "kid": "bench"}, claims, key))


def settings(folder: Path) -> dict[str, str]:
    """The environment of a service that reads its keys and its policy in ``folder``."""
    (folder / "policy.yaml").write_text(fifty_rules())
    return {
        "CONVERSATIONS_IDENTITY": "jwt",
        "CONVERSATIONS_JWT_ISSUER": ISSUER,
        "CONVERSATIONS_JWT_AUDIENCE": AUDIENCE,
        "CONVERSATIONS_JWT_JWKS": str(folder / "jwks.json"),
        "CONVERSATIONS_POLICY_FILE": str(folder / "policy.yaml"),
    }
