"""A service of its own for tests: `conversation-service serve --ephemeral` as a process."""

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile

COMMAND_VARIABLE = "CONVERSATION_SERVICE"  # an environment variable: how the service is started
_PREFIX = "CONVERSATIONS_"
_START_SECONDS = 120.0  # on a busy machine; otherwise about two
_STOP_SECONDS = 60.0


class ServiceNotStartedError(Exception):
    """The service did not start; the text is what it wrote."""


@dataclass(frozen=True)
class EphemeralService:
    """A service that lasts as long as its context.

    Attributes:
        address: The target of a client.
        data_dir: The folder of its database, for commands with `--data-dir`.
        pid: Its process.
    """

    address: str
    data_dir: str
    pid: int


def default_command() -> list[str]:
    """The words of the variable `CONVERSATION_SERVICE`; without it the program on the path."""
    return shlex.split(os.environ.get(COMMAND_VARIABLE, "")) or ["conversation-service"]


@contextmanager
def ephemeral_service(command: Sequence[str] = (), **settings: str) -> Iterator[EphemeralService]:
    """Runs a service with an empty database, which is gone afterwards.

    Args:
        command: Starts the service, without its arguments; by default `default_command`.
        settings: Settings of the service, such as `policy_file="policy.yaml"`. Those of this environment are not used.

    Raises:
        ServiceNotStartedError: The program is missing, or it ended.
    """
    words = [*(command or default_command()), "serve", "--ephemeral"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_PREFIX)}
    variables = kept | {f"{_PREFIX}{name.upper()}": value for name, value in settings.items()}
    with TemporaryFile() as log:
        try:
            process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, env=variables)  # noqa: S603
        except OSError as error:
            raise ServiceNotStartedError(f"{shlex.join(words)}: {error.strerror}") from error
        with process:
            try:
                told = _first_line(process)
                if not told:
                    log.seek(0)
                    raise ServiceNotStartedError(log.read().decode(errors="replace"))
                yield EphemeralService(**json.loads(told), pid=process.pid)
            finally:
                _stop(process)


def _first_line(process: subprocess.Popen[bytes]) -> bytes:
    """What the process tells when it serves; nothing if it ends or takes too long, which ends it."""
    timer = threading.Timer(_START_SECONDS, process.kill)
    timer.start()
    try:
        assert process.stdout
        return process.stdout.readline()
    finally:
        timer.cancel()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"{process.args!r} did not stop and is killed", file=sys.stderr)  # noqa: T201 - into the test's output
        process.kill()
