"""The load of a run: callers of two tenants, from the first call to the last, and their history."""

import asyncio
import itertools
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import grpc
import grpc.aio
from conversations.v1.conversation_pb2 import Conversation
from conversations.v1.conversations_service_pb2 import (
    CreateConversationRequest,
    CreateItemsRequest,
    CreateItemsResponse,
)
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub

from tests.faults.history import (
    MARKER,
    Append,
    Attempt,
    History,
    Outcome,
    Placement,
)
from tests.support.build import user_message

DEADLINE = 2.0  # seconds for each call
PATIENCE = 20.0  # seconds in which every write under a request id is acknowledged once nothing is broken any more
CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.enable_retries", 0),  # the history has every attempt
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
)
_ROUND_ROBIN = ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}')


@dataclass
class Tenant:
    """Whose calls these are, and the conversations that they are about."""

    name: str
    token: str
    shared: str = ""  # a conversation for each kind of caller
    raced: str = ""
    streamed: str = ""
    counted: str = ""
    thinned: str = ""
    rewound: str = ""
    page_token: str = ""  # of a list of `shared`

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """The credentials of a call."""
        return [("authorization", f"Bearer {self.token}")]

    @property
    def conversations(self) -> list[tuple[str, str]]:
        """Tenant and id of each."""
        names = (self.shared, self.raced, self.streamed, self.counted, self.thinned, self.rewound)
        return [(self.name, each) for each in names]


@dataclass
class Workload:
    """The callers of two tenants and their history."""

    targets: str  # what a channel is made for
    tenants: list[Tenant]
    random: Random
    callers: Sequence[type["Caller"]]  # one of each, for each tenant
    http: Sequence[str] = ()  # the addresses of the HTTP edges, if there are any
    pause: float = 0.02  # seconds, on average, between two calls of one caller
    cancelled: float = 0.0  # share of the calls that their callers leave
    history: History = field(default_factory=History)
    unfinished: int = 0  # callers that did not learn how a write ended, long after nothing was broken any more
    problems: list[Exception] = field(default_factory=list)  # callers that broke
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    async def prepare(self) -> None:
        """Makes the conversations."""
        async with self.channel() as channel:
            stub = ConversationsServiceStub(channel)
            for tenant in self.tenants:
                for name in ("shared", "raced", "streamed", "counted", "thinned", "rewound"):
                    made = await stub.CreateConversation(
                        CreateConversationRequest(conversation=Conversation(metadata={"number": "0"})),
                        metadata=tenant.metadata,
                        timeout=20,
                    )
                    setattr(tenant, name, made.id)

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        """A connection of its own to each server."""
        async with grpc.aio.insecure_channel(self.targets, options=[*CHANNEL_OPTIONS, _ROUND_ROBIN]) as channel:
            yield channel

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Callers call while this is open; leaving it lets each finish what it must know the end of."""
        async with AsyncExitStack() as stack:
            tasks = []
            for tenant in self.tenants:
                for number, kind in enumerate(self.callers):
                    channel = await stack.enter_async_context(self.channel())
                    caller = kind(self, tenant, f"{tenant.name}-{kind.__name__}-{number}", channel)
                    tasks.append(asyncio.create_task(caller.run()))
            try:
                yield
                self.cancelled = 0.0
                self.ending.set()
                _, late = await asyncio.wait(tasks, timeout=PATIENCE)
                self.unfinished = len(late)
            finally:
                for task in tasks:
                    task.cancel()
                ends = await asyncio.gather(*tasks, return_exceptions=True)
                self.problems = [each for each in ends if isinstance(each, Exception)]


class Caller(ABC):
    """One of those who call at the same time; subclasses say what for."""

    def __init__(self, workload: Workload, tenant: Tenant, name: str, channel: grpc.aio.Channel) -> None:
        self.workload = workload
        self.history = workload.history
        self.tenant = tenant
        self.name = name
        self.stub: Any = ConversationsServiceStub(channel)
        self.random = Random(f"{name} {workload.random.random()}")

    @abstractmethod
    async def run(self) -> None:
        """Calls until the workload ends."""

    async def rest(self) -> None:
        """A while without a call."""
        await asyncio.sleep(self.random.uniform(0, 2 * self.workload.pause))

    def marker(self) -> str:
        """A text that nobody else stores."""
        return f"{MARKER}{self.tenant.name}:{self.name}:{next(self.workload._numbers)}"

    async def ask(self, method: str, request: Any) -> tuple[Attempt, Any]:
        """One call, which the caller leaves now and then when it is told to."""

        async def send() -> Any:
            call = getattr(self.stub, method)(request, metadata=self.tenant.metadata, timeout=DEADLINE)
            if self.random.random() < self.workload.cancelled:
                asyncio.get_running_loop().call_later(self.random.uniform(0, 0.01), call.cancel)
            return await call

        return await self.history.call(method, self.tenant.name, DEADLINE, send)

    async def insist(self, attempts: list[Attempt], once: Callable[[], Awaitable[Attempt]]) -> None:
        """Repeats a call until it is known how it ended."""
        while True:
            attempt = await once()
            attempts.append(attempt)
            if attempt.outcome is Outcome.OK:
                return
            await asyncio.sleep(self.random.uniform(0.02, 0.1))

    def append_to(self, conversation_id: str, *, request_id: bool, expected: int | None = None) -> Append:
        """A new append of one to three items."""
        markers = tuple(self.marker() for _ in range(self.random.randint(1, 3)))
        own = str(uuid.UUID(int=self.random.getrandbits(128), version=4)) if request_id else ""
        append = Append(self.name, self.tenant.name, conversation_id, markers, own, expected)
        self.history.appends.append(append)
        return append

    async def send(self, append: Append) -> Attempt:
        """One attempt at an append."""
        request = CreateItemsRequest(
            conversation_id=append.conversation_id,
            items=map(user_message, append.markers),
            request_id=append.request_id,
            expected_last_sequence=append.expected,
        )
        attempt, answer = await self.ask("CreateItems", request)
        if answer is not None:
            append.placements.append(placement_of(answer))
        if attempt.reason == "STORE_UNAVAILABLE" and not append.request_id:
            attempt.outcome = Outcome.REFUSED  # else it would have been OUTCOME_UNKNOWN (ADR 18)
        return attempt


class RepeatingCaller(Caller):
    """A caller that does the same again and again."""

    async def run(self) -> None:
        """Takes steps until the end."""
        while not self.workload.ending.is_set():
            await self._step()
            await self.rest()

    @abstractmethod
    async def _step(self) -> None:
        """What it does between two rests: one call, or a few that belong together."""


def placement_of(answer: CreateItemsResponse) -> Placement:
    """Where an answer says that items are."""
    ids = tuple(item.id for item in answer.items)
    return Placement(answer.items[0].sequence, ids, answer.SerializeToString(deterministic=True))
