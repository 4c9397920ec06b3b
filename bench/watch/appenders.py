"""Callers that append; they note when each append was sent and answered."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import grpc.aio
from conversations.v1 import conversations_service_pb2 as pb
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub

from bench.grpc_target import message
from bench.percentiles import percentile
from bench.watch.channels import opened_channels

_CONNECTIONS = 4  # to each server: a connection carries 100 calls at a time
_DEADLINE_SECONDS = 20.0
Call = tuple[int, int, int, int]  # number of the conversation, sequence; nanoseconds when sent and when answered


class Appenders:
    """The callers of this process."""

    def __init__(self) -> None:
        self._stubs: dict[str, list[Any]] = {}

    async def open_loop(
        self, address: str, conversations: Sequence[str], rate: float, seconds: float, seed: int
    ) -> dict[str, Any]:
        """Appends by the clock, whether or not earlier appends have been answered.

        Args:
            address: Of the server.
            conversations: Each append takes one of them at random.
            rate: Appends per second on average; the times between them are exponential, as of independent callers.
            seconds: How long.
            seed: Of the times and the conversations.

        Returns:
            The answered ``calls``, how many ``failed`` by status code, and how ``late`` the hundredth that was latest
            was sent, in milliseconds.
        """
        chance, stubs = random.Random(seed), self._stubs_of(address)  # noqa: S311 - a load
        lateness: list[float] = []
        appends: list[asyncio.Task[Call | str]] = []
        due = time.monotonic()
        end = due + seconds
        while (due := due + chance.expovariate(rate)) < end:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            lateness.append((time.monotonic() - due) * 1e3)
            number = chance.randrange(len(conversations))
            append = _answered(stubs[len(appends) % len(stubs)], number, conversations[number])
            appends.append(asyncio.create_task(append))
        results = await asyncio.gather(*appends)
        failed = Counter(result for result in results if isinstance(result, str))
        calls = [result for result in results if not isinstance(result, str)]
        return {"calls": calls, "failed": failed, "late": percentile(lateness, 99) if lateness else 0.0}

    async def closed_loop(self, address: str, conversations: Sequence[str], appends: int) -> int:
        """Appends from a caller for each conversation, one after the other; returns how many appends were made."""
        stubs, share = self._stubs_of(address), appends // len(conversations)

        async def caller(number: int) -> None:
            for _ in range(share):
                await _append(stubs[number % len(stubs)], number, conversations[number])

        await asyncio.gather(*map(caller, range(len(conversations))))
        return share * len(conversations)

    async def spaced(self, address: str, conversation: str, appends: int, pause: float) -> list[Call]:
        """Appends to one conversation, with pauses of so many seconds."""
        stub, calls = self._stubs_of(address)[0], []
        for _ in range(appends):
            calls.append(await _append(stub, 0, conversation))
            await asyncio.sleep(pause)
        return calls

    def _stubs_of(self, address: str) -> list[Any]:
        if address not in self._stubs:
            channels = opened_channels(address, _CONNECTIONS)
            self._stubs[address] = [ConversationsServiceStub(channel) for channel in channels]
        return self._stubs[address]


async def _append(stub: Any, number: int, conversation: str) -> Call:
    request = pb.CreateItemsRequest(conversation_id=conversation, items=[message()])
    sent = time.monotonic_ns()
    response = await stub.CreateItems(request, timeout=_DEADLINE_SECONDS)
    return number, response.items[0].sequence, sent, time.monotonic_ns()


async def _answered(stub: Any, number: int, conversation: str) -> Call | str:
    """An append, or the name of the status code that it ended with."""
    try:
        return await _append(stub, number, conversation)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
