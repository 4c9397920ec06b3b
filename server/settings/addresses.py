"""Addresses to listen on."""

import ipaddress
from typing import Annotated

from pydantic import AfterValidator


def is_socket(listen: str) -> bool:
    """Whether the address is a Unix socket."""
    return listen.startswith("unix:")


def is_local(listen: str) -> bool:
    """Whether only this machine can reach the address."""
    return is_socket(listen) or is_loopback(listen.rpartition(":")[0])


def _is_address(value: str) -> bool:
    try:
        return value.removeprefix("unix:") != "" if is_socket(value) else bool(host_port(value))
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_port(value: str) -> str:
    """The value, if it is an address on the network.

    Raises:
        ValueError: It is not.
    """
    host, colon, port = value.rpartition(":")
    bare = ":" in host and not (host.startswith("[") and host.endswith("]"))
    if bare or not (host and colon and port.isascii() and port.isdigit() and int(port) < 2**16):
        raise ValueError("must be host:port or [ipv6]:port")
    return value


def _host_port_or_nothing(value: str) -> str:
    return value and host_port(value)


Address = Annotated[str, AfterValidator(_host_port_or_nothing)]


def of_worker(listen: str, worker: int) -> str:
    """A worker's own address: each has a port behind that of the one before; 0 stays 0, any."""
    host, _, port = listen.rpartition(":")
    return f"{host}:{int(port) + worker if int(port) else 0}"
