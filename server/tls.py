"""Serving TLS, from three files."""

import ssl
from pathlib import Path

import grpc

from server.complaint import Complaint
from server.identity_settings import IdentitySettings


class TlsUnfit(Complaint):
    """A file for TLS cannot be used; the text is for the operator."""


def credentials_of(settings: IdentitySettings) -> grpc.ServerCredentials | None:
    """What to serve with; None without TLS. With `tls_client_ca` nobody without a certificate gets in.

    Raises:
        TlsUnfit: Names the setting and what is wrong with it.
    """
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    certificate, key = (_read("tls_certificate", settings.tls_certificate), _read("tls_key", settings.tls_key))
    roots = _read("tls_client_ca", settings.tls_client_ca) if settings.tls_client_ca else None
    _check(settings)
    return grpc.ssl_server_credentials([(key, certificate)], roots, require_client_auth=roots is not None)


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsUnfit(f"{name}: the file cannot be read ({error.strerror}).") from None


def _check(settings: IdentitySettings) -> None:
    """Finds here, with words, what gRPC would only say to each client."""
    assert settings.tls_certificate is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, password="")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "malformed"
        raise TlsUnfit(f"tls_certificate, tls_key: not a pair of PEM files without a password ({reason}).") from None
    try:
        context.load_verify_locations(settings.tls_client_ca) if settings.tls_client_ca else None
    except ssl.SSLError:
        raise TlsUnfit("tls_client_ca: holds no PEM certificate.") from None
