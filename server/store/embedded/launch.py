"""Launches PostgreSQL: its settings, its log, and a process that does not depend on ours."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from server.store.embedded.folders import open_owned
from server.store.embedded.os_user import OsUser
from server.store.embedded.sockets import PORT

LOG_LIMIT = 10 * 1024 * 1024  # bytes
# SQL text and row values are other people's conversations: they stay out of the log, and it stays small.
_SETTINGS = (
    "unix_socket_permissions=0700",
    "shared_buffers=128MB",
    "max_connections=100",
    "timezone=UTC",
    "log_timezone=UTC",
    "log_destination=stderr",
    "logging_collector=off",
    "log_checkpoints=off",
    "log_min_error_statement=panic",
    "log_error_verbosity=terse",
)
# The shell leaves at once, so the server has no parent to end it: asyncio kills children it still knows.
_DETACH = 'exec "$@" </dev/null >&2 & echo $!'


class ServerLog:
    """The server's log in a data folder.

    Attributes:
        path: Of the file.
        start: The offset in bytes at which the last start of the server began to write.
    """

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / "postgres.log"
        self.start = 0

    @contextmanager
    def open_for_start(self) -> Iterator[int]:
        """Opens it for one more start to append to; empties it first if it is longer than `LOG_LIMIT`."""
        output = open_owned(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            if os.fstat(output).st_size > LOG_LIMIT:
                os.truncate(output, 0)
            self.start = os.fstat(output).st_size
            yield output
        finally:
            os.close(output)

    def tail(self) -> str:
        """Returns the last lines that this start has logged, as the rest of a sentence."""
        with suppress(OSError), self.path.open("rb") as file:
            file.seek(max(self.start, self.path.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").splitlines()[-12:]
            return "\n".join([f"The end of {self.path}:", *lines])
        return f"See {self.path}."


def launch(postgres: Path, cluster: Path, socket_dir: Path, user: OsUser, output: int) -> int:
    """Starts the server and returns its process id; it need not answer yet.

    Blocks for some milliseconds on purpose: a cancellation in between would lose the process.

    Args:
        postgres: The program.
        cluster: Its data.
        socket_dir: Where it listens.
        user: Whom it runs as.
        output: The descriptor of its log.
    """
    settings = [part for setting in _SETTINGS for part in ("-c", setting)]
    place = ["-D", str(cluster), "-k", str(socket_dir), "-h", "", "-p", str(PORT)]
    command = ["/bin/sh", "-c", _DETACH, "sh", str(postgres), *place, *settings]
    return int(user.run(command, stderr=output)[1])
