"""The certificate of a caller under the names that gRPC gives to its parts, so that identity reads one form."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509

# OpenSSL's short names of the types that a subject may have. A subject with another type has no text here, so that
# nobody is taken for somebody else because the two protocols write it in two ways.
_SHORT_NAMES = {
    "2.5.4.3": "CN",
    "2.5.4.4": "SN",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "street",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "2.5.4.12": "title",
    "2.5.4.42": "GN",
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC",
    "1.2.840.113549.1.9.1": "emailAddress",
}
_ESCAPED = frozenset(',+"\\<>;')


def auth_context_of(der: bytes | None) -> Mapping[str, Iterable[bytes]]:
    """Returns the properties of a verified certificate; none without one."""
    if not der:
        return {}
    from cryptography import x509  # noqa: PLC0415 - a server without TLS saves 10 MB
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

    certificate = x509.load_der_x509_certificate(der)
    found: dict[str, list[bytes]] = {
        "x509_pem_cert": [certificate.public_bytes(Encoding.PEM)],
        "peer_uri": [uri.encode() for uri in _uris(certificate)],
    }
    if subject := _subject(certificate.subject):
        found["x509_subject"] = [subject.encode()]
    return found


def _uris(certificate: "x509.Certificate") -> list[str]:
    from cryptography import x509  # noqa: PLC0415

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _subject(name: "x509.Name") -> str:
    """Returns a subject by RFC 2253 as OpenSSL writes it; '' for one with a type that is not known here."""
    sets = []
    for relative in reversed(name.rdns):
        parts = [(_SHORT_NAMES.get(each.oid.dotted_string), each.value) for each in relative]
        if not all(short and isinstance(value, str) for short, value in parts):
            return ""
        sets.append("+".join(f"{short}={_escape(str(value))}" for short, value in parts))
    return ",".join(sets)


def _escape(value: str) -> str:
    written = value.encode()
    return "".join(_escape_byte(written, index) for index in range(len(written)))


def _escape_byte(written: bytes, index: int) -> str:
    byte, sign = written[index], chr(written[index])
    if byte < 0x20 or byte >= 0x7F:
        return f"\\{byte:02X}"
    at_an_end = index in {0, len(written) - 1}
    escaped = sign in _ESCAPED or (sign == " " and at_an_end) or (sign == "#" and index == 0)
    return f"\\{sign}" if escaped else sign
