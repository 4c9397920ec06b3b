"""A TCP port that is reserved for the workers of this service."""

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from server.errors import cannot_listen
from server.settings.addresses import Address


@contextmanager
def reserved(listen: Address) -> Iterator[Address]:
    """Reserves an address while the context is open; yields it, with a port in place of 0.

    The sockets are bound and do not listen, so they receive no connections. Workers can bind the
    same port, because they belong to the same user; programs without SO_REUSEPORT cannot.

    Raises:
        StartFailed: The address is taken, also by the workers of another service, or not allowed.
    """
    number = listen.port
    with ExitStack() as stack:
        try:
            for family, *_, found in socket.getaddrinfo(listen.host, number, type=socket.SOCK_STREAM):
                if reserving := _reserve_if_local(family, (found[0], number, *found[2:])):
                    number = stack.enter_context(reserving).getsockname()[1]
        except OSError as error:
            raise cannot_listen(str(listen)) from error
        yield listen.with_port(number)


def _reserve_if_local(family: int, address: tuple[Any, ...]) -> socket.socket | None:
    """As `_reserve`; None for an address that this machine does not have, such as ::1 for localhost without IPv6."""
    try:
        return _reserve(family, address)
    except OSError as error:
        if error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
            return None
        raise


def _reserve(family: int, address: tuple[Any, ...]) -> socket.socket:
    """Returns a socket with SO_REUSEPORT on an address that nobody else uses, not even with SO_REUSEPORT."""
    if address[1]:  # for port 0 the kernel picks one that nobody uses
        _bind(family, address, socket.SO_REUSEADDR).close()
    try:
        return _bind(family, address, socket.SO_REUSEPORT)
    except OSError:  # connections of an earlier run, in TIME_WAIT, still have the port
        return _bind(family, address, socket.SO_REUSEPORT, socket.SO_REUSEADDR)


def _bind(family: int, address: tuple[Any, ...], *options: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        for option in options:
            made.setsockopt(socket.SOL_SOCKET, option, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made
