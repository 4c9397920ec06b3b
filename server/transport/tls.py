"""Serving TLS from three files, which are read again when they change."""

import asyncio
import os
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import grpc
import structlog

from server.settings.identity import IdentitySettings
from server.settings.watched_file import WakeableSleep
from server.transport.certificates import Pair, PemFile, TlsConfigError, authorities, pair

log = structlog.get_logger(__name__)

_PERIOD = 1.0  # seconds between two looks at the files
_Stamp = tuple[int, ...]

__all__ = ["Credentials", "TlsConfigError", "watched"]


@dataclass(frozen=True)
class _Material:
    """What connections begin with."""

    pair: Pair
    client_ca: bytes | None


class Credentials:
    """What new connections are served with; connections that are there live on as they began.

    Certificate, key and client CAs are taken together or not at all: while one
    of them is replaced and another not yet, those before stay in force.

    Raises:
        TlsConfigError: A file cannot be used; only from the constructor.
    """

    def __init__(self, certificate: PemFile, key: PemFile, client_ca: PemFile | None = None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._sleep = WakeableSleep()
        self._seen = self._stamps()  # of the files as they are in force; before they are read, or a change is missed
        self._served = self._read()
        self._unfit: object = None  # how the last look found the files, if they could not be used
        self._told: object = None
        self.reloads = {"taken": 0, "refused": 0}  # changes, by what became of them

    @property
    def expires_at(self) -> datetime:
        """When the certificate does that is served to new connections."""
        return self._served.pair.expires_at

    def of_address(self) -> grpc.ServerCredentials:
        """Credentials to serve one address with.

        Each address needs its own: gRPC keeps for each what it was given last.
        """
        given = self._served

        def news() -> Any:
            """Called by a thread of gRPC before each handshake, which waits: no files, no locks."""
            nonlocal given
            if (served := self._served) is given:
                return None
            given = served
            return _configuration(served)

        needed = self._client_ca is not None
        return grpc.dynamic_ssl_server_credentials(_configuration(given), news, require_client_authentication=needed)

    def reload(self) -> None:
        """Has the files looked at soon; safe in a signal handler."""
        self._sleep.wake()

    async def watch(self) -> None:
        """Takes what the files hold after every change, for ever; what cannot be used changes nothing."""
        while True:
            await self._sleep.sleep(_PERIOD)
            await self._look()

    async def _look(self) -> None:
        stamps = self._stamps()
        if stamps == self._seen:
            return
        try:
            found = await asyncio.to_thread(self._read)  # the files may be on a slow disk
        except TlsConfigError as error:
            self._refuse((stamps, str(error)), str(error))
            return
        self._seen = stamps
        if found != self._served:
            self._served = found
            self.reloads["taken"] += 1
            log.info("certificate loaded", expires_at=self.expires_at.isoformat())

    def _refuse(self, change: object, problem: str) -> None:
        """Once for each change, and not before a second look finds the same: files are replaced one after the other."""
        if change == self._unfit and change != self._told:
            self._told = change
            self.reloads["refused"] += 1
            log.warning("certificate refused", problem=problem, in_force_until=self.expires_at.isoformat())
        self._unfit = change

    def _read(self) -> _Material:
        client_ca = authorities(self._client_ca) if self._client_ca else None
        return _Material(pair(self._certificate, self._key), client_ca)

    def _stamps(self) -> tuple[_Stamp, ...]:
        """What changes when a file does, or a link on the way to it: Kubernetes swaps a link to the folder of all."""
        files = (self._certificate, self._key, self._client_ca)
        return tuple(_stamp(file) for file in files if file)


def watched(settings: IdentitySettings) -> Credentials | None:
    """What to serve with; None without TLS. With `tls_client_ca` nobody without a certificate gets in.

    Raises:
        TlsConfigError: Names the setting and what is wrong with it.
    """
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    certificate, key = PemFile("tls_certificate", settings.tls_certificate), PemFile("tls_key", settings.tls_key)
    client_ca = PemFile("tls_client_ca", settings.tls_client_ca) if settings.tls_client_ca else None
    return Credentials(certificate, key, client_ca)


def _configuration(material: _Material) -> Any:
    pairs = [(material.pair.key, material.pair.chain)]
    return grpc.ssl_server_certificate_configuration(pairs, material.client_ca)


def _stamp(file: PemFile) -> _Stamp:
    try:
        found = os.stat(file.path)  # noqa: PTH116 - os.stat costs half of Path.stat
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
