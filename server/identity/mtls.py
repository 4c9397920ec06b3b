"""Identity from client certificates, whose chain TLS has verified."""

from collections.abc import Collection, Iterable, Mapping

from server.errors import CredentialsInvalid
from server.identity.lru import LruCache
from server.identity.peer_certificate import PeerCertificates
from server.identity.principals import Principals
from server.identity.principals_file import PrincipalsFile
from server.identity.source import Call, Idle, identity_metadata
from server.identity.spiffe import peer_spiffe_id, trust_domain
from server.policy.principal import Principal
from server.settings.identity import IdentitySettings

_REMEMBERED = 10_000


class Mtls(Idle):
    """Takes the principal from the client certificate.

    Its id is the SPIFFE id in it or, where so configured, its subject. With a
    file of principals only those in it are let in.

    Raises:
        IdentityConfigError: The file cannot be used.
    """

    name = "mtls"

    def __init__(self, settings: IdentitySettings) -> None:
        self._subjects = settings.mtls_subjects
        self._trust_domains = frozenset(settings.mtls_trust_domains)
        self._principals = Principals(settings.attribute_names)
        self._principals_file = (
            PrincipalsFile(settings.principals_file, self._principals) if settings.principals_file else None
        )
        self._known: LruCache[str, Principal] = LruCache(_REMEMBERED)
        self._certificates = PeerCertificates()

    async def principal(self, call: Call) -> Principal:
        """Returns the principal of the certificate; raises as `Source.principal`."""
        identity_metadata(call)
        identifier = self._identifier(call.auth_context())
        if self._principals_file:
            if (listed := self._principals_file.get(identifier)) is None:
                raise CredentialsInvalid("not a listed principal")
            return listed
        known = self._known.get(identifier)
        if known is None:
            known = self._principals.of("", identifier, {})
            self._known.put(identifier, known)
        return known

    def _identifier(self, auth: Mapping[str, Iterable[bytes]]) -> str:
        self._certificates.check(auth)
        return _subject(auth) if self._subjects else _of_domain(peer_spiffe_id(auth), self._trust_domains)


def _of_domain(identifier: str | None, trust_domains: Collection[str]) -> str:
    if identifier is None or trust_domain(identifier) not in trust_domains:
        raise CredentialsInvalid("SPIFFE id")
    return identifier


def _subject(auth: Mapping[str, Iterable[bytes]]) -> str:
    """Returns the whole subject (RFC 2253), because organizations may share a common name."""
    names = list(auth.get("x509_subject", ()))
    if len(names) != 1:
        raise CredentialsInvalid("subject")
    try:
        return names[0].decode()
    except UnicodeDecodeError:
        raise CredentialsInvalid("subject") from None
