"""SPIFFE ids in certificates (the SPIFFE ID and X509-SVID standards)."""

import re
from collections.abc import Iterable, Mapping

_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+"
_SPIFFE_ID = re.compile(rf"spiffe://([a-z0-9._-]{{1,255}})((?:/{_SEGMENT})*)")


def trust_domain(identifier: str) -> str | None:
    """Returns the trust domain of a SPIFFE id, or None if it is none."""
    match = _SPIFFE_ID.fullmatch(identifier)
    return match[1] if match else None


def peer_spiffe_id(auth: Mapping[str, Iterable[bytes]]) -> str | None:
    """Returns the SPIFFE id in a certificate.

    None if it has no URI name, more than one (X509-SVID §2 allows one), or one that is no SPIFFE id.
    """
    names = list(auth.get("peer_uri", ()))
    if len(names) != 1:
        return None
    name = names[0].decode("ascii", "replace")
    return name if trust_domain(name) else None
