"""Processes that are killed, stopped or replaced."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.faults.scene import Scene


@asynccontextmanager
async def server_killed(scene: Scene) -> AsyncIterator[None]:
    """The only server is killed, and started again by whoever watches it."""
    await scene.server.kill()
    yield
    await scene.server.start()
    scene.mended()
