"""Brings the schema up to date in a process of its own.

Alembic and what it imports take 14 MB, which a server would keep for good after its first start.
"""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE

from server.errors import OperatorError
from server.store.connection.opening import DatabaseConfigError, DatabaseUnreachable
from server.store.migrate import MigrationFailed, current_revision, is_behind, migrate

_ERRORS: dict[str, type[OperatorError]] = {
    error.__name__: error for error in (DatabaseConfigError, DatabaseUnreachable, MigrationFailed)
}


async def migrate_apart(url: str) -> bool:
    """Brings the schema to `HEAD`; returns whether anything had to be done.

    The other process holds the lock of the migration, so the lock lasts as long as the migration does. If this is
    cancelled, that process is killed and its revision is rolled back.

    Raises:
        DatabaseConfigError, DatabaseUnreachable, MigrationFailed: As `migrate`.
    """
    if not is_behind(await current_revision(url)):
        return False
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "server.app.migration"),
        stdin=PIPE,
        stdout=PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,  # Ctrl-C is for the server, which then cancels this
    )
    try:
        output, _ = await process.communicate(url.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return _outcome(output, process.returncode)


def _outcome(output: bytes, status: int | None) -> bool:
    """Returns what the process says, or raises it."""
    try:
        said = json.loads(output)
    except ValueError:
        raise MigrationFailed(f"The process of the migration ended with status {status}.") from None
    if error := _ERRORS.get(said.get("error")):
        raise error(said["text"])
    return bool(said["done"])


async def _said(url: str) -> dict[str, object]:
    try:
        return {"done": await migrate(url)}
    except tuple(_ERRORS.values()) as error:
        return {"error": type(error).__name__, "text": str(error)}


def main() -> None:
    """Runs ``python -m server.app.migration``: the URL comes on standard input, the outcome goes to standard output."""
    print(json.dumps(asyncio.run(_said(sys.stdin.read()))))  # noqa: T201 - that is how it is told


if __name__ == "__main__":
    main()
