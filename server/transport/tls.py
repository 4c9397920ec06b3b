"""TLS: the server's certificate, key and client CAs, reloaded when their files change."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import grpc
import structlog

from server.settings.identity import IdentitySettings
from server.settings.watched_file import FileVersion, WakeableSleep, file_version
from server.transport.certificates import KeyPair, PemFile, TlsConfigError, load_authorities, load_key_pair

log = structlog.get_logger(__name__)

_POLL_SECONDS = 1.0

__all__ = ["Credentials", "TlsConfigError", "load_credentials"]


@dataclass(frozen=True)
class Material:
    """What a handshake needs."""

    key_pair: KeyPair
    client_ca: bytes | None


class Credentials:
    """Certificate, key and client CAs for new connections; open connections keep theirs.

    The three files are loaded together or not at all: while one is replaced and another
    is not yet, the previous material stays in force.

    Attributes:
        reloads: Changes of the files, by whether they were `taken` or `refused`.

    Raises:
        TlsConfigError: A file cannot be used; only from the constructor.
    """

    def __init__(self, certificate: PemFile, key: PemFile, client_ca: PemFile | None = None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._sleep = WakeableSleep()
        self._loaded_versions = self._file_versions()  # taken before the files are read, or a change could be missed
        self._material = self._read()
        self._last_refused: object = None  # versions and problem of the last poll, if the files could not be used
        self._reported: object = None
        self.reloads = {"taken": 0, "refused": 0}
        self._listeners: list[Callable[[], None]] = []

    @property
    def material(self) -> Material:
        """What handshakes of new connections use."""
        return self._material

    def on_change(self, listener: Callable[[], None]) -> None:
        """Calls ``listener`` whenever the material has changed."""
        self._listeners.append(listener)

    @property
    def expires_at(self) -> datetime:
        """When the certificate of new connections expires."""
        return self._material.key_pair.expires_at

    def for_address(self) -> grpc.ServerCredentials:
        """Returns credentials for one address; each needs its own, for gRPC keeps the last configuration of each."""
        current = self._material

        def fetch_configuration() -> Any:
            """Called by a thread of gRPC before each handshake, which waits for it: no files, no locks."""
            nonlocal current
            if (latest := self._material) is current:
                return None  # unchanged
            current = latest
            return _configuration(latest)

        required = self._client_ca is not None
        return grpc.dynamic_ssl_server_credentials(
            _configuration(current), fetch_configuration, require_client_authentication=required
        )

    def reload(self) -> None:
        """Makes `watch` check the files at once; safe in a signal handler."""
        self._sleep.wake()

    async def watch(self) -> None:
        """Loads the files after every change, for ever; files that cannot be used change nothing."""
        while True:
            await self._sleep.sleep(_POLL_SECONDS)
            await self._poll()

    async def _poll(self) -> None:
        versions = self._file_versions()
        if versions == self._loaded_versions:
            return
        try:
            material = await asyncio.to_thread(self._read)  # the files may be on a slow disk
        except TlsConfigError as error:
            self._refuse((versions, str(error)), str(error))
            return
        self._loaded_versions = versions
        if material != self._material:
            self._material = material
            self.reloads["taken"] += 1
            for listener in self._listeners:
                listener()
            log.info("certificate loaded", expires_at=self.expires_at.isoformat())

    def _refuse(self, change: object, problem: str) -> None:
        """Logs a change that cannot be used, once, when a second poll finds it unchanged.

        Files are replaced one after the other, so the first poll may see half of a change.
        """
        if change == self._last_refused and change != self._reported:
            self._reported = change
            self.reloads["refused"] += 1
            log.warning("certificate refused", problem=problem, in_force_until=self.expires_at.isoformat())
        self._last_refused = change

    def _read(self) -> Material:
        client_ca = load_authorities(self._client_ca) if self._client_ca else None
        return Material(load_key_pair(self._certificate, self._key), client_ca)

    def _file_versions(self) -> tuple[FileVersion | None, ...]:
        files = (self._certificate, self._key, self._client_ca)
        return tuple(file_version(file.path) for file in files if file)


def load_credentials(settings: IdentitySettings) -> Credentials | None:
    """Returns the configured credentials; None without TLS. With `tls_client_ca`, clients need a certificate.

    Raises:
        TlsConfigError: Names the setting and what is wrong with it.
    """
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    certificate, key = PemFile("tls_certificate", settings.tls_certificate), PemFile("tls_key", settings.tls_key)
    client_ca = PemFile("tls_client_ca", settings.tls_client_ca) if settings.tls_client_ca else None
    return Credentials(certificate, key, client_ca)


def _configuration(material: Material) -> Any:
    pairs = [(material.key_pair.key, material.key_pair.chain)]
    return grpc.ssl_server_certificate_configuration(pairs, material.client_ca)
