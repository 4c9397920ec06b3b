"""Stands in for a command that `tests.support.fork_server` runs: ``python fork_client.py SOCKET ARGUMENT ...``.

It lends the command its pipes, environment and folder, passes on the signals it gets, and ends as the command does. It
imports next to nothing, because it starts as often as a command does.
"""

import json
import os
import signal
import socket
import sys

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Runs the command line."""
    path, *arguments = sys.argv[1:]
    request = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}  # noqa: PTH109 - pathlib takes long to import
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(path)
        for number in SIGNALS:
            signal.signal(number, lambda number, _: server.send(str(number).encode()))
        socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
        code = int(server.recv(16))
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


main()
