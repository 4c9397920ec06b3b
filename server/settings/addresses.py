"""Addresses to listen on, parsed once by the settings."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, GetCoreSchemaHandler
from pydantic_core import core_schema
from pydantic_settings import NoDecode

from server.settings.lists import split

_UNIX = "unix:"
_PORTS = 2**16


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP host and port, or the path of a Unix socket; as text what an operator writes and gRPC takes.

    Attributes:
        host: A name or an IP address, IPv6 without brackets; empty for a Unix socket.
        port: 0 to 65535; 0 asks for any free port.
        path: Of a Unix socket, else None.
    """

    host: str = ""
    port: int = 0
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address that ``text`` is: `host:port`, `[ipv6]:port` or `unix:path`.

        Raises:
            ValueError: It is none; the message does not hold the text.
        """
        if text.startswith(_UNIX) and text != _UNIX:
            return cls(path=Path(text.removeprefix(_UNIX)))
        host, colon, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:  # an IPv6 address without brackets, of which the port may be a part
            host = ""
        if not (host and colon and port.isascii() and port.isdigit() and int(port) < _PORTS):
            raise ValueError("must be host:port, [ipv6]:port or unix:/path")
        return cls(host, int(port))

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """A setting is text, and becomes text again when settings are dumped."""
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls.parse(str(value)),
            serialization=core_schema.to_string_ser_schema(),
        )

    def __str__(self) -> str:
        if self.path is not None:
            return f"{_UNIX}{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_unix(self) -> bool:
        """Whether it is a Unix socket."""
        return self.path is not None

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.is_unix or is_loopback(self.host)

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for every interface of the machine, as 0.0.0.0 does."""
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False

    def with_port(self, port: int) -> Address:
        """The same host with another port."""
        return replace(self, port=port)

    def for_worker(self, number: int) -> Address:
        """The address of a worker: each has the port after that of the one before; 0, any port, stays 0."""
        return self.with_port(self.port + number) if self.port else self

    def has_ports_for(self, workers: int) -> bool:
        """Whether each of ``workers`` can have a port of its own."""
        return self.port + workers <= _PORTS


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host; an IPv6 address has no brackets."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _once_each(found: tuple[Address, ...]) -> tuple[Address, ...]:
    if not found or len(set(found)) < len(found):
        raise ValueError("must be one address or several, each once")
    return found


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


def _tcp(found: Address | None) -> Address | None:
    if found and found.is_unix:
        raise ValueError("must be host:port or [ipv6]:port")
    return found


Addresses = Annotated[tuple[Address, ...], NoDecode, BeforeValidator(split), AfterValidator(_once_each)]
TcpAddress = Annotated[Address | None, NoDecode, BeforeValidator(_none_if_empty), AfterValidator(_tcp)]
