"""What it takes to hold watches of which nothing is told: memory, opening, and CPU time over a while."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from bench.cpu import family_mebibytes
from bench.process import Started
from bench.watch.doubts import doubt_others
from bench.watch.scene import Scene
from bench.watch.sizes import Sizes
from bench.watch.usage import Meter, Usage

_FIRST = 10  # watches that are opened and closed before, so that what a server loads once is not counted


@dataclass(frozen=True)
class Held:
    """Watches of one server.

    Attributes:
        kibibytes: Resident memory of the server for each.
        opening: CPU microseconds of server and PostgreSQL for opening one.
        windows: CPU time while they were held.
    """

    kibibytes: float
    opening: float
    windows: Sequence[Usage]


async def measure_held(scene: Scene, conversations: Sequence[str], sizes: Sizes, windows: int = 0) -> Held:
    """Has a fresh server hold a watch of each conversation, and reads its CPU time in so many windows."""
    async with scene.fresh_server() as server:
        async with scene.watched(conversations[:_FIRST], server):
            pass
        await asyncio.sleep(sizes.settling)
        before, meter = family_mebibytes(server.pid), _meter(scene, server)
        await scene.watchers.ask("open", address=server.address, conversations=conversations)
        opened = meter.read()
        await asyncio.sleep(sizes.settling)
        grown = family_mebibytes(server.pid) - before
        found = [await _window(scene, server, sizes.window) for _ in range(windows)]
        await scene.watchers.ask("close")
    cost = (opened.server + opened.postgres) / len(conversations)
    return Held(grown * 1024 / len(conversations), cost * 1e6, found)


def _meter(scene: Scene, server: Started) -> Meter:
    return Meter((server.pid,), scene.postgres.pid, (scene.watchers.pid,))


async def _window(scene: Scene, server: Started, seconds: float) -> Usage:
    meter = _meter(scene, server)
    await asyncio.sleep(seconds)
    usage = meter.read()
    scene.warnings.update(doubt_others("watches that are held", usage))
    return usage
