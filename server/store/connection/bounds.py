"""How long to wait for what."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """Limits on waiting, in seconds.

    Attributes:
        connect: For a new connection, all hosts of the URL together.
        acquire: For a connection to be free.
        statement: On the server. The client waits a second longer; then the server or the network is stuck.
        lock: For a lock, on the server.
        probe: For the answer to a readiness probe, a new connection included.
    """

    connect: float = 5.0
    acquire: float = 1.0
    statement: float = 5.0
    lock: float = 2.0
    probe: float = 2.0

    @property
    def command(self) -> float:
        """For the answer to a statement, on the client."""
        return self.statement + 1

    def session(self) -> dict[str, str]:
        """Returns the settings of each session, as pg_settings shows them."""
        return {
            "jit": "off",  # no statement here runs long enough to earn its compilation
            # Every statement walks indexes. A plan from when a table was small would scan
            # it, and be kept while the table grows, until statistics catch up (ADR 10).
            "enable_seqscan": "off",
            "enable_bitmapscan": "off",
            "plan_cache_mode": "force_generic_plan",
            "statement_timeout": _milliseconds(self.statement),
            "lock_timeout": _milliseconds(self.lock),
            "idle_in_transaction_session_timeout": _milliseconds(10),
        }


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))  # 0 would be no bound
