"""Stream reads: what the messages of streams may hold while they are on their way.

gRPC holds a message until all of it is there, and does not tell a stream that waits for a message from one that has
15 MiB of it (docs/adr/0026). So the process looks at its own memory while streams are open.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

from server.errors import Overloaded
from server.interceptors.look_timer import LookTimer
from server.observability.resident_memory import MemoryGauge
from server.policy.principal import current_principal_key

LOOK_SECONDS = 0.02
GROWTH_BYTES = 192 * 1024 * 1024  # of the process; more than unary requests may take (`slow_reads.GROWTH_BYTES`)
_GROWTH_AGAIN = 16 * 1024 * 1024  # a message, since the last look that ended streams
_FEW_STREAMS = 8  # of a principal, that go on until the process has grown by twice as much


class StreamReads:
    """Ends the streams that wait for a message, of the principal that has most of them, while memory is short.

    It does so once for each time that the process has grown, so that it stops when it has found those who made it grow.
    """

    def __init__(self, memory: MemoryGauge | None = None) -> None:
        """``memory``: tells when the process has grown."""
        self._memory = memory or MemoryGauge(GROWTH_BYTES)
        self._waiting: dict[_Messages, None] = {}  # streams of which a message may be on its way
        self._timer = LookTimer(LOOK_SECONDS, self._look)
        self._used = 0  # bytes at the last look that ended streams, while memory is short; the least since then

    def watch(self, bodies: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Returns the messages of a stream of the current principal.

        The iteration raises `Overloaded` when the stream has to end. Messages that have arrived are answered before.
        """
        return _Messages(self, bodies)

    def begin(self, messages: "_Messages") -> None:
        """Called when a stream waits for a message."""
        self._waiting[messages] = None
        self._timer.start()

    def end(self, messages: "_Messages") -> None:
        """Called when it does not wait any more."""
        self._waiting.pop(messages, None)

    def _look(self) -> None:
        if not self._memory.is_short():
            self._used = 0
        elif self._memory.used > self._used + _GROWTH_AGAIN:
            self._used = self._memory.used
            few = _FEW_STREAMS if self._memory.growth < 2 * GROWTH_BYTES else 0
            self._refuse_greediest(more_than=few)
        else:
            self._used = min(self._used, self._memory.used)
        if self._waiting:
            self._timer.start()

    def _refuse_greediest(self, more_than: int) -> None:
        streams = Counter(messages.principal for messages in self._waiting)
        for greediest, count in streams.most_common(1):
            for messages in [each for each in self._waiting if each.principal == greediest and count > more_than]:
                del self._waiting[messages]
                messages.refuse()


class _Messages(AsyncIterator[bytes]):
    """The messages of one stream; no generator, which would keep the last one while it waits for the next."""

    __slots__ = ("_bodies", "_is_refused", "_reader", "_reads", "principal")

    def __init__(self, reads: StreamReads, bodies: AsyncIterator[bytes]) -> None:
        self.principal = current_principal_key()
        self._reads = reads
        self._bodies = bodies
        self._reader: asyncio.Task[object] | None = None
        self._is_refused = False

    def refuse(self) -> None:
        """Ends the stream, which waits for a message."""
        self._is_refused = True
        if self._reader:
            self._reader.cancel()

    async def __anext__(self) -> bytes:
        self._reader = reader = asyncio.current_task()
        self._reads.begin(self)
        try:
            return await anext(self._bodies)
        except asyncio.CancelledError:
            if not (self._is_refused and reader):
                raise
            reader.uncancel()
            raise Overloaded("bytes of requests on their way", GROWTH_BYTES) from None
        finally:
            self._reads.end(self)
