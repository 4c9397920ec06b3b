"""More calls than the server can answer."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from tests.faults.load import Job, offer
from tests.faults.scene import Scene

Fault = Callable[[Scene], AbstractAsyncContextManager[None]]

# CANCELLED and UNAVAILABLE (a stream beyond those of its connection) are gRPC's own: docs/adr/0025
REFUSALS = frozenset(("OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "CANCELLED", "UNAVAILABLE"))
HEALTH_SECONDS = 0.1
_CONVERSATIONS = 32


def overloaded(times: float, seconds: float, goodput: float) -> Fault:
    """Measures what the server can do, and then offers a multiple of it.

    Args:
        times: The multiple.
        seconds: How long it is offered.
        goodput: The share of the capacity that must be answered meanwhile.
    """

    @asynccontextmanager
    async def fault(scene: Scene) -> AsyncIterator[None]:
        token, conversations = await scene.stranger(conversations=_CONVERSATIONS)
        capacity = await offer(Job(scene.server.address, token, conversations, seconds=seconds / 2))
        began = time.monotonic()
        rate = times * capacity.per_second
        outcome = await offer(Job(scene.server.address, token, conversations, seconds, rate))
        share = outcome.per_second / capacity.per_second
        health = max(look.took for watch in scene.watches for look in watch.looks if look.at >= began)
        scene.facts["capacity"] = f"{capacity.per_second:.0f} calls/s"
        scene.facts["offered"] = f"{outcome.offered / seconds:.0f} calls/s"
        scene.facts["goodput"] = f"{share:.0%}"
        scene.facts["longest health check"] = f"{health * 1000:.0f} ms"
        scene.facts["codes"] = str(dict(sorted(outcome.codes.items())))
        scene.expect(share >= goodput, f"goodput is {share:.0%} of the capacity")
        scene.expect(health <= HEALTH_SECONDS, f"a health check took {health * 1000:.0f} ms")
        for code in sorted(set(outcome.codes) - REFUSALS):
            scene.expect(False, f"{outcome.codes[code]} calls were refused with {code}")
        yield

    return fault
