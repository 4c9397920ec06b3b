"""Readiness: the store is prepared once, however long that takes, and probed from then on (ADR 15)."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from server.errors import NotReadyYet, OperatorError, ServiceError, StoreUnavailable

log = structlog.get_logger(__name__)

_PROBE_SECONDS = 5.0  # between two probes of a store that answers
_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.25, 10.0  # between two tries with one that does not


class PingableStore(Protocol):
    """What is probed; `server.store.connection.database.Database` is one.

    Attributes:
        answered: How many statements it has answered; while the number grows, no probe is needed.
    """

    answered: int

    async def ping(self) -> None:
        """Has the store answer a query.

        Raises:
            StoreUnavailable, DeadlineExceeded: It does not answer.
        """


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
        waits_for: Why not, in words for operators; '' once the store is prepared.
    """

    def __init__(self, store: PingableStore, prepare: Callable[[], Awaitable[None]], health: ReadinessListener) -> None:
        self._store = store
        self._prepare = prepare
        self._health = health
        self._prepared = False
        self._answered = 0
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
            self.waits_for = str(error)
            log.warning("waiting for the database", why=self.waits_for)
        else:
            await self._mark_prepared()

    async def run(self) -> None:
        """Prepares the store if need be, with exponential backoff, and then probes it until it is cancelled."""
        pause = _MIN_BACKOFF_SECONDS
        while not self._prepared:
            await asyncio.sleep(pause)
            pause = min(pause * 2, _MAX_BACKOFF_SECONDS)
            await self._retry_prepare()
        while True:
            await asyncio.sleep(_PROBE_SECONDS if self.ready else _MIN_BACKOFF_SECONDS * 4)
            await self._probe()

    async def _retry_prepare(self) -> None:
        """Tries again; no problem ends the process any more, because an operator may mend it while it runs."""
        try:
            await self._prepare()
        except (OperatorError, ServiceError) as error:
            if str(error) != self.waits_for:
                self.waits_for = str(error)
                log.warning("waiting for the database", why=self.waits_for)
        else:
            await self._mark_prepared()
            log.info("ready")

    async def _mark_prepared(self) -> None:
        self._prepared = True
        self.waits_for = ""
        await self._set_ready(ready=True)

    async def _probe(self) -> None:
        """Asks the store, unless it has answered calls since the last probe."""
        answered, self._answered = self._answered, self._store.answered
        if self.ready and answered != self._store.answered:
            return
        try:
            await self._store.ping()
        except ServiceError as failure:
            if self.ready:
                log.warning("not ready: the database does not answer", reason=failure.reason)
                await self._set_ready(ready=False)
        else:
            if not self.ready:
                log.info("ready again")
                await self._set_ready(ready=True)

    async def _set_ready(self, *, ready: bool) -> None:
        self.ready = ready
        await self._health.ready(now=ready)
