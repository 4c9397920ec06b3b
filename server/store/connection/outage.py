"""What is told of failures of the database: a line when they begin, one a minute, and one when they have ended."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from server.store.connection.failures import Problem

log = structlog.get_logger(__name__)

_REPEAT_SECONDS = 60.0
_QUIET_SECONDS = 5.0  # without a failure, until the outage is taken to have ended

_BEGINS = {False: "not ready: the database cannot be used", True: "statements fail"}
_LASTS = {False: "still not ready: the database cannot be used", True: "statements still fail"}
_ENDS = {False: "ready again", True: "statements succeed again"}


@dataclass
class Outage:
    """Failures that follow each other.

    Attributes:
        problem: The last failure.
        began: When the first one was, by the clock of `OutageLog`.
        start_time: The same in seconds since 1970.
        last_failure: When the last one was, by the clock of `OutageLog`.
        reasons: How many there were, by reason.
        told: Whether a line was written.
        ready: Whether the process took calls all the time.
    """

    problem: Problem
    began: float
    last_failure: float
    start_time: float = field(default_factory=time.time)
    reasons: Counter[str] = field(default_factory=Counter)
    told: bool = False
    ready: bool = True

    @property
    def failures(self) -> int:
        """How many there were."""
        return self.reasons.total()


class OutageLog:
    """Counts failures, and tells of them when `report` is called, which has to be every few seconds.

    Args:
        clock: Seconds from any start.

    Attributes:
        current: The outage; None when all is well.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.current: Outage | None = None
        self._clock = clock
        self._last_line = 0.0

    def add(self, problem: Problem) -> None:
        """Counts a failure."""
        now = self._clock()
        if self.current is None:
            self.current = Outage(problem, now, now)
        self.current.problem, self.current.last_failure = problem, now
        self.current.reasons[problem.reason] += 1

    def report(self, *, ready: bool) -> None:
        """Writes a line if one is due.

        Args:
            ready: Whether the process takes calls.
        """
        outage, now = self.current, self._clock()
        if outage is None:
            return
        if not outage.told or (outage.ready and not ready):
            outage.told, outage.ready = True, ready
            self._warn(_BEGINS[ready], outage)
        elif ready and now - outage.last_failure >= _QUIET_SECONDS:
            log.info(_ENDS[outage.ready], **self._totals(outage))
            self.current = None
        elif now - self._last_line >= _REPEAT_SECONDS:
            self._warn(_LASTS[ready], outage)

    def _warn(self, event: str, outage: Outage) -> None:
        self._last_line = self._clock()
        problem = outage.problem
        log.warning(event, reason=problem.reason, error=problem.error, code=problem.code, **self._totals(outage))

    def _totals(self, outage: Outage) -> dict[str, object]:
        reasons = " ".join(f"{reason}={count}" for reason, count in outage.reasons.most_common())
        return {"failures": outage.failures, "reasons": reasons, "seconds": round(self._clock() - outage.began, 1)}
