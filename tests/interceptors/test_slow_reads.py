"""Requests that take long to arrive, limited."""

import asyncio
from typing import Any

import grpc.aio
import pytest

from server.interceptors.body_budget import SLOW_SECONDS, SlowReads


class LateAbort:
    """A context whose abort takes as long as the test wants, as gRPC's does under load."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.goes_on = asyncio.Event()

    async def abort(self, *_status: Any) -> None:
        """Ends the call, late."""
        self.begun.set()
        await self.goes_on.wait()
        raise grpc.aio.AbortError


async def test_a_request_that_arrives_while_it_is_refused_is_not_served() -> None:
    """Its caller is told that nothing was written, so the method never gets it."""
    reads, context, arrives = SlowReads(4), LateAbort(), asyncio.Event()
    reads.begin()  # the one place for slow requests is taken

    async def read() -> bytes:
        await arrives.wait()
        return b"body"

    call = asyncio.create_task(reads.read(context, read))  # type: ignore[arg-type]
    async with asyncio.timeout(SLOW_SECONDS + 5):
        await context.begun.wait()
        arrives.set()
        await asyncio.sleep(0)
        context.goes_on.set()
        with pytest.raises(grpc.aio.AbortError):
            await call
    assert 1 == reads.count
