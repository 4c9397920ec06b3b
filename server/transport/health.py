"""The health service: what orchestrators and clients may ask, and how watching ends.

| name | SERVING when |
|---|---|
| `liveness` | the process answers; restarting it would not help anything else |
| `startup` | the store has been ready once |
| `readiness`, `""` and each service of the contract | the store is ready and no drain has begun |
"""

import asyncio
from collections.abc import Iterable
from typing import Any

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as package

from server.errors import ShuttingDown
from server.interceptors.chain import Context

LIVENESS, STARTUP, READINESS = "liveness", "startup", "readiness"
_STATES = {True: health_pb2.HealthCheckResponse.SERVING, False: health_pb2.HealthCheckResponse.NOT_SERVING}


class Health(package.HealthServicer):  # type: ignore[misc] # not typed
    """Answers by name; not ready until told."""

    def __init__(self, services: Iterable[str]) -> None:
        """``services``: the full names that are served."""
        super().__init__()
        self._ready = ("", READINESS, *services)
        self._drained = asyncio.Event()
        self._server_status = dict.fromkeys((*self._ready, STARTUP), _STATES[False])
        self._server_status[LIVENESS] = _STATES[True]

    async def ready(self, *, now: bool) -> None:
        """Tells whether the store can be used."""
        for name in (*self._ready, STARTUP) if now else self._ready:
            await self.set(name, _STATES[now])

    async def begin_drain(self) -> None:
        """Nothing more is served, for good, except that the process is alive: nobody must kill it in its drain."""
        await self.ready(now=False)
        self._gracefully_shutting_down = True

    def end_watches(self) -> None:
        """Ends every watch: an endless stream would hold up the drain for the whole grace (traps §2.6)."""
        self._drained.set()

    async def Watch(self, request: Any, context: Context) -> None:  # noqa: N802 - gRPC's name
        """As in the protocol, until the drain.

        Raises:
            ShuttingDown: The server ends.
        """
        watching = asyncio.ensure_future(super().Watch(request, context))
        drained = asyncio.ensure_future(self._drained.wait())
        try:
            await asyncio.wait((watching, drained), return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()  # it ends by an error only
            raise ShuttingDown
        finally:
            watching.cancel()
            drained.cancel()
