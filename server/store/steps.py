"""What work in steps needs: the settings of its connection, and the loop."""

from typing import Any

from server.store.removal_progress import on_removed
from server.store.sessions import Session

# Each step looks its rows up by their keys. Statistics of a table that grows would make it scan all of it (ADR 10).
LOOKUPS = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}
PURGE_SESSION = {"lock_timeout": "5s", "application_name": "conversations purge", **LOOKUPS}


async def run_in_steps(session: Session, statement: str, step: int, *arguments: Any) -> int:
    """Runs a statement, whose last argument is ``step``, until it finds fewer rows; returns how many it found in all.

    Rows that it deletes are told as `on_removed` says.
    """
    total, count = 0, step
    while count == step:
        done = await session.execute(statement, *arguments, step)
        count = count_of(done)
        total += count
        if done.startswith("DELETE"):
            on_removed.get()(count)
    return total


def count_of(status: str) -> int:
    """Returns the number of rows in the status of a statement, such as ``DELETE 5``."""
    return int(status.rsplit(" ", 1)[1])
