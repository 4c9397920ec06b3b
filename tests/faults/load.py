"""`python -m tests.faults.load`: offers calls at a rate that no client library would, and counts what becomes of them.

An own HTTP/2 client: one that costs as much per call as the server does could not overload it. As other
clients do it keeps to the peer's limit of streams, and gives a call up when its deadline has passed.
The job comes as JSON on standard input, the result goes as JSON to standard output.
"""

import asyncio
import itertools
import json
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import cast

import uvloop
from conversations.v1.conversations_service_pb2 import CreateItemsRequest, GetConversationRequest
from grpc import StatusCode

from tests.faults import http2
from tests.faults.http2 import Flag, Kind
from tests.support.build import user_message

_TICK = 0.005  # seconds
_SERVICE = "/conversations.v1.ConversationsService"
_CODES = {code.value[0]: code.name for code in StatusCode}
_RESETS = {7: "UNAVAILABLE", 8: "CANCELLED", 11: "RESOURCE_EXHAUSTED"}  # RFC 9113 §7 to gRPC; others: INTERNAL


@dataclass(frozen=True)
class Job:
    """What to offer."""

    address: str
    token: str
    conversations: list[str]
    seconds: float
    rate: float = 0.0  # calls a second; 0: as many as are answered
    at_once: int = 64  # calls under way, without a rate
    connections: int = 64
    deadline: float = 1.0  # seconds


@dataclass
class Outcome:
    """What became of it."""

    offered: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    per_second: float = 0.0  # answered with OK before the deadline
    slowest: float = 0.0  # seconds, of those


class Connection(asyncio.Protocol):
    """One connection and its calls."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._frames = http2.Frames()
        self._streams = itertools.count(1, 2)
        self._window = 65_535  # bytes of DATA that the peer takes
        self._most = 0  # streams that the peer takes
        self.calls: dict[int, float] = {}  # when the call of a stream began
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends what comes first, with windows so wide that answers never wait."""
        self.transport = cast("asyncio.Transport", transport)
        wide = struct.pack(">L", 2**30)
        hello = http2.settings(HEADER_TABLE_SIZE=0, INITIAL_WINDOW_SIZE=2**30)
        self.transport.write(http2.PREFACE + hello + http2.frame(Kind.WINDOW_UPDATE, 0, wide))

    def connection_lost(self, _error: Exception | None) -> None:
        """Its calls end with it."""
        for began in self.calls.values():
            self._load.ended("CONNECTION_LOST", began)
        self.calls.clear()
        self._most = 0

    @property
    def has_room(self) -> bool:
        """Whether one more call can be sent."""
        return len(self.calls) < self._most and self._window > 1024

    def send(self, began: float, left: float) -> None:
        """Sends a call that has so many seconds left."""
        stream = next(self._streams)
        block, body = self._load.request(left)
        self._window -= len(body) + 5
        self.calls[stream] = began
        self.transport.write(http2.call(stream, block, body))

    def give_up(self, before: float) -> None:
        """Cancels the calls that began before a time."""
        late = list(itertools.takewhile(lambda each: each[1] < before, self.calls.items()))
        for stream, began in late:
            del self.calls[stream]
            self.transport.write(http2.frame(Kind.RST_STREAM, stream, struct.pack(">L", 8)))
            self._load.ended("DEADLINE_EXCEEDED", began)

    def data_received(self, data: bytes) -> None:
        """Takes answers."""
        for kind, flags, stream, payload in self._frames.feed(data):
            if kind == Kind.HEADERS and (status := http2.grpc_status(payload)) is not None:
                self._ended(stream, _CODES[status])
            elif kind == Kind.RST_STREAM:
                self._ended(stream, _RESETS.get(struct.unpack(">L", payload)[0], "INTERNAL"))
            elif kind == Kind.SETTINGS and not flags & Flag.ACK:
                self._most = _setting(payload, 3) or self._most or 100
                self.transport.write(http2.frame(Kind.SETTINGS, flags=Flag.ACK))
            elif kind == Kind.PING and not flags & Flag.ACK:
                self.transport.write(http2.frame(Kind.PING, 0, payload, Flag.ACK))
            elif kind == Kind.WINDOW_UPDATE and stream == 0:
                self._window += struct.unpack(">L", payload)[0]

    def _ended(self, stream: int, code: str) -> None:
        began = self.calls.pop(stream, None)
        if began is not None:
            self._load.ended(code, began)


