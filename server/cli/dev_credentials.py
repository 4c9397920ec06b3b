"""Credentials for development: a CA, certificates, a JWK Set and tokens, in a folder of their own.

The keys of the CA and of the issuer are thrown away: nobody can add a caller to a server that trusts them.
"""

import json
import os
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.errors import OperatorError
from server.policy.attributes import ATTRIBUTE_NAME, group_pairs

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

ISSUER, AUDIENCE, TRUST_DOMAIN, TENANT_CLAIM = "https://dev.example", "conversations", "dev.example", "tenant"
MAX_PRINCIPALS = 100
_HOSTS = ("localhost", "127.0.0.1", "::1")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")  # also the name of files
_OF_SERVER = frozenset({"ca", "server", "jwks"})  # names of files, too
_CLAIMS = frozenset({"iss", "aud", "sub", "exp", "iat", "nbf", "jti", TENANT_CLAIM})
_SKEW = timedelta(minutes=5)  # certificates are valid a little earlier, for clocks that differ


class CredentialsRefused(OperatorError):
    """The credentials cannot be made; the text names the argument at fault."""


@dataclass(frozen=True)
class Caller:
    """A principal that gets a token and a certificate.

    Attributes:
        name: The id in the token, and the last part of the SPIFFE id in the certificate.
        attributes: Claims of the token, such as `teams`.
    """

    name: str
    attributes: Mapping[str, Sequence[str]]

    @classmethod
    def parse(cls, text: str) -> "Caller":
        """The caller that ``text`` describes: `alice`, or `alice;teams=red;teams=blue`.

        Raises:
            CredentialsRefused: It describes none.
        """
        name, *pairs = text.split(";")
        if not _NAME.fullmatch(name) or name in _OF_SERVER:
            raise CredentialsRefused("--principal: a name has 1 to 64 letters, digits, `.`, `_` and `-`.")
        attributes = group_pairs(pairs)
        if not all(ATTRIBUTE_NAME.fullmatch(key) and all(values) for key, values in attributes.items()):
            raise CredentialsRefused("--principal: attributes are written name=value, with a semicolon before each.")
        if taken := sorted(attributes.keys() & _CLAIMS):
            raise CredentialsRefused(f"--principal: {taken[0]} is a claim of its own and no attribute.")
        return cls(name, attributes)

    @property
    def spiffe_id(self) -> str:
        """The principal of the certificate."""
        return f"spiffe://{TRUST_DOMAIN}/{self.name}"


def make(folder: Path, callers: Sequence[Caller], tenant: str, hosts: Sequence[str], days: int) -> None:
    """Writes all files into ``folder``, which must be empty or not exist; only this user can read them.

    Args:
        folder: Where to.
        callers: Who gets a token and a certificate.
        tenant: Of all tokens; '' for none.
        hosts: Names and addresses of the server beside those of this machine.
        days: How long everything is valid.

    Raises:
        CredentialsRefused: The folder has files, or there are too many callers or one twice.
    """
    if len({caller.name for caller in callers}) != len(callers) or not 0 < len(callers) <= MAX_PRINCIPALS:
        raise CredentialsRefused(f"--principal: 1 to {MAX_PRINCIPALS} different names are needed.")
    if folder.exists() and any(folder.iterdir()):
        raise CredentialsRefused(f"{folder}: there are files in this folder; name an empty or a new one.")
    files = (*_certificates(callers, hosts, days), *_tokens(callers, tenant, days))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in files:
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "wb") as opened:
            opened.write(content)


def exports(folder: Path, callers: Sequence[Caller], tenant: str, *, certificates: bool) -> Iterator[str]:
    """Yields lines for a shell: the settings of the server, and those of a client that is the first caller.

    Args:
        folder: The absolute path of the files.
        callers: Those that `make` was given.
        tenant: Of all tokens.
        certificates: Whether callers are known by certificates instead of tokens.
    """
    first = callers[0].name
    server = {"TLS_CERTIFICATE": str(folder / "server.pem"), "TLS_KEY": str(folder / "server.key")}
    client = {"TARGET": "localhost:50051", "TARGET_CA": str(folder / "ca.pem")}
    if certificates:
        server |= {"IDENTITY": "mtls", "MTLS_TRUST_DOMAINS": TRUST_DOMAIN, "TLS_CLIENT_CA": str(folder / "ca.pem")}
        client |= {"TARGET_CERT": str(folder / f"{first}.pem"), "TARGET_KEY": str(folder / f"{first}.key")}
    else:
        server |= {
            "IDENTITY": "jwt",
            "JWT_ISSUER": ISSUER,
            "JWT_AUDIENCE": AUDIENCE,
            "JWT_JWKS": str(folder / "jwks.json"),
        }
        server |= {"JWT_TENANT_CLAIM": TENANT_CLAIM} if tenant else {}
        client |= {"TARGET_TOKEN_FILE": str(folder / f"{first}.token")}
    yield "# The server:"
    yield from _lines(server)
    yield f"# A client that is {callers[0].spiffe_id if certificates else first}:"
    yield from _lines(client)


