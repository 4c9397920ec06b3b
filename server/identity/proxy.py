"""Identity from the metadata of a proxy, which has authenticated the caller.

    x-principal:  alice
    x-tenant:     acme                       (optional, unless it is required)
    x-attributes: roles=writer;teams=a%2Cb   (optional; name=value, values percent-encoded UTF-8)

The proxy must replace what a client sent under these names, not add to it. A value with a comma
is refused: that is what HTTP makes of two headers of a name (RFC 9110 §5.2).
"""

import re
from typing import TypeAlias
from urllib.parse import unquote_to_bytes

from server.errors import CredentialsInvalid, CredentialsMissing
from server.identity.lru import LruCache
from server.identity.peer_certificate import PeerCertificates
from server.identity.principals import Principals
from server.identity.source import Call, Idle, identity_metadata
from server.identity.spiffe import peer_spiffe_id
from server.identity.tenants import TenantRequirement
from server.policy.attributes import ATTRIBUTE_NAME
from server.policy.principal import Principal
from server.settings.identity import IdentitySettings

_OWN = ("x-principal", "x-tenant", "x-attributes")
_PLAIN = re.compile(r"[!-+\--~](?:[ -+\--~]*[!-+\--~])?")  # printable ASCII, no comma, no space around it
_PAIR = re.compile(rf"({ATTRIBUTE_NAME.pattern})=((?:[!-$&-+\--:<-~]|%[0-9A-Fa-f]{{2}})+)")  # no comma, no semicolon
_REMEMBERED = 10_000
_Sent: TypeAlias = tuple[str | None, str | None, str | None]  # in the order of _OWN


class Proxy(Idle):
    """Takes the principal from metadata, if the peer is trusted to send it.

    Trusted are peers on the Unix socket, whose mode says who may connect, and peers whose certificate
    has one of the configured SPIFFE ids.
    """

    name = "proxy"

    def __init__(self, settings: IdentitySettings, tenants: TenantRequirement) -> None:
        self._tenants = tenants
        self._trusted = frozenset(settings.proxy_spiffe_ids)
        self._principals = Principals(settings.attribute_names)
        self._known: LruCache[_Sent, Principal] = LruCache(_REMEMBERED)
        self._certificates = PeerCertificates()

    async def principal(self, call: Call) -> Principal:
        """Returns the principal that the proxy names; raises as `Source.principal`."""
        metadata = identity_metadata(call, _OWN)
        if not metadata:
            raise CredentialsMissing
        if not self._trusts(call):
            raise CredentialsInvalid("peer is not a trusted proxy")
        key = (metadata.get("x-principal"), metadata.get("x-tenant"), metadata.get("x-attributes"))
        if key[1] is None and self._tenants.required:
            raise CredentialsInvalid("no tenant")
        known = self._known.get(key)
        if known is None:
            known = self._principal(*key)
            self._known.put(key, known)
        if known.tenant:
            self._tenants.note_tenant()
        return known

    def _trusts(self, call: Call) -> bool:
        if call.peer().startswith("unix:"):
            return True
        properties = call.auth_context()
        if not self._trusted or peer_spiffe_id(properties) not in self._trusted:
            return False
        self._certificates.check(properties)
        return True

    def _principal(self, identifier: str | None, tenant: str | None, attributes: str | None) -> Principal:
        # Without the header the tenant is ''; an empty header is the mistake of a proxy.
        if identifier is None or not all(_PLAIN.fullmatch(text) for text in (identifier, tenant) if text is not None):
            raise CredentialsInvalid("id or tenant")
        return self._principals.of(tenant or "", identifier, parse_attributes(attributes or ""))


def parse_attributes(attributes: str) -> dict[str, set[str]]:
    """Returns the values in `x-attributes` by name.

    Raises:
        CredentialsInvalid: It does not have the form above.
    """
    found: dict[str, set[str]] = {}
    for pair in attributes.split(";") if attributes else ():
        match = _PAIR.fullmatch(pair)
        if not match:
            raise CredentialsInvalid("x-attributes")
        try:
            found.setdefault(match[1], set()).add(unquote_to_bytes(match[2]).decode())
        except UnicodeDecodeError:
            raise CredentialsInvalid("x-attributes") from None
    return found
