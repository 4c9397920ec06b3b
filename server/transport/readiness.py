"""Readiness: the store is prepared once, however long that takes, and probed from then on (ADR 15)."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from server.errors import NotReadyYet, OperatorError, ServiceError, StoreUnavailable

log = structlog.get_logger(__name__)

_PROBE_SECONDS = 1.0  # between two probes; two such pauses and the time of a probe are less than 5
_UNUSABLE_SECONDS = 0.5  # between two probes of one that does not
_SUSPICION_SECONDS = 0.2  # at least between two probes, however many statements fail
_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.25, 1.0  # between two tries to prepare the store
_REPEAT_SECONDS, _CHANGE_SECONDS = 60.0, 5.0  # between two lines about the same cause, about another cause


class PingableStore(Protocol):
    """What is probed; `server.store.connection.database.Database` is one.

    Attributes:
        answered: How many statements it has answered; while the number grows and nothing fails, no probe is needed.
    """

    answered: int

    async def probe(self) -> str:
        """Returns within a few seconds why the store cannot be used, in words for operators; '' if it can."""

    async def wait_for_suspicion(self, seconds: float) -> bool:
        """Returns True when a statement fails for a reason that may concern all, False after ``seconds``."""

    def report_failures(self, *, ready: bool) -> None:
        """Writes to the log what there is to tell of failures; ``ready``: whether calls are served."""


class ReadinessListener(Protocol):
    """What is told of changes; `server.transport.health.Health` is one."""

    async def ready(self, *, now: bool) -> None:
        """Takes note that the store can be used, or cannot any more."""


class Readiness:
    """Prepares the store and then probes it.

    Args:
        store: What is probed.
        prepare: Makes the store fit for use; raises NotReadyYet or StoreUnavailable while it is not.
        health: Is told of every change.

    Attributes:
        ready: Whether calls can be served.
        waits_for: Why not, in words for operators.
    """

    def __init__(self, store: PingableStore, prepare: Callable[[], Awaitable[None]], health: ReadinessListener) -> None:
        self._store = store
        self._prepare = prepare
        self._health = health
        self._prepared = False
        self._last_line = -math.inf  # when it was last told what is waited for
        self.ready = False
        self.waits_for = ""

    async def start(self) -> None:
        """Tries once to prepare the store; `run` goes on with it if it is not ready yet.

        Raises:
            OperatorError: An operator has to mend something; waiting does not help.
        """
        try:
            await self._prepare()
        except (NotReadyYet, StoreUnavailable) as error:
            self._wait_for(str(error))
        else:
            await self._mark_prepared()

    async def run(self) -> None:
        """Prepares the store if need be and probes it, until it is cancelled."""
        backoff = _MIN_BACKOFF_SECONDS
        while True:
            problem = await self._store.probe()
            if problem:
                await self._mark_unusable(problem)
            elif not self._prepared:
                await self._retry_prepare()
                backoff = min(backoff * 2, _MAX_BACKOFF_SECONDS)
            else:
                await self._set_ready(ready=True)
            if not self._prepared:
                await asyncio.sleep(backoff)
            else:
                self._store.report_failures(ready=self.ready)
                await (self._until_probe_is_due() if self.ready else asyncio.sleep(_UNUSABLE_SECONDS))

    async def _until_probe_is_due(self) -> None:
        """Waits; no probe is due while the store answers calls and none of them fails."""
        while True:
            answered = self._store.answered
            await asyncio.sleep(_SUSPICION_SECONDS)
            if await self._store.wait_for_suspicion(_PROBE_SECONDS - _SUSPICION_SECONDS):
                return
            if answered == self._store.answered:
                return
            self._store.report_failures(ready=True)

    async def _retry_prepare(self) -> None:
        """Tries again; no problem ends the process any more, because an operator may mend it while it runs."""
        try:
            await self._prepare()
        except (OperatorError, ServiceError) as error:
            self._wait_for(str(error))
        else:
            await self._mark_prepared()
            log.info("ready")

    async def _mark_unusable(self, problem: str) -> None:
        if self._prepared:
            self.waits_for = problem
            await self._set_ready(ready=False)
        else:
            self._wait_for(problem)

    def _wait_for(self, problem: str) -> None:
        """Takes note of what keeps the store from being prepared; tells it when it changes, and once a minute."""
        since, changed = time.monotonic() - self._last_line, problem != self.waits_for
        self.waits_for = problem
        if since > _REPEAT_SECONDS or (changed and since > _CHANGE_SECONDS):
            self._last_line = time.monotonic()
            log.warning("waiting for the database", why=problem)

    async def _mark_prepared(self) -> None:
        self._prepared = True
        await self._set_ready(ready=True)

    async def _set_ready(self, *, ready: bool) -> None:
        if ready:
            self.waits_for = ""
        if ready != self.ready:
            await self._health.ready(now=ready)
            self.ready = ready  # only now: what could not be told is told again
