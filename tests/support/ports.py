"""Ports for servers that have to be told one."""

import socket
from contextlib import suppress
from pathlib import Path
from random import SystemRandom

HOST = "127.0.0.1"
_FIRST, _LAST = 10_000, 32_767  # where a system does not say which ports it gives to clients
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """A port of `HOST` that nobody uses.

    It is none of those that the system gives to the sockets of clients: they could take it before the server listens.
    """
    last = int(_RANGE.read_text().split()[0]) - 1 if _RANGE.exists() else _LAST
    choose = SystemRandom()  # that of the module gives the same ports to all processes of one test run
    while True:
        port = choose.randint(min(_FIRST, last), last)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port
