"""TLS of the edge: contexts of Python's `ssl` made of the same material as gRPC's credentials."""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import NamedTemporaryFile

from server.transport.tls import Material

_FORWARD_SECRECY = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2; every suite of TLS 1.3 has it


def server_context(material: Material) -> ssl.SSLContext:
    """Returns a context for new connections; with client CAs, clients need a certificate of one of them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_FORWARD_SECRECY)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    with _as_file(material.key_pair.key + b"\n" + material.key_pair.chain) as name:
        context.load_cert_chain(name)
    if material.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=material.client_ca.decode())
    return context


@contextmanager
def _as_file(secret: bytes) -> Iterator[str]:
    """Yields the name of a file that holds ``secret``: OpenSSL loads a key from a file only.

    The files of the settings may have changed since they were checked. In memory where the system can do that.
    """
    if not hasattr(os, "memfd_create"):
        with NamedTemporaryFile() as file:  # readable for its owner only
            file.write(secret)
            file.flush()
            yield file.name
        return
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, secret)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
