"""PEM files for TLS, checked when they are loaded and not at the handshake of every client.

`cryptography` is imported where it is used: a server without TLS saves 10 MB.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.errors import OperatorError

if TYPE_CHECKING:
    from cryptography import x509

_BEGIN = b"-----BEGIN CERTIFICATE-----"


class TlsConfigError(OperatorError):
    """A file for TLS cannot be used; the text is for operators and holds nothing of the file."""


@dataclass(frozen=True)
class PemFile:
    """A file, with the name of the setting or option that names it."""

    name: str
    path: Path

    def read(self) -> bytes:
        """Returns the bytes of the file.

        Raises:
            TlsConfigError: It cannot be read.
        """
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise TlsConfigError(f"{self.name}: the file cannot be read ({error.strerror}).") from None


@dataclass(frozen=True)
class KeyPair:
    """A certificate chain and the private key of its first certificate, both PEM."""

    chain: bytes
    key: bytes
    expires_at: datetime


def load_key_pair(certificate: PemFile, key: PemFile) -> KeyPair:
    """Reads a certificate chain and its private key.

    Raises:
        TlsConfigError: One of them cannot be used, they do not match, or the certificate has expired.
    """
    chain, secret = certificate.read(), key.read()
    leaf = _certificates(certificate.name, chain)[0]
    if _public_key(key.name, secret) != leaf.public_key():
        raise TlsConfigError(f"{certificate.name}, {key.name}: not a pair, the first certificate is of another key.")
    if leaf.not_valid_after_utc <= datetime.now(UTC):
        raise TlsConfigError(
            f"{certificate.name}: the certificate expired on {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC."
        )
    return KeyPair(chain, secret, leaf.not_valid_after_utc)


def load_authorities(file: PemFile) -> bytes:
    """Reads certificates of CAs; returns them as PEM.

    Raises:
        TlsConfigError: The file holds no certificate, or a broken one.
    """
    pem = file.read()
    _certificates(file.name, pem)
    return pem


def host_name(pem: bytes) -> str | None:
    """Returns a name that gRPC accepts for the certificate; None if it has none, as one with only a SPIFFE id."""
    from cryptography import x509  # noqa: PLC0415

    leaf = x509.load_pem_x509_certificate(pem)
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        common = leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return str(common[0].value) if common else None
    hosts = names.get_values_for_type(x509.DNSName)
    found = [*hosts, *map(str, names.get_values_for_type(x509.IPAddress))]
    return found[0].replace("*", "any", 1) if found else None


def _certificates(name: str, pem: bytes) -> "list[x509.Certificate]":
    from cryptography import x509  # noqa: PLC0415

    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError:
        found = []
    if not found or len(found) < pem.count(_BEGIN):  # the parser skips one that is cut off
        raise TlsConfigError(f"{name}: holds no PEM certificate, or a broken one.")
    return found


def _public_key(name: str, pem: bytes) -> Any:
    """Returns the public key of a private key in PEM.

    Raises:
        TlsConfigError: It is not a private key, has a password, or is of a kind that is not served.
    """
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        key = load_pem_private_key(pem, password=None)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        raise TlsConfigError(f"{name}: holds no PEM private key without a password.") from None
    if not _is_supported(key):
        raise TlsConfigError(f"{name}: must be RSA of 2048 bits or more, ECDSA on P-256, P-384 or P-521, or Ed25519.")
    return key.public_key()


def _is_supported(key: Any) -> bool:
    """Whether gRPC accepts such a key, and careful clients its certificate."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: PLC0415

    match key:
        case rsa.RSAPrivateKey():
            return key.key_size >= 2048
        case ec.EllipticCurvePrivateKey():
            return isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1)
    return isinstance(key, ed25519.Ed25519PrivateKey)
