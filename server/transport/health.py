"""The health service: what orchestrators and clients ask for, and how watches end.

| name | SERVING while |
|---|---|
| `liveness` | the process answers; a restart would help nothing |
| `startup` | from the first time the store was ready |
| `readiness`, `""` and each service of the contract | the store is ready and no drain has begun |

Orchestrators that cannot ask by gRPC with TLS ask for the first three by HTTP (`PATHS`).
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Self

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as grpc_health

from server.errors import Overloaded, ShuttingDown
from server.interceptors.chain import Context

MAX_WATCHES, MAX_WATCHES_OF_CONNECTION = 1000, 10  # nobody is authenticated for them
LIVENESS, STARTUP, READINESS = "liveness", "startup", "readiness"
PATHS = {"/live": LIVENESS, "/startup": STARTUP, "/ready": READINESS}
_STATUSES = {True: health_pb2.HealthCheckResponse.SERVING, False: health_pb2.HealthCheckResponse.NOT_SERVING}


class Health(grpc_health.HealthServicer):  # type: ignore[misc] # not typed
    """Answers by name; made by `create`."""

    def __init__(self, services: Iterable[str]) -> None:
        """``services``: full names of the services of the contract."""
        super().__init__()
        self._ready_names = ("", READINESS, *services)
        self._draining = False
        self._end_watches = asyncio.Event()
        self._watches: Counter[str] = Counter()  # by connection

    @classmethod
    async def create(cls, services: Iterable[str]) -> Self:
        """Returns a health service that is alive and not ready; ``services``: full names of those of the contract."""
        health = cls(services)
        await health.set(LIVENESS, _STATUSES[True])
        await health.set(STARTUP, _STATUSES[False])
        await health.ready(now=False)
        return health

    async def ready(self, *, now: bool) -> None:
        """Sets whether the store is ready; without effect once a drain has begun."""
        if self._draining:
            return
        for name in (*self._ready_names, STARTUP) if now else self._ready_names:
            await self.set(name, _STATUSES[now])

    async def begin_drain(self) -> None:
        """Sets every name of readiness to NOT_SERVING, for good.

        `liveness` stays SERVING, so that nothing kills the process before its drain has ended:
        this is why `enter_graceful_shutdown`, which would change that name too, is not used.
        """
        await self.ready(now=False)
        self._draining = True

    def probes(self) -> dict[str, Callable[[], Awaitable[bool]]]:
        """Returns what tells whether a name is SERVING, for each of `PATHS`."""
        return {path: partial(self._is_serving, name) for path, name in PATHS.items()}

    async def _is_serving(self, name: str) -> bool:
        answer = await self.Check(health_pb2.HealthCheckRequest(service=name), None)  # the context is for unknown names
        return bool(answer.status == _STATUSES[True])

    def end_watches(self) -> None:
        """Ends every watch: an endless stream would hold up the drain for the whole grace (grpc/grpc-go#8776)."""
        self._end_watches.set()

    async def List(self, request: Any, context: Context) -> health_pb2.HealthListResponse:  # noqa: N802, ARG002 - gRPC's
        """Returns the status of every name; the package's service has no such method yet."""
        names = (LIVENESS, STARTUP, *self._ready_names)
        asked = {name: await self.Check(health_pb2.HealthCheckRequest(service=name), context) for name in names}
        return health_pb2.HealthListResponse(statuses=asked)

    async def Watch(self, request: Any, context: Context) -> None:  # noqa: N802 - gRPC's name
        """Streams the status of a name until the caller leaves.

        Raises:
            Overloaded: As many watches run as may.
            ShuttingDown: The drain has reached its end.
        """
        connection = context.peer()
        if self._watches.total() >= MAX_WATCHES or self._watches[connection] >= MAX_WATCHES_OF_CONNECTION:
            raise Overloaded("health watches", MAX_WATCHES)
        self._watches[connection] += 1
        try:
            await self._watch(request, context)
        finally:
            self._watches[connection] -= 1
            if not self._watches[connection]:
                del self._watches[connection]

    async def _watch(self, request: Any, context: Context) -> None:
        watch = asyncio.ensure_future(super().Watch(request, context))
        end = asyncio.ensure_future(self._end_watches.wait())
        try:
            await asyncio.wait((watch, end), return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                watch.result()  # it ends by an error only
            raise ShuttingDown
        finally:
            watch.cancel()
            end.cancel()
