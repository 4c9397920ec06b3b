"""Hostile peers beside decent callers: what they may cost."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from tests.faults.attack import Attack
from tests.faults.attacker import ATTACKS, launch
from tests.faults.http_attacker import HTTP_ATTACKS
from tests.faults.http_callers import OVER_HTTP
from tests.faults.scene import Scene

Fault = Callable[[Scene], AbstractAsyncContextManager[None]]

_MIB = 1024 * 1024
MOST_MEMORY = 512 * _MIB  # bytes
MORE_THAN_BEFORE = 64 * _MIB  # bytes that may stay
GIVEN_BACK_WITHIN = 30.0  # seconds
HEALTH_SECONDS = 0.5  # the longest a health check takes beside an attack
DECENT = 0.5  # share of the calls of decent callers that are answered beside an attack


def attacked(name: str, seconds: float, *, stranger: bool = False, large_items: int = 0) -> Fault:
    """An attack of `attacker`, and the memory that it takes and gives back.

    ``stranger``: without credentials. ``large_items``: items of 64 KiB in the conversation that it is about.
    """
    assert name in ATTACKS

    @asynccontextmanager
    async def fault(scene: Scene) -> AsyncIterator[None]:
        token, (conversation,) = await scene.stranger(conversations=1, items=large_items)
        before, began = scene.memory(), time.monotonic()
        address = scene.server.http_address if name in HTTP_ATTACKS else scene.server.address
        count = await launch(Attack(name, address, "" if stranger else token, conversation, seconds))
        ended = time.monotonic()
        scene.facts["sent"] = f"{count:,}"
        yield
        await _given_back(scene, before)
        _health(scene, began, ended)
        _decent_callers(scene, began, ended)

    return fault


async def _given_back(scene: Scene, before: int) -> None:
    """Memory has a bound, and is given back soon."""
    peak = max(size for watch in scene.watches for _, size in watch.memory)
    scene.facts["memory"] = f"{before // _MIB} → {peak // _MIB} MiB"
    scene.expect(peak <= MOST_MEMORY, f"the server grew to {peak // _MIB} MiB")
    began = time.monotonic()
    while (now := scene.memory()) > before + MORE_THAN_BEFORE and time.monotonic() < began + GIVEN_BACK_WITHIN:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    scene.facts["memory"] += f" → {now // _MIB} MiB after {time.monotonic() - began:.0f} s"
    more = (now - before) // _MIB
    scene.expect(now <= before + MORE_THAN_BEFORE, f"{more} MiB more than before after {GIVEN_BACK_WITHIN:.0f} s")


def _health(scene: Scene, began: float, ended: float) -> None:
    longest = max(look.took for watch in scene.watches for look in watch.looks if began <= look.at <= ended)
    scene.facts["longest health check"] = f"{longest * 1000:.0f} ms"
    scene.expect(longest <= HEALTH_SECONDS, f"a health check took {longest:.2f} s")


def _decent_callers(scene: Scene, began: float, ended: float) -> None:
    """Of the calls over each protocol that there are, enough are answered."""
    calls = [each for each in scene.workload.history.attempts if began <= each.began <= ended]
    _answered(scene, "decent calls", [each.code for each in calls])
    if scene.workload.http:
        _answered(scene, "those over HTTP", [each.code for each in calls if OVER_HTTP in each.method])


def _answered(scene: Scene, name: str, codes: list[str]) -> None:
    share = sum(code in {"OK", "ABORTED"} for code in codes) / max(1, len(codes))
    scene.facts[f"{name} answered"] = f"{share:.0%} of {len(codes)}"
    scene.expect(share >= DECENT, f"{share:.0%} of {name} were answered")
