"""Slow reads: how many requests are on their way at once, each of which gRPC holds until all of it is there.

What has arrived is counted by `BodyBudget` (docs/adr/0026).
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from itertools import takewhile
from typing import TypeVar

import grpc.aio

from server.errors import Overloaded
from server.interceptors.chain import Context as CallContext
from server.interceptors.error_status import trailers_of
from server.interceptors.look_timer import LookTimer
from server.observability.resident_memory import MemoryGauge

SLOW_SECONDS = 0.1  # that a small request never takes to arrive, and a large one may
LOOK_SECONDS = 0.02  # between two looks at those that arrive; a request that has not arrived then is not small
_LAG_SECONDS = 0.01  # that a look may be late and still tell what has not arrived
_FEW_PLACES = 2  # for requests that begin to arrive while memory is short
GROWTH_BYTES = 128 * 1024 * 1024  # of the process; beyond it only one request that is not small may go on arriving

Body = TypeVar("Body")


class SlowReads:
    """Limits the requests that arrive at once, each of which may hold as many bytes as a message may have.

    A small request arrives with its headers and takes its place for a moment only. One that takes longer than
    `SLOW_SECONDS` is large or dripping; those get a quarter of the places, so that small ones hardly wait for them.
    While the process has grown by `GROWTH_BYTES`, all but the oldest are refused after `LOOK_SECONDS` already: gRPC
    tells the size of a request only when it has all of it. The next ones then begin to arrive two at a time.

    A request that must be small (`read_small`) needs no place and may take its time, unless memory is short: its caller
    may still send as much as a message may have.
    """

    def __init__(self, places: int, memory: MemoryGauge | None = None) -> None:
        """``places``: requests at once. ``memory``: tells when the process has grown."""
        self._memory = memory or MemoryGauge(GROWTH_BYTES)
        self._limit = max(1, places // 4)
        self._places = asyncio.Semaphore(places)
        self._few_places = asyncio.Semaphore(_FEW_PLACES)
        self._short = False  # of memory, when it was last looked
        self._watches: dict[_Watch, None] = {}  # of requests on their way, the oldest first
        self._timer = LookTimer(LOOK_SECONDS, self._look)
        self.count = 0  # that have taken longer

    async def read(self, context: CallContext, read: Callable[[], Awaitable[Body]]) -> Body:
        """Returns what ``read`` reads from ``context``.

        Raises:
            grpc.aio.AbortError: It is slow, and as many slow requests as may be are on their way. The call has been
                ended with RESOURCE_EXHAUSTED.
        """
        async with self._places:
            if not self._short:
                return await self._read(_Watch(self, context), read)
            async with self._few_places:
                return await self._read(_Watch(self, context), read)

    async def read_small(self, context: CallContext, read: Callable[[], Awaitable[Body]]) -> Body:
        """Returns what ``read`` reads from ``context``: a request that has to be small.

        Raises:
            grpc.aio.AbortError: As `read`, but only while memory is short.
        """
        return await self._read(_SmallWatch(self, context), read)

    async def _read(self, watch: "_Watch", read: Callable[[], Awaitable[Body]]) -> Body:
        self._watches[watch] = None
        self._timer.start()
        try:
            body = await read()
        except Exception:
            await watch.raise_if_refused()  # a call can be ended once
            raise
        finally:
            self._watches.pop(watch, None)
            watch.end()
        if watch.is_refused:  # it has arrived in the moment in which it was refused
            del body  # the error would keep it with this frame
            await watch.raise_if_refused()
        return body

    def _look(self) -> None:
        """Refuses the requests that may not go on arriving, and comes back while there are others."""
        now = asyncio.get_running_loop().time()
        late = list(takewhile(lambda watch: watch.began + LOOK_SECONDS <= now, self._watches))
        for watch in late:
            if watch.began + SLOW_SECONDS <= now and not watch.may_be_slow():
                self._refuse(watch)
        self._short = bool(late or self._short) and self._memory.is_short()
        in_time = now < self._timer.due + _LAG_SECONDS
        for watch in late[1:] if self._short else ():
            if in_time or watch.was_seen():
                self._refuse(watch)
        if self._watches:
            self._timer.start()
        else:
            self._short = False

    def _refuse(self, watch: "_Watch") -> None:
        if watch in self._watches:
            del self._watches[watch]
            watch.refuse()

    async def refuse(self, context: CallContext) -> BaseException:
        """Ends a call, and with it the read; a read that is cancelled leaks what it would have received.

        Returns:
            What the method has to end with: gRPC's own AbortError, or a cancellation if the call had ended before.
        """
        error = Overloaded("slow requests", self._limit)
        try:
            await context.abort(error.code, str(error), trailers_of(error))
        except grpc.aio.AbortError as aborted:
            return aborted
        except grpc.aio.BaseError:
            pass
        return asyncio.CancelledError()

    def begin(self) -> bool:
        """Counts a slow request in, if there is room."""
        if self.count >= self._limit:
            return False
        self.count += 1
        return True


class _Watch:
    """One request on its way."""

    __slots__ = ("_context", "_counted", "_reads", "_refusal", "_seen", "_variables", "began")

    def __init__(self, reads: SlowReads, context: CallContext) -> None:
        self.began = asyncio.get_running_loop().time()
        self._reads = reads
        self._context = context
        self._variables = copy_context()  # of the call, while the timer is that of all
        self._counted = False
        self._seen = False
        self._refusal: asyncio.Task[BaseException] | None = None

    def may_be_slow(self) -> bool:
        """Counts it as slow, once; whether there was room for one more."""
        self._counted = self._counted or self._reads.begin()
        return self._counted

    def was_seen(self) -> bool:
        """Whether a look has found it before; one that comes late may find what the loop has not taken yet."""
        seen, self._seen = self._seen, True
        return seen

    def refuse(self) -> None:
        """Ends its call."""
        refuse = self._reads.refuse(self._context)
        self._refusal = asyncio.get_running_loop().create_task(refuse, context=self._variables)

    def end(self) -> None:
        """Called when it has arrived, or will not."""
        self._reads.count -= self._counted

    @property
    def is_refused(self) -> bool:
        """Whether its call has been ended."""
        return self._refusal is not None

    async def raise_if_refused(self) -> None:
        """Ends the method of a call that has been refused: its caller was told that nothing is written."""
        if self._refusal is not None:
            raise await asyncio.shield(self._refusal)


class _SmallWatch(_Watch):
    """One request on its way that has to be small."""

    __slots__ = ()

    def may_be_slow(self) -> bool:
        """Always: it takes no place from those that may be large."""
        return True
