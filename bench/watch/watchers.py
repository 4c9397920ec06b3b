"""Callers that watch; they note when each item arrives."""

import asyncio
import gc
import time
from collections.abc import Sequence
from typing import Any

import grpc.aio
from conversations.v1 import conversations_service_pb2 as pb
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub

from bench.watch.channels import opened_channels

_STREAMS = 100  # of a connection (max_calls_per_connection)
_OPENING = 32  # at a time: the server refuses calls beyond its queue
_LOOK_SECONDS = 0.01
Arrival = tuple[int, int, int]  # number of the watch, sequence of the item, nanoseconds of the system's monotonic clock


class Watchers:
    """The watches of this process, which go on by their tokens when a stream ends."""

    def __init__(self) -> None:
        self._channels: list[grpc.aio.Channel] = []
        self._following: list[asyncio.Task[None]] = []
        self._arrivals: list[Arrival] = []

    async def open(self, address: str, conversations: Sequence[str]) -> int:
        """Opens a watch of each conversation, and returns their number once each has had its first message."""
        self._channels = opened_channels(address, -(-len(conversations) // _STREAMS))
        stubs = [ConversationsServiceStub(channel) for channel in self._channels]
        gate = asyncio.Semaphore(_OPENING)
        watches = (
            self._open(stubs[number // _STREAMS], number, conversation, gate)
            for number, conversation in enumerate(conversations)
        )
        await asyncio.gather(*watches)
        gc.collect()
        gc.freeze()  # a collection would stop all watches for a while
        return len(self._following)

    async def _open(self, stub: Any, number: int, conversation: str, gate: asyncio.Semaphore) -> None:
        async with gate:
            call = stub.WatchItems(pb.WatchItemsRequest(conversation_id=conversation))
            first = await call.read()
        following = self._follow(stub, call, number, conversation, first.resume_token)
        self._following.append(asyncio.create_task(following))

    async def _follow(self, stub: Any, call: Any, number: int, conversation: str, token: str) -> None:
        while True:
            while (response := await call.read()) is not grpc.aio.EOF:
                now = time.monotonic_ns()
                for change in response.changes:
                    if change.HasField("item"):
                        self._arrivals.append((number, change.item.sequence, now))
                token = response.resume_token
            call = stub.WatchItems(pb.WatchItemsRequest(conversation_id=conversation, resume_token=token))

    async def take(self, expected: int, seconds: float) -> list[Arrival]:
        """Returns what has arrived since the last time.

        Args:
            expected: Waits until so many items have arrived.
            seconds: But no longer than so.
        """
        until = time.monotonic() + seconds
        # An event would cost more, at each arrival.
        while len(self._arrivals) < expected and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)
        self._raise_failures()
        arrivals, self._arrivals = self._arrivals, []
        return arrivals

    def _raise_failures(self) -> None:
        for task in self._following:
            if task.done():
                task.result()

    async def close(self) -> None:
        """Ends all watches."""
        self._raise_failures()
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        for channel in self._channels:
            await channel.close()
        self._channels, self._following, self._arrivals = [], [], []
        gc.unfreeze()
