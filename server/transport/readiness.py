"""Whether the store can be used: prepared once, however long that takes, and looked at from then on."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from server.errors import NotReadyYet, OperatorError, ServiceError, StoreUnavailable

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 5.0  # between two looks at a store that is there
_SHORTEST, _LONGEST = 0.25, 10.0  # seconds between two tries with one that is not


class PingableStore(Protocol):
    """What is looked at; `server.store.connection.database.Database` is one."""

    answered: int

    async def ping(self) -> None:
        """Has it answer.

        Raises:
            StoreUnavailable, DeadlineExceeded: It does not.
        """


class ReadinessListener(Protocol):
    """Who wants to know; `server.transport.health.Health` is one."""

    async def ready(self, *, now: bool) -> None:
        """The store can be used, or cannot any more."""


class Readiness:
    """Prepares the store and then watches it.

    Args:
        store: What is watched.
        prepare: Makes it fit for use.
        health: Is told of every change.
    """

    def __init__(self, store: PingableStore, prepare: Callable[[], Awaitable[None]], health: ReadinessListener) -> None:
        self._store = store
        self._prepare = prepare
        self._health = health
        self._prepared = False
        self._answered = 0
        self.ready = False
        self.waits_for = ""  # in words, while it is not prepared

    async def begin(self) -> None:
        """Tries to prepare the store.

        Raises:
            OperatorError: What is wrong will not pass by waiting.
        """
        try:
            await self._prepare()
        except (NotReadyYet, StoreUnavailable) as error:
            self.waits_for = str(error)
            log.warning("waiting for the database", why=self.waits_for)
        else:
            await self._is_prepared()

    async def keep(self) -> None:
        """Prepares it if need be, and looks at it, for ever."""
        pause = _SHORTEST
        while not self._prepared:
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST)
            await self._try_again()
        while True:
            await asyncio.sleep(_LOOK_SECONDS if self.ready else _SHORTEST * 4)
            await self._look()

    async def _try_again(self) -> None:
        """Once calls are refused in the hope of better times, no problem ends the process."""
        try:
            await self._prepare()
        except (OperatorError, ServiceError) as error:
            if str(error) != self.waits_for:
                self.waits_for = str(error)
                log.warning("waiting for the database", why=self.waits_for)
        else:
            await self._is_prepared()
            log.info("ready")

    async def _is_prepared(self) -> None:
        self._prepared = True
        self.waits_for = ""
        await self._is(ready=True)

    async def _look(self) -> None:
        """A store that has answered calls need not be asked."""
        answered, self._answered = self._answered, self._store.answered
        if self.ready and answered != self._store.answered:
            return
        try:
            await self._store.ping()
        except ServiceError as failure:
            if self.ready:
                log.warning("not ready: the database does not answer", reason=failure.reason)
                await self._is(ready=False)
        else:
            if not self.ready:
                log.info("ready again")
                await self._is(ready=True)

    async def _is(self, *, ready: bool) -> None:
        self.ready = ready
        await self._health.ready(now=ready)