def _setting(payload: bytes, wanted: int) -> int | None:
    found: Iterator[tuple[int, int]] = struct.iter_unpack(">HL", payload)
    return next((value for name, value in found if name == wanted), None)


class Load:
    """All connections, and the calls that wait for one."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._codes: Counter[str] = Counter()
        self._in_time = 0
        self._slowest = 0.0
        self._offered = 0
        self._waiting: deque[float] = deque()
        self._connections: list[Connection] = []
        self._blocks: dict[tuple[str, int], bytes] = {}
        self._bodies = itertools.cycle(list(self._requests()))

    def _requests(self) -> Iterator[tuple[str, bytes]]:
        for each in self._job.conversations:
            yield "GetConversation", GetConversationRequest(conversation_id=each).SerializeToString()
            items = [user_message("x" * 100)]
            yield "CreateItems", CreateItemsRequest(conversation_id=each, items=items).SerializeToString()

    def request(self, left: float) -> tuple[bytes, bytes]:
        """Headers and body of the next call."""
        method, body = next(self._bodies)
        key = method, max(1, round(left * 50))  # in steps of 20 ms
        if key not in self._blocks:
            path = f"{_SERVICE}/{method}"
            self._blocks[key] = http2.request_headers(path, self._job.token, f"{key[1] * 20}m")
        return self._blocks[key], body

    def ended(self, code: str, began: float) -> None:
        """Counts a call that ended."""
        took = time.monotonic() - began
        if code == "OK" and took <= self._job.deadline:
            self._in_time += 1
            self._slowest = max(self._slowest, took)
        self._codes[code] += 1

    async def run(self) -> Outcome:
        """Offers as long as the job says, and waits for the rest."""
        host, _, port = self._job.address.rpartition(":")
        loop = asyncio.get_running_loop()
        for _ in range(self._job.connections):
            _, connection = await loop.create_connection(lambda: Connection(self), host, int(port))
            self._connections.append(connection)
        await asyncio.sleep(0.5)  # for their settings
        began = time.monotonic()
        while (now := time.monotonic()) < began + self._job.seconds:
            self._offer(now, now - began)
            await asyncio.sleep(_TICK if self._job.rate else 0.001)
        in_time = self._in_time
        await self._drain()
        return Outcome(self._offered, dict(self._codes), in_time / self._job.seconds, self._slowest)

    def _offer(self, now: float, passed: float) -> None:
        """Brings as many calls as are due, and sends those for which there is room, oldest first."""
        if self._job.rate:
            due = int(self._job.rate * passed) - self._offered
        else:
            due = self._job.at_once - sum(len(each.calls) for each in self._connections) - len(self._waiting)
        self._waiting.extend([now] * max(0, due))
        self._offered += max(0, due)
        before = now - self._job.deadline
        for connection in self._connections:
            connection.give_up(before)
        while self._waiting and self._waiting[0] < before:
            self.ended("DEADLINE_EXCEEDED", self._waiting.popleft())
        self._send(now)

    def _send(self, now: float) -> None:
        roomy = deque(each for each in self._connections if each.has_room)
        while self._waiting and roomy:
            connection = roomy.popleft()
            began = self._waiting.popleft()
            connection.send(began, began + self._job.deadline - now)
            if connection.has_room:
                roomy.append(connection)

    async def _drain(self) -> None:
        self._waiting.clear()
        end = time.monotonic() + self._job.deadline
        while time.monotonic() < end and any(each.calls for each in self._connections):  # noqa: ASYNC110
            await asyncio.sleep(_TICK)
        for connection in self._connections:
            connection.give_up(float("inf"))
            connection.transport.abort()


async def offer(job: Job) -> Outcome:
    """Runs the job in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.load"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate(json.dumps(asdict(job)).encode())
    return Outcome(**json.loads(output))


def main() -> None:
    """Does the job on standard input."""
    job = Job(**json.loads(sys.stdin.read()))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outcome = runner.run(Load(job).run())
    print(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
