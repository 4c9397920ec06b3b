"""The client certificate of a connection: TLS checked it once, when the connection began."""

from collections.abc import Callable, Iterable, Mapping
from time import time

from server.errors import CredentialsInvalid, CredentialsMissing
from server.identity.lru import LruCache

_REMEMBERED = 10_000


class PeerCertificates:
    """Sees to it that no connection outlasts its certificate.

    Args:
        clock: Seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time) -> None:
        self._clock = clock
        self._expiry: LruCache[bytes, float] = LruCache(_REMEMBERED)  # by certificate, PEM

    def check(self, properties: Mapping[str, Iterable[bytes]]) -> None:
        """Checks the certificate among the properties of a connection.

        Raises:
            CredentialsMissing: There is none.
            CredentialsInvalid: It has expired.
        """
        pem = next(iter(properties.get("x509_pem_cert", ())), None)
        if pem is None:
            raise CredentialsMissing
        expiry = self._expiry.get(pem)
        if expiry is None:
            expiry = _expiry_of(pem)
            self._expiry.put(pem, expiry)
        if self._clock() > expiry:
            raise CredentialsInvalid("certificate expired")


def _expiry_of(pem: bytes) -> float:
    from cryptography import x509  # noqa: PLC0415 - a server without TLS saves 10 MB

    try:
        return x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
    except ValueError:
        raise CredentialsInvalid("certificate") from None
