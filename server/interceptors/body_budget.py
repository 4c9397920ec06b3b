"""Body budget: how many bytes of large requests are in memory at once, in all and of one connection.

A large request takes about eight times its size while it is parsed, validated and written. The budget holds what
has been received; a request that is still on its way is limited by `SlowReads` (docs/adr/0026).
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from itertools import takewhile
from typing import TypeVar

import grpc.aio

from server.errors import Overloaded
from server.interceptors.chain import Context as CallContext
from server.interceptors.error_status import trailers_of
from server.observability.resident_memory import MemoryGauge

SLOW_SECONDS = 0.1  # that a small request never takes to arrive, and a large one may
LOOK_SECONDS = 0.02  # between two looks at those that arrive; a request that has not arrived then is not small
_FEW_PLACES = 2  # for requests that begin to arrive while memory is short
GROWTH_BYTES = 128 * 1024 * 1024  # of the process; beyond it only one request that is not small may go on arriving

Body = TypeVar("Body")


class BodyBudget:
    """Counts the bytes of large requests from their arrival to the end of their calls."""

    def __init__(self, limit: int, limit_per_connection: int) -> None:
        self._limit = limit
        self._limit_per_connection = limit_per_connection
        self._per_connection: Counter[str] = Counter()
        self.bytes = 0

    @contextmanager
    def room_for(self, connection: str, size: int) -> Iterator[bool]:
        """Counts a request of ``size`` bytes while this is open; yields False, and counts nothing, without room."""
        taken = self._per_connection[connection]
        if self.bytes + size > self._limit or taken + size > self._limit_per_connection:
            yield False
            return
        self._count(connection, size)
        try:
            yield True
        finally:
            self._count(connection, -size)

    def no_room(self) -> Overloaded:
        """Returns the error of a request that there is no room for."""
        return Overloaded("bytes of large requests", self._limit)

    def _count(self, connection: str, size: int) -> None:
        self.bytes += size
        self._per_connection[connection] += size
        if not self._per_connection[connection]:
            del self._per_connection[connection]


class SlowReads:
    """Limits the requests that arrive at once, each of which may hold as many bytes as a message may have.

    A small request arrives with its headers and takes its place for a moment only. One that takes longer than
    `SLOW_SECONDS` is large or dripping; those get a quarter of the places, so that small ones hardly wait for them.
    While the process has grown by `GROWTH_BYTES`, all but the oldest are refused after `LOOK_SECONDS` already: gRPC
    tells the size of a request only when it has all of it. The next ones then begin to arrive two at a time.
    """

    def __init__(self, places: int, memory: MemoryGauge | None = None) -> None:
        """``places``: requests at once. ``memory``: tells when the process has grown."""
        self._memory = memory or MemoryGauge(GROWTH_BYTES)
        self._limit = max(1, places // 4)
        self._places = asyncio.Semaphore(places)
        self._few_places = asyncio.Semaphore(_FEW_PLACES)
        self._short = False  # of memory, when it was last looked
        self._watches: dict[_Watch, None] = {}  # of requests on their way, the oldest first
        self._looking = False  # whether a timer runs
        self.count = 0  # that have taken longer

    async def read(self, context: CallContext, read: Callable[[], Awaitable[Body]]) -> Body:
        """Returns what ``read`` reads from ``context``.

        Raises:
            grpc.aio.AbortError: It is slow, and as many slow requests as may be are on their way. The call has been
                ended with RESOURCE_EXHAUSTED.
        """
        async with self._places:
            if not self._short:
                return await self._read(context, read)
            async with self._few_places:
                return await self._read(context, read)

    async def _read(self, context: CallContext, read: Callable[[], Awaitable[Body]]) -> Body:
        watch = self._watch(context)
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

    def _watch(self, context: CallContext) -> "_Watch":
        """Begins to watch a request. One timer serves all: a timer for each would cost more than a small read."""
        loop = asyncio.get_running_loop()
        watch = _Watch(self, context, loop.time())
        self._watches[watch] = None
        if not self._looking:
            self._looking = True
            loop.call_later(LOOK_SECONDS, self._look, context=Context())
        return watch

    def _look(self) -> None:
        """Refuses the requests that may not go on arriving, and comes back while there are others."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        large = list(takewhile(lambda watch: watch.began + LOOK_SECONDS <= now, self._watches))
        for watch in large:
            if watch.began + SLOW_SECONDS <= now and not watch.may_be_slow():
                self._refuse(watch)
        self._short = bool(large or self._short) and self._memory.is_short()
        for watch in large[1:] if self._short else ():
            self._refuse(watch)
        self._looking = bool(self._watches)
        self._short = self._short and self._looking
        if self._looking:
            loop.call_later(LOOK_SECONDS, self._look, context=Context())

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

    __slots__ = ("_context", "_counted", "_reads", "_refusal", "_variables", "began")

    def __init__(self, reads: SlowReads, context: CallContext, began: float) -> None:
        """``began``: by the clock of the loop."""
        self.began = began
        self._reads = reads
        self._context = context
        self._variables = copy_context()  # of the call, while the timer is that of all
        self._counted = False
        self._refusal: asyncio.Task[BaseException] | None = None

    def may_be_slow(self) -> bool:
        """Counts it as slow, once; whether there was room for one more."""
        self._counted = self._counted or self._reads.begin()
        return self._counted

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