def _lines(settings: Mapping[str, str]) -> Iterator[str]:
    return (f"export CONVERSATIONS_{name}={shlex.quote(value)}" for name, value in settings.items())


def _tokens(callers: Sequence[Caller], tenant: str, days: int) -> Iterator[tuple[str, bytes]]:
    """Yields the issuer's JWK Set and a token for each caller: file names and contents."""
    from joserfc import jwk, jwt

    key = jwk.ECKey.generate_key("P-256", {"kid": "dev", "alg": "ES256", "use": "sig"})
    yield "jwks.json", json.dumps({"keys": [key.as_dict(private=False)]}, indent=2).encode()
    now = int(time.time())
    common: dict[str, Any] = {"iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + days * 86400}
    common |= {TENANT_CLAIM: tenant} if tenant else {}
    for caller in callers:
        claims = common | {name: list(values) for name, values in caller.attributes.items()} | {"sub": caller.name}
        yield f"{caller.name}.token", jwt.encode({"alg": "ES256", "typ": "JWT", "kid": "dev"}, claims, key).encode()


def _certificates(callers: Sequence[Caller], hosts: Sequence[str], days: int) -> Iterator[tuple[str, bytes]]:
    """Yields the CA's certificate, and certificates and keys of the server and of each caller."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    authority = _Authority(days)
    yield "ca.pem", authority.certificate
    names = [_host(each) for each in dict.fromkeys((*_HOSTS, *hosts))]
    yield from authority.issue("server", names, ExtendedKeyUsageOID.SERVER_AUTH)
    for caller in callers:
        uri = x509.UniformResourceIdentifier(caller.spiffe_id)
        yield from authority.issue(caller.name, [uri], ExtendedKeyUsageOID.CLIENT_AUTH)


def _host(text: str) -> "x509.GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        pass
    if not re.fullmatch(r"(\*\.)?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", text):
        raise CredentialsRefused("--host: must be a host name or an IP address.")
    return x509.DNSName(text)


class _Authority:
    """A CA that exists as long as this object."""

    def __init__(self, days: int) -> None:
        from cryptography import x509

        self._key, self._days = _new_key(), days
        self._name = _named("Development CA")
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        self.certificate = self._sign(self._name, self._key, [(usage, True)], is_ca=True)

    def issue(
        self, name: str, alternatives: list["x509.GeneralName"], usage: "x509.ObjectIdentifier"
    ) -> Iterator[tuple[str, bytes]]:
        """Yields a certificate and its private key: file names and contents."""
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        key = _new_key()
        more = [(x509.SubjectAlternativeName(alternatives), False), (x509.ExtendedKeyUsage([usage]), False)]
        yield f"{name}.pem", self._sign(_named(name), key, more, is_ca=False)
        yield f"{name}.key", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def _sign(
        self,
        subject: "x509.Name",
        key: "ec.EllipticCurvePrivateKey",
        more: Sequence[tuple["x509.ExtensionType", bool]],
        *,
        is_ca: bool,
    ) -> bytes:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.serialization import Encoding

        now = datetime.now(UTC)
        public, ours = key.public_key(), self._key.public_key()
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=is_ca, path_length=None), True),
            (x509.SubjectKeyIdentifier.from_public_key(public), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(ours), False),
            *more,
        ]
        built = x509.CertificateBuilder(self._name, subject, public, x509.random_serial_number())
        built = built.not_valid_before(now - _SKEW).not_valid_after(now + timedelta(days=self._days))
        for extension, critical in extensions:
            built = built.add_extension(extension, critical=critical)
        return built.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _new_key() -> "ec.EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _named(common: str) -> "x509.Name":
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
