"""A certificate authority, and the files that configure TLS."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from server.settings.service import load
from server.transport import tls
from server.transport.tls import Credentials

HOUR = timedelta(hours=1)


def private_key_pem(key: Any, password: bytes = b"") -> bytes:
    """A private key in PKCS #8, encrypted if there is a password."""
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))


class CertificateAuthority:
    """A certificate authority; all of them have the same name, and different keys."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.pem = self._signed("CA", self._key, [], HOUR, ca=True)

    def issue(
        self,
        name: str,
        key: Any = None,
        left: timedelta = HOUR,
        hosts: Sequence[str] = ("localhost",),
        uris: Sequence[str] = (),
    ) -> tuple[bytes, bytes]:
        """Certificate and private key; ``left`` is how long the certificate is still valid."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [*map(x509.DNSName, hosts), *map(x509.UniformResourceIdentifier, uris)]
        return self._signed(name, key, names, left), private_key_pem(key)

    def _signed(self, name: str, key: Any, names: list[Any], left: timedelta, *, ca: bool = False) -> bytes:
        now = datetime.now(UTC).replace(microsecond=0)
        common = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA")])
        built = x509.CertificateBuilder(issuer, common, key.public_key(), x509.random_serial_number())
        built = built.not_valid_before(now - HOUR * 24).not_valid_after(now + left)
        built = built.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        of_ours, of_it = self._key.public_key(), key.public_key()
        built = built.add_extension(x509.SubjectKeyIdentifier.from_public_key(of_it), critical=False)
        built = built.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(of_ours), critical=False)
        if names:
            built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return built.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


CA, OTHER_CA = CertificateAuthority(), CertificateAuthority()


@dataclass(frozen=True)
class TlsFiles:
    """Certificate, key and client CA in a folder, each named as its setting."""

    folder: Path

    def path(self, name: str) -> Path:
        """The file of a setting."""
        return self.folder / name

    @property
    def settings(self) -> dict[str, Path]:
        """The settings of TLS that name the files there are."""
        return {name.name: name for name in sorted(self.folder.iterdir()) if name.name.startswith("tls_")}

    def credentials(self) -> Credentials:
        """The credentials that a server reads from them."""
        credentials = tls.load_credentials(load(**self.settings))
        assert credentials
        return credentials

    def put(self, certificate: bytes, key: bytes, client_ca: bytes | None = None) -> "TlsFiles":
        """Writes the files in place."""
        self.path("tls_certificate").write_bytes(certificate)
        self.path("tls_key").write_bytes(key)
        if client_ca:
            self.path("tls_client_ca").write_bytes(client_ca)
        return self
