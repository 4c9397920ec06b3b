"""A port that is kept for several processes."""

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from server.errors import cannot_listen
from server.settings.addresses import Address


@contextmanager
def reserved(listen: Address) -> Iterator[Address]:
    """The address, with a port in place of 0, kept for us and our workers while this is open.

    Sockets that are bound but do not listen get no connections. Workers may join
    them, for they are of the same user; programs without SO_REUSEPORT may not.

    Raises:
        StartFailed: It is taken, also by other workers, or not ours to use.
    """
    number = listen.port
    with ExitStack() as stack:
        try:
            for family, *_, found in socket.getaddrinfo(listen.host, number, type=socket.SOCK_STREAM):
                if held := _held_if_here(family, (found[0], number, *found[2:])):
                    number = stack.enter_context(held).getsockname()[1]
        except OSError as error:
            raise cannot_listen(str(listen)) from error
        yield listen.with_port(number)


def _held_if_here(family: int, address: tuple[Any, ...]) -> socket.socket | None:
    """As `_held`; None for an address that this machine does not have, such as ::1 for localhost without IPv6."""
    try:
        return _held(family, address)
    except OSError as error:
        if error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
            return None
        raise


def _held(family: int, address: tuple[Any, ...]) -> socket.socket:
    """A socket with SO_REUSEPORT on an address that nobody else uses, not even with SO_REUSEPORT."""
    if address[1]:  # of free ports the kernel picks one that is nobody's
        _bound(family, address, socket.SO_REUSEADDR).close()
    try:
        return _bound(family, address, socket.SO_REUSEPORT)
    except OSError:  # what is left of the connections of an earlier run is in the way
        return _bound(family, address, socket.SO_REUSEPORT, socket.SO_REUSEADDR)


def _bound(family: int, address: tuple[Any, ...], *options: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        for option in options:
            made.setsockopt(socket.SOL_SOCKET, option, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made
