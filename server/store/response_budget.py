"""Response budget: how much memory large responses take, from before their rows are read until callers took them.

gRPC keeps what a caller does not read. The rows of a response, the message and gRPC's copy of it take memory at the
same time, so reads whose rows may be large have their bytes counted before the statement is sent (docs/adr/0026).
"""

import asyncio
from collections import Counter
from contextvars import ContextVar

from server.errors import Overloaded
from server.policy.principal import PrincipalKey, current_principal_key

SHARED_BYTES = 1024 * 1024  # of rows that a read may fetch without room; a response of more is read under the budget
_MAKING, _SENDING = 4, 2  # copies of a response in memory, while it is made and while gRPC sends it
_MOST_HOLDING = 32  # finished responses that wait for room, of `SHARED_BYTES` at most


class Room:
    """What one response takes of the budget."""

    __slots__ = ("_budget", "_caller", "_cost")

    def __init__(self, budget: "ResponseBudget", caller: PrincipalKey, cost: int) -> None:
        self._budget = budget
        self._caller = caller
        self._cost = cost

    def shrink(self, size: int) -> None:
        """Leaves what a finished response of ``size`` bytes takes until it is sent."""
        self._give_back(max(0, self._cost - _SENDING * size))

    def release(self) -> None:
        """Gives everything back; more than once does no harm."""
        self._give_back(self._cost)

    def _give_back(self, cost: int) -> None:
        self._cost -= cost
        self._budget.give_back(self._caller, cost)


# Of the response of the current call; None while it has taken nothing.
current_room: ContextVar[Room | None] = ContextVar("current_room", default=None)


def release_room() -> None:
    """Gives back what the response of the current call has taken, if it has taken anything."""
    if room := current_room.get():
        room.release()
        current_room.set(None)


class _Waiter:
    __slots__ = ("caller", "cost", "granted")

    def __init__(self, caller: PrincipalKey, cost: int) -> None:
        self.caller = caller
        self.cost = cost
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class ResponseBudget:
    """Counts the memory of large responses, in all and of one principal.

    Responses wait in the order in which they came; one whose principal has its part already lets others pass.

    Attributes:
        used: Bytes of memory that are counted now.
        refused: Responses that were given no room since the start.
    """

    def __init__(self, max_message_bytes: int, seconds: float = 1.0) -> None:
        """``max_message_bytes``: of the largest response. ``seconds``: the longest that a read waits for room."""
        self._limit = 2 * _MAKING * max_message_bytes
        self._limit_per_caller = self._limit // 2
        self._seconds = seconds
        self._per_caller: Counter[PrincipalKey] = Counter()
        self._waiters: list[_Waiter] = []
        self._holding = 0
        self.used = 0
        self.refused = 0

    async def reserve(self, size: int, *, patient: bool = False) -> None:
        """Waits for room to read and make a response of ``size`` bytes, in place of what the call has taken before.

        ``patient``: a write that is committed waits for as long as its call may.

        Raises:
            Overloaded: There was none in time; nothing has been read.
        """
        if room := current_room.get():
            room.release()
        current_room.set(await self._take(_MAKING * size, None if patient else self._seconds))

    async def hold(self, size: int, *, patient: bool) -> Room:
        """Waits for room for a finished response of at most `SHARED_BYTES`.

        Raises:
            Overloaded: There was none in time, or too many wait.
        """
        if self._holding >= _MOST_HOLDING and not patient:
            raise self._refusal()
        self._holding += 1
        try:
            return await self._take(_SENDING * size, None if patient else self._seconds)
        finally:
            self._holding -= 1

    def give_back(self, caller: PrincipalKey, cost: int) -> None:
        """Counts ``cost`` bytes of memory of a principal as free again."""
        self.used -= cost
        self._per_caller[caller] -= cost
        if not self._per_caller[caller]:
            del self._per_caller[caller]
        if self._waiters:
            self._grant()

    async def _take(self, cost: int, seconds: float | None) -> Room:
        waiter = _Waiter(current_principal_key(), min(cost, self._limit_per_caller))
        self._waiters.append(waiter)
        self._grant()
        if not waiter.granted.done():
            await self._wait(waiter, seconds)
        return Room(self, waiter.caller, waiter.cost)

    async def _wait(self, waiter: _Waiter, seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await waiter.granted
        except BaseException as error:
            self._leave(waiter)
            if isinstance(error, TimeoutError):
                raise self._refusal() from None
            raise

    def _leave(self, waiter: _Waiter) -> None:
        """Takes out a waiter that waits no longer; it may have been granted in the same moment."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            self._grant()  # it may have stood before others
        elif waiter.granted.done() and not waiter.granted.cancelled():
            self.give_back(waiter.caller, waiter.cost)

    def _refusal(self) -> Overloaded:
        self.refused += 1
        return Overloaded("bytes of memory for large responses", self._limit)

    def _grant(self) -> None:
        """Gives room to those who wait, in their order."""
        waiting: list[_Waiter] = []
        full = False
        for waiter in self._waiters:
            if full or self._per_caller[waiter.caller] + waiter.cost > self._limit_per_caller:
                waiting.append(waiter)
            elif self.used + waiter.cost > self._limit:
                full = True
                waiting.append(waiter)
            elif not waiter.granted.done():
                self.used += waiter.cost
                self._per_caller[waiter.caller] += waiter.cost
                waiter.granted.set_result(None)
        self._waiters = waiting
