"""Runs commands of the service in processes that have it imported: ``python -m tests.support.fork_server SOCKET``.

Importing the service is most of what a short command costs. This process imports it once, and forks for each command.
The rest is as with ``python -m server``: a process with its own arguments, environment, folder and pipes, which gets
signals and ends as any interpreter does. For the test `tests.support.fork_client` takes the place of that process.

It ends when its standard input does, so it does not outlive the tests that started it.
"""

import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading

import server.__main__
import server.app.service
import server.app.supervisor
import server.cli.jsonl
import server.cli.listing
import server.cli.tables
import server.store.change_owner
import server.store.purge  # noqa: F401 - imported here, so that commands need not

MAX_REQUEST_BYTES = 2**20


def wait_to_become_a_command(path: str) -> None:
    """Serves the socket at ``path``; returns in each forked process that is to run a command, and nowhere else."""
    assert threading.active_count() == 1, "a fork would lack the other threads"
    gc.freeze()  # a collection would copy what the processes share
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen(100)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        tests = sys.stdin.fileno()
        while tests not in select.select([listener.fileno(), tests], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                break
            connection.close()
        else:
            sys.exit()
    _start(connection)


def _start(connection: socket.socket) -> None:
    """Forks the command, where it returns; what is left here keeps watch over it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, pipes, *_ = socket.recv_fds(connection, MAX_REQUEST_BYTES, 3)
    child = os.fork()
    if child:
        for pipe in (0, 1, 2, *pipes):
            os.close(pipe)
        _watch_over(child, connection)
        os._exit(0)
    connection.close()
    _become(pipes, **json.loads(request))


def _watch_over(child: int, connection: socket.socket) -> None:
    """Passes on signals until the command ends, then tells how; kills it if nobody is there any more to be told."""
    ended = os.pidfd_open(child)
    while ended not in select.select([ended, connection.fileno()], [], [])[0]:
        os.kill(child, int(connection.recv(16) or signal.SIGKILL))
    _, status = os.waitpid(child, 0)
    connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def _become(pipes: list[int], arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """Takes on what belongs to a process."""
    for number, pipe in enumerate(pipes):
        os.dup2(pipe, number)
        os.close(pipe)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv[1:] = arguments


if __name__ == "__main__":
    wait_to_become_a_command(sys.argv[1])
    del sys.modules["server.__main__"]  # it is run, and not only imported
    runpy.run_module("server", run_name="__main__", alter_sys=True)
